//! The tenant's credential: a token of its service account, for the shortest time that Kubernetes gives, kept in memory
//! only, and replaced in place before it expires.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubler_core::ids::EnvironmentId;
use kubler_core::lease::after;
use secrecy::SecretString;
use serde_json::{Value, json};
use zeroize::Zeroize as _;

use super::client::{HostClient, succeeded};
use super::{Inner, Slot};
use crate::engine::{Bearer, EngineError, Upstream};

/// Life of a token, in seconds: the least that Kubernetes gives.
const TOKEN_SECONDS: u64 = 600;
/// How long before its end a token is replaced, in seconds: there is time for many tries.
const EARLY_SECONDS: u64 = 180;
/// Wait between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Tokens that are asked for at once, besides those of environments that are being made.
const REFRESHES_MAX: usize = 8;

/// A credential in use.
pub(super) struct Tenant {
    pub(super) upstream: Arc<Upstream>,
    expires_at: Timestamp,
}

/// A token that was given.
pub(super) struct Minted {
    pub(super) token: SecretString,
    expires_at: Timestamp,
}

impl Tenant {
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        now < self.expires_at
    }

    fn is_due(&self, now: Timestamp) -> bool {
        after(now, Duration::from_secs(EARLY_SECONDS)) >= self.expires_at
    }
}

impl Inner {
    /// Asks for a token of the environment's tenant.
    pub(super) async fn mint(&self, id: EnvironmentId) -> Result<Minted, EngineError> {
        let (accounts, name) = (&self.host.accounts_namespace, self.namespace(id));
        let path = format!("/api/v1/namespaces/{accounts}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        });
        let client = HostClient::own(&self.connection, &self.calls);
        let answer = succeeded("its credential", client.post(&path, &request).await)?;
        let lacking = || EngineError::transient("its credential: the host's answer holds no token");
        let mut answer = answer.json().ok_or_else(lacking)?;
        let token = match answer.pointer_mut("/status/token").map(Value::take) {
            Some(Value::String(mut text)) => {
                let token = SecretString::from(text.clone());
                text.zeroize();
                token
            }
            _ => return Err(lacking()),
        };
        let expires_at = answer
            .pointer("/status/expirationTimestamp")
            .and_then(Value::as_str);
        let expires_at = expires_at
            .and_then(|text| text.parse().ok())
            .ok_or_else(lacking)?;
        Ok(Minted { token, expires_at })
    }

    /// Puts a token to use: into the upstream that the gateway has, or into a new one.
    pub(super) fn employ(&self, slot: &Slot, minted: &Minted) -> Result<(), EngineError> {
        let mut tenant = slot.tenant();
        if let Some(tenant) = tenant.as_mut() {
            let replaced = tenant.upstream.token.replace(&minted.token);
            replaced.map_err(EngineError::transient)?;
            tenant.expires_at = minted.expires_at;
            return Ok(());
        }
        *tenant = Some(Tenant {
            upstream: Arc::new(Upstream {
                address: self.connection.address.clone(),
                tls: Arc::clone(&self.connection.tls),
                server_name: self.connection.server_name.clone(),
                token: Bearer::new(&minted.token).map_err(EngineError::transient)?,
            }),
            expires_at: minted.expires_at,
        });
        Ok(())
    }

    /// Gets a credential for an environment that has none, such as one of an earlier server. The caller does not wait.
    pub(super) fn adopt(self: &Arc<Self>, id: EnvironmentId) {
        let slot = self.slot(id);
        let Ok(guard) = Arc::clone(&slot.work).try_lock_owned() else {
            return;
        };
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let employed = async {
                let minted = inner.mint(id).await?;
                inner.employ(&slot, &minted)
            };
            if let Err(error) = employed.await {
                tracing::warn!(environment = %id, %error, "no credential for an environment; it is asked for again when it is needed");
            }
            drop(guard);
        });
    }
}

/// Replaces what expires soon, for ever.
pub(super) async fn refresh(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = inner.clock.now();
        let due = inner.slots().into_iter().filter(|(_, slot)| {
            let tenant = slot.tenant();
            tenant.as_ref().is_some_and(|tenant| tenant.is_due(now))
        });
        let due: Vec<_> = due.collect();
        for some in due.chunks(REFRESHES_MAX) {
            let all = some.iter().map(|(id, slot)| renew(&inner, *id, slot));
            futures_util::future::join_all(all).await;
        }
    }
}

async fn renew(inner: &Inner, id: EnvironmentId, slot: &Slot) {
    // Whoever makes or ends it has it to itself.
    let Ok(_guard) = slot.work.try_lock() else {
        return;
    };
    if slot.tenant().is_none() {
        return;
    }
    let renewed = match inner.mint(id).await {
        Ok(minted) => inner.employ(slot, &minted),
        Err(error) => Err(error),
    };
    if let Err(error) = renewed {
        tracing::warn!(environment = %id, %error, "a credential could not be replaced; trying again");
    }
}
