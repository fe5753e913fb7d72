//! Buildkite's webhooks: a hint that a job is over, which makes its end faster. Never needed, never trusted further
//! than the secret that signed it: a secret belongs to one organization and ends only that one's environments.

use std::net::IpAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use kubler_core::environment::{EndReason, Environment, Event, Scope};
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, Outcome};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use super::{Broker, BrokerError, Durability};
use crate::in_force::WebhookSecret;

/// How old a signed webhook may be, in seconds.
pub const WEBHOOK_SECONDS_MAX: i64 = 300;

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
        // Ending always wins: also with a ledger that takes nothing more, what the CI says is over ends.
        let entry = match self.ledger.start(body, Durability::Disk).await {
            Ok(entry) => Some(entry),
            Err(error) => {
                tracing::error!(%error, "a webhook could not be recorded; what it ends is ended all the same");
                None
            }
        };
        let outcome = self.end_all(&webhook, now).await;
        self.wake.wake();
        if let Some(entry) = entry {
            let told = match &outcome {
                Ok(ended) => Outcome {
                    status: 200,
                    message: Some(format!("{ended} environments end")),
                    ..Outcome::default()
                },
                Err(error) => BrokerError::outcome(Some(error), now, self.clock.now()),
            };
            entry.end(told).await;
        }
        outcome
    }

    /// Ends what a webhook is about, all of it that can be ended; answers how many.
    async fn end_all(
        &self,
        webhook: &VerifiedWebhook<'_>,
        now: Timestamp,
    ) -> Result<usize, BrokerError> {
        let (mut ended, mut failure) = (0, None);
        for (environment, reason) in self.meant_by(webhook) {
            match self
                .store
                .apply(environment.id, Event::ReleaseRequested(reason), now)
                .await
            {
                Ok(Some((before, released))) => {
                    self.phase_changed(None, Some(before), &released).await;
                    ended += 1;
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(ended), |error| Err(error.into()))
    }

    /// Living environments of the signer's organization that the webhook is about. An environment of the whole build
    /// does not end with one of its jobs.
    fn meant_by(&self, webhook: &VerifiedWebhook<'_>) -> Vec<(Environment, EndReason)> {
        let payload = &webhook.payload;
        let (job, agent, reason) = match (payload.event.as_str(), &payload.job, &payload.agent) {
            ("job.finished", Some(job), _) => (Some(&job.id), None, EndReason::JobFinished),
            ("agent.lost", _, Some(agent)) => (None, Some(&agent.id), EndReason::AgentLost),
            _ => return Vec::new(),
        };
        let is_meant = |environment: &Environment| {
            let identity = &environment.identity;
            environment.phase.is_live()
                && environment.scope == Scope::Job
                && identity.issuer == webhook.issuer
                && identity.organization.id == webhook.organization_id
                && job.is_none_or(|id| identity.job.id == *id)
                && agent.is_none_or(|id| identity.runner.agent_id == *id)
        };
        let living = self.directory.remaining();
        living
            .into_iter()
            .filter(is_meant)
            .map(|environment| (environment, reason.clone()))
            .collect()
    }
}
