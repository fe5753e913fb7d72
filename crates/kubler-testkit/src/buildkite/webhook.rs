//! Webhooks as the service sends them, and as somebody else might.

use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::record::{Heart, JobRecord, JobState};
use super::world::{JobContext, World};

/// Longest time for one delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The events that Kubler listens to, and one that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookEvent {
    /// A job is over; its state says how.
    JobFinished,
    /// An agent was given up.
    AgentLost,
    /// A build is over, or blocked: says nothing about its jobs.
    BuildFinished,
    /// Sent when the webhook is set up.
    Ping,
}

impl WebhookEvent {
    /// The word in `X-Buildkite-Event`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobFinished => "job.finished",
            Self::AgentLost => "agent.lost",
            Self::BuildFinished => "build.finished",
            Self::Ping => "ping",
        }
    }
}

/// A webhook that is not signed yet.
#[derive(Clone, Debug)]
#[must_use]
pub struct Webhook {
    event: String,
    payload: Value,
}

impl Webhook {
    pub(crate) fn new(world: &World, event: WebhookEvent, job_id: Uuid) -> Self {
        let context = world.context(job_id);
        let sender = json!({ "id": Uuid::now_v7(), "name": context.build.creator });
        let event = event.as_str();
        let payload = match event {
            "agent.lost" => json!({ "event": event, "agent": agent(&context), "sender": sender }),
            "job.finished" => json!({
                "event": event, "job": job(&context, retried_in(world, job_id)), "build": build(&context),
                "pipeline": pipeline(&context), "sender": sender,
            }),
            "build.finished" => {
                json!({ "event": event, "build": build(&context), "pipeline": pipeline(&context), "sender": sender })
            }
            _ => {
                json!({ "event": event, "service": { "id": Uuid::now_v7(), "provider": "webhook" }, "sender": sender })
            }
        };
        Self {
            event: event.to_owned(),
            payload,
        }
    }

    /// The payload as it stands, to be changed before it is signed.
    pub fn payload(&mut self) -> &mut Value {
        &mut self.payload
    }

    /// Signed now with the secret.
    pub fn signed(self, secret: &str) -> Delivery {
        self.signed_at(secret, Timestamp::now())
    }

    /// Signed with the secret for another instant.
    pub fn signed_at(self, secret: &str, dispatched: Timestamp) -> Delivery {
        let body = self.payload.to_string();
        let timestamp = dispatched.as_second();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = hmac::sign(&key, format!("{timestamp}.{body}").as_bytes());
        let header = format!(
            "timestamp={timestamp},signature={}",
            hex::encode(signature.as_ref())
        );
        let mut delivery = Delivery::new(&self.event, body);
        delivery
            .headers
            .push(("X-Buildkite-Signature".into(), header));
        delivery
    }

    /// In the plain mode: the secret itself in a header.
    pub fn with_plain_token(self, secret: &str) -> Delivery {
        let mut delivery = Delivery::new(&self.event, self.payload.to_string());
        delivery
            .headers
            .push(("X-Buildkite-Token".into(), secret.into()));
        delivery
    }

    /// With neither.
    pub fn unsigned(self) -> Delivery {
        Delivery::new(&self.event, self.payload.to_string())
    }
}

/// A webhook ready to be sent: change headers or body and the signature no longer fits.
#[derive(Clone, Debug)]
#[must_use]
pub struct Delivery {
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// JSON, unless changed.
    pub body: Vec<u8>,
}

impl Delivery {
    fn new(event: &str, body: String) -> Self {
        let headers = [
            ("Content-Type", "application/json"),
            ("X-Buildkite-Event", event),
            ("User-Agent", "Buildkite-Request"),
        ];
        let headers = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        Self {
            headers,
            body: body.into_bytes(),
        }
    }

    /// Posts it; `ca_pem` is the authority of an HTTPS receiver. Gives back status and body of the answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(
        &self,
        url: &str,
        ca_pem: Option<&str>,
    ) -> Result<(u16, String), reqwest::Error> {
        let mut client = reqwest::Client::builder()
            .timeout(DELIVERY_TIMEOUT)
            .no_proxy();
        if let Some(pem) = ca_pem {
            client = client.tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes())?]);
        }
        let mut request = client.build()?.post(url).body(self.body.clone());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }
}

fn retried_in(world: &World, job_id: Uuid) -> Option<Uuid> {
    world
        .jobs
        .values()
        .find(|job| job.retry_of == Some(job_id))
        .map(|job| job.id)
}

/// The word of the REST API: it splits `finished`.
fn rest_state(job: &JobRecord) -> &'static str {
    match (job.state, job.exit_status) {
        (JobState::Finished, Some(0)) => "passed",
        (JobState::Finished, _) => "failed",
        (state, _) => state.as_str(),
    }
}

fn build_url(context: &JobContext<'_>) -> String {
    let JobContext {
        organization,
        pipeline,
        build,
        ..
    } = context;
    format!(
        "https://buildkite.com/{}/{}/builds/{}",
        organization.slug, pipeline.slug, build.number
    )
}

fn job(context: &JobContext<'_>, retried_in: Option<Uuid>) -> Value {
    let JobContext {
        organization, job, ..
    } = context;
    let time = |instant: Option<Timestamp>| instant.map(|instant| format!("{instant:.3}"));
    let agent = job.agent_id.map(|_| agent(context));
    let retry_source = job
        .retry_of
        .map(|id| json!({ "job_id": id, "retry_type": "manual" }));
    json!({
        "id": job.id, "type": "script", "name": job.step_key, "step_key": job.step_key, "state": rest_state(job),
        "web_url": format!("{}#{}", build_url(context), job.id),
        "exit_status": job.exit_status, "signal": job.signal, "signal_reason": job.signal_reason,
        "created_at": time(Some(job.timeline.created)), "started_at": time(job.timeline.started),
        "finished_at": time(job.timeline.ended), "retried": retried_in.is_some(), "retried_in_job_id": retried_in,
        "retry_source": retry_source, "agent": agent, "cluster_id": organization.cluster_id,
        "soft_failed": false,
    })
}

fn agent(context: &JobContext<'_>) -> Value {
    let Some(agent) = context.agent else {
        return Value::Null;
    };
    let state = match (agent.lost_at, agent.heart) {
        (Some(_), _) => "lost",
        (None, Heart::Imagined | Heart::LastBeat(_)) => "connected",
    };
    json!({
        "id": agent.id, "name": agent.name, "connection_state": state, "hostname": "host.example.org",
        "lost_at": agent.lost_at.map(|instant| format!("{instant:.3}")), "meta_data": agent.tags, "job": null,
    })
}

fn build(context: &JobContext<'_>) -> Value {
    let JobContext {
        build,
        organization,
        ..
    } = context;
    json!({
        "id": build.id, "number": build.number, "state": "running", "blocked": false, "branch": build.branch,
        "commit": build.commit, "tag": build.tag, "source": build.source, "message": "a build of the stand-in",
        "creator": { "id": organization.queue_id, "name": build.creator }, "pull_request": null,
        "web_url": build_url(context),
    })
}

fn pipeline(context: &JobContext<'_>) -> Value {
    let JobContext {
        organization,
        pipeline,
        ..
    } = context;
    json!({
        "id": pipeline.id, "slug": pipeline.slug, "name": pipeline.slug, "cluster_id": organization.cluster_id,
        "url": format!("https://api.buildkite.com/v2/organizations/{}/pipelines/{}", organization.slug, pipeline.slug),
    })
}
