//! Something that has begun and must be closed: by an end record, whatever happens.

use kubler_core::ids::{EnvironmentId, RequestId, SessionId};
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};

use super::Ledger;

/// A start without its end yet. Dropped, it closes itself: the caller was gone before.
pub struct Entry {
    ledger: Ledger,
    sequence: Option<u64>,
    action: LedgerAction,
    request_id: Option<RequestId>,
    environment_id: Option<EnvironmentId>,
    session_id: Option<SessionId>,
    job_id: Option<String>,
}

impl Entry {
    pub(super) fn prepare(ledger: Ledger, body: &Body) -> Self {
        Self {
            ledger,
            sequence: None,
            action: body.action,
            request_id: body.request_id,
            environment_id: body.environment_id,
            session_id: body.session_id,
            job_id: body
                .identity
                .as_ref()
                .map(|identity| identity.job.id.clone()),
        }
    }

    pub(super) const fn begun(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// The start's sequence.
    pub fn sequence(&self) -> u64 {
        self.sequence.unwrap_or_default()
    }

    /// Closes it.
    #[allow(
        clippy::unused_async,
        reason = "callers must not care whether an end waits"
    )]
    pub async fn end(self, outcome: Outcome) {
        self.end_now(outcome);
    }

    /// Closes it with more to say.
    #[allow(
        clippy::unused_async,
        reason = "callers must not care whether an end waits"
    )]
    pub async fn end_with(mut self, outcome: Outcome, change: impl FnOnce(&mut Body)) {
        self.close(outcome, change);
    }

    /// Closes it where nothing can be awaited.
    pub fn end_now(mut self, outcome: Outcome) {
        self.close(outcome, |_| {});
    }

    fn close(&mut self, outcome: Outcome, change: impl FnOnce(&mut Body)) {
        let Some(sequence) = self.sequence.take() else {
            return;
        };
        let mut body = Body::new(Kind::End, self.action);
        body.start = Some(sequence);
        body.request_id = self.request_id;
        body.environment_id = self.environment_id;
        body.session_id = self.session_id;
        body.job_id = self.job_id.take();
        body.outcome = Some(outcome);
        change(&mut body);
        // The work is done or refused: a failure here is said, not returned. The next start closes what stayed open.
        if let Err(error) = self.ledger.append_now(body) {
            tracing::error!(%error, sequence, "an end could not be recorded");
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.close(
            Outcome {
                close_reason: Some("client".into()),
                ..Outcome::default()
            },
            |_| {},
        );
    }
}
