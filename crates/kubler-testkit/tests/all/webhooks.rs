//! Webhooks carry the header that the service's own samples verify.

use anyhow::Result;
use aws_lc_rs::hmac;
use axum::extract::State;
use axum::routing::post;
use kubler_testkit::buildkite::{Buildkite, WebhookEvent};
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Received = (http::HeaderMap, Vec<u8>);

async fn receive(
    State(received): State<mpsc::Sender<Received>>,
    headers: http::HeaderMap,
    body: axum::body::Bytes,
) -> &'static str {
    received.send((headers, body.to_vec())).await.unwrap();
    "taken"
}

#[tokio::test]
async fn a_signed_webhook_arrives_as_the_service_sends_it() -> Result<()> {
    let (sender, mut received) = mpsc::channel(1);
    let router = axum::Router::new()
        .route("/hook", post(receive))
        .with_state(sender);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let server = tokio::spawn(async { axum::serve(listener, router).await });

    let buildkite = Buildkite::start();
    let job = buildkite.build("app").start().job("test").run();
    job.finish(1);
    let answer = buildkite
        .webhook(WebhookEvent::JobFinished, &job)
        .signed("hook secret")
        .send(&url, None)
        .await?;
    assert_eq!(answer, (200, "taken".to_owned()));
    let (headers, body) = received.recv().await.unwrap();
    server.abort();

    assert_eq!(headers["x-buildkite-event"], "job.finished");
    assert!(headers.get("x-buildkite-token").is_none());
    let (timestamp, signature) = headers["x-buildkite-signature"]
        .to_str()?
        .split_once(',')
        .unwrap();
    let (timestamp, signature) = (
        timestamp.strip_prefix("timestamp=").unwrap(),
        signature.strip_prefix("signature=").unwrap(),
    );
    let message = [timestamp.as_bytes(), b".", &body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"hook secret");
    hmac::verify(&key, &message, &hex::decode(signature)?).expect("a good signature");

    let payload: Value = serde_json::from_slice(&body)?;
    assert_eq!(payload["job"]["id"], job.id().to_string());
    assert_eq!(
        (&payload["job"]["state"], &payload["job"]["exit_status"]),
        (&json!("failed"), &json!(1))
    );
    assert_eq!(payload["pipeline"]["slug"], "app");
    assert_eq!(payload["build"].get("jobs"), None);
    Ok(())
}

#[test]
fn a_lost_agent_is_named_by_its_id() {
    let buildkite = Buildkite::builder()
        .heartbeat_timeout(std::time::Duration::ZERO)
        .start();
    let job = buildkite.build("app").start().job("test").run();
    job.vanish_agent();
    let agent_id = job.record().agent_id.unwrap();
    let mut webhook = buildkite.webhook(WebhookEvent::AgentLost, &job);
    assert_eq!(webhook.payload()["agent"]["id"], agent_id.to_string());
    assert_eq!(webhook.payload()["agent"]["connection_state"], "lost");
}
