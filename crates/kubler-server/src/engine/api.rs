//! What engines ask an API server for, whichever way they reach it.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use kubler_core::host::names::FIELD_MANAGER;
use serde_json::Value;

/// Largest answer that is read, in bytes.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The media type that asks for server-side apply. JSON is YAML.
pub(super) const APPLY: &str = "application/apply-patch+yaml";
/// How much of an answer goes into an error, in characters.
const SHOWN_CHARACTERS_MAX: usize = 400;

/// An API server, and who asks it.
#[async_trait]
pub(super) trait Api: Send + Sync {
    /// Reads what is at `path`.
    async fn get(&self, path: &str) -> io::Result<Answer>;

    /// Server-side apply of `object` at `path`.
    async fn apply(&self, path: &str, object: &Value) -> io::Result<Answer>;
}

/// Where an object is applied. Whoever changed what is ours loses it.
pub(super) fn apply_path(path: &str) -> String {
    format!("{path}?fieldManager={FIELD_MANAGER}&force=true")
}

/// What an API server said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// What it says, for people: the message of a `Status`, else the beginning of the text.
    pub(super) fn message(&self) -> String {
        let said = self
            .json()
            .and_then(|status| Some(status.get("message")?.as_str()?.to_owned()));
        let said = said.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        let shown: String = said
            .chars()
            .take(SHOWN_CHARACTERS_MAX)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("{shown} (status {})", self.status)
    }
}
