//! The API server's audit log.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::LOOK_INTERVAL;

/// Who asked for what and how it ended, without bodies; one event for each request, and one more at its start for
/// those that stay open.
pub(super) const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

/// How many events are shown when the one that was waited for does not come.
const SHOWN_EVENTS: usize = 20;

pub(super) fn events(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may not be whole yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

pub(super) async fn wait_for(
    log: &Path,
    bound: Duration,
    condition: impl Fn(&Value) -> bool,
) -> Value {
    let deadline = Instant::now() + bound;
    loop {
        let events = events(log);
        if let Some(found) = events.iter().find(|event| condition(event)) {
            return found.clone();
        }
        let last = &events[events.len().saturating_sub(SHOWN_EVENTS)..];
        assert!(Instant::now() < deadline, "no such event; last: {last:#?}");
        tokio::time::sleep(LOOK_INTERVAL * 10).await;
    }
}
