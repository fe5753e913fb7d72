//! Keeps the door's certificates as new as their files, and writes down what became of each change.

use std::sync::Arc;
use std::time::Duration;

use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::http::tls::{Reloaded, Tls};
use crate::ledger::{Durability, Ledger};

/// How often the files are looked at. A change is loaded when two looks in a row see the same, so that nothing is read
/// between the writing of a certificate and of its key.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reads certificates anew.
pub struct Certificates {
    /// The ones in force.
    pub tls: Arc<Tls>,
    /// What is written down.
    pub ledger: Ledger,
}

impl Certificates {
    /// Reads the files at once; what cannot be used is kept out.
    pub async fn reload(&self) {
        self.read(Tls::reload).await;
    }

    /// Looks at the files again and again until `shutdown`.
    pub async fn watch(self, shutdown: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(looks.tick()).await.is_some() {
            self.read(Tls::look).await;
        }
    }

    /// Reads files, which may block, and tells what became of a change.
    async fn read(&self, read: fn(&Tls) -> Reloaded) {
        let tls = Arc::clone(&self.tls);
        let Ok(outcome) = tokio::task::spawn_blocking(move || read(&tls)).await else {
            return;
        };
        let mut body = Body::new(Kind::Event, LedgerAction::CertificateLoad);
        match outcome {
            Reloaded::Same => return,
            Reloaded::Loaded => tracing::info!("certificates are loaded"),
            Reloaded::Refused(error) => {
                tracing::error!(%error, "certificates cannot be loaded; the old ones stay in force");
                body.details
                    .insert("refused".into(), error.to_string().into());
            }
        }
        if let Err(error) = self.ledger.event(body, Durability::Disk).await {
            tracing::error!(%error, "the change of certificates could not be recorded");
        }
    }
}
