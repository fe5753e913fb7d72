//! Buildkite's webhooks: a hint that a job is over, which makes its end faster. Never needed, never trusted further
//! than the secret that signed it: a secret belongs to one organization and ends only that one's environments.

use std::net::IpAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use kubler_core::environment::{EndReason, Environment, Event};
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::{Broker, BrokerError, Durability};
use crate::store::Search;

/// How old a signed webhook may be, in seconds.
pub const WEBHOOK_SECONDS_MAX: i64 = 300;
/// Longest body of a webhook, in bytes.
pub const WEBHOOK_BYTES_MAX: usize = 1024 * 1024;

/// The secret with which one organization's webhooks are signed.
pub struct WebhookSecret {
    /// The issuer that the organization belongs to.
    pub issuer: String,
    /// The organization's id.
    pub organization_id: String,
    /// The secret.
    pub secret: SecretString,
}

/// A webhook whose signature was good: whose it is, and what it says. Made by [`verify`] only.
pub struct VerifiedWebhook<'a> {
    issuer: &'a str,
    organization_id: &'a str,
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    event: String,
    #[serde(default)]
    job: Option<Identified>,
    #[serde(default)]
    agent: Option<Identified>,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

/// Checks the signature over the raw body, then its age, then reads it.
///
/// # Errors
/// A reason for the ledger; callers get one uniform answer.
pub fn verify<'a>(
    secrets: &'a [WebhookSecret],
    header: Option<&str>,
    body: &[u8],
    now: Timestamp,
) -> Result<VerifiedWebhook<'a>, &'static str> {
    let (timestamp, signature) = header
        .and_then(read_header)
        .ok_or("webhook_signature_missing")?;
    let signature = hex::decode(signature).map_err(|_| "webhook_signature_malformed")?;
    let signer = secrets
        .iter()
        .rfind(|candidate| is_signed_by(candidate, timestamp, body, &signature))
        .ok_or("webhook_signature_wrong")?;
    let signed_at: i64 = timestamp
        .parse()
        .map_err(|_| "webhook_timestamp_malformed")?;
    if now.as_second().abs_diff(signed_at) > WEBHOOK_SECONDS_MAX.unsigned_abs() {
        return Err("webhook_too_old");
    }
    let payload = serde_json::from_slice(body).map_err(|_| "webhook_body_malformed")?;
    Ok(VerifiedWebhook {
        issuer: &signer.issuer,
        organization_id: &signer.organization_id,
        payload,
    })
}

/// `timestamp=…,signature=…`
fn read_header(header: &str) -> Option<(&str, &str)> {
    let (timestamp, signature) = header.split_once(',')?;
    Some((
        timestamp.trim().strip_prefix("timestamp=")?,
        signature.trim().strip_prefix("signature=")?,
    ))
}

fn is_signed_by(candidate: &WebhookSecret, timestamp: &str, body: &[u8], signature: &[u8]) -> bool {
    let Ok(mut mac) =
        Hmac::<sha2::Sha256>::new_from_slice(candidate.secret.expose_secret().as_bytes())
    else {
        return false;
    };
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.verify_slice(signature).is_ok()
}

impl Broker {
    /// Ends the environments of a job that the CI says is over. Answers how many.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub async fn receive_webhook(
        &self,
        webhook: VerifiedWebhook<'_>,
        request_id: RequestId,
        peer: IpAddr,
        now: Timestamp,
    ) -> Result<usize, BrokerError> {
        let mut body = Body::new(Kind::Start, LedgerAction::WebhookReceive);
        body.request_id = Some(request_id);
        body.peer = Some(peer.to_string());
        let text = |text: &str| {
            serde_json::Value::from(kubler_core::text::UntrustedText::new(text).as_str())
        };
        body.details
            .insert("event".into(), text(&webhook.payload.event));
        body.details
            .insert("organization_id".into(), webhook.organization_id.into());
        let entry = self.ledger.start(body, Durability::Disk).await?;

        let mut ended = 0;
        for (environment, reason) in self.meant_by(&webhook).await? {
            let event = Event::ReleaseRequested(reason);
            if let Some((before, released)) = self.store.apply(environment.id, event, now).await? {
                self.phase_changed(None, Some(before), &released).await;
                ended += 1;
            }
        }
        self.wake.wake();
        entry
            .end(Outcome {
                status: 200,
                message: Some(format!("{ended} environments end")),
                ..Outcome::default()
            })
            .await;
        Ok(ended)
    }

    /// Living environments of the signer's organization that the webhook is about. An environment of the whole build
    /// does not end with one of its jobs.
    async fn meant_by(
        &self,
        webhook: &VerifiedWebhook<'_>,
    ) -> Result<Vec<(Environment, EndReason)>, BrokerError> {
        let mut search = Search {
            organization_id: Some(webhook.organization_id.to_owned()),
            ..Search::default()
        };
        let (agent_id, reason) = match (
            webhook.payload.event.as_str(),
            &webhook.payload.job,
            &webhook.payload.agent,
        ) {
            ("job.finished", Some(job), _) => {
                search.job_id = Some(job.id.clone());
                (None, EndReason::JobFinished)
            }
            ("agent.lost", _, Some(agent)) => (Some(agent.id.as_str()), EndReason::AgentLost),
            _ => return Ok(Vec::new()),
        };
        let is_meant = |environment: &Environment| {
            environment.phase.is_live()
                && environment.scope == kubler_core::environment::Scope::Job
                && environment.identity.issuer == webhook.issuer
                && agent_id.is_none_or(|agent_id| environment.identity.runner.agent_id == agent_id)
        };
        let found = self.store.living(&search).await?;
        Ok(found
            .into_iter()
            .filter(is_meant)
            .map(|environment| (environment, reason.clone()))
            .collect())
    }
}
