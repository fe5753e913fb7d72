//! Whether a host answers. One that does not gets nothing new; what lives there goes on, and ends when it is back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kubler_core::host::placement::{Enforcement, Health};

use super::Inner;
use super::client::HostClient;
use crate::engine::Staying;
use crate::engine::api::Api as _;

/// Wait between two questions.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// A host is sick after so many bad answers in a row: one is an accident.
const BAD_ANSWERS_MAX: u32 = 2;

/// What is known of a host.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Known>);

#[derive(Debug, Default, Clone)]
pub(super) struct Known {
    pub(super) health: Health,
    pub(super) enforcement: Enforcement,
    pub(super) version: String,
    pub(super) message: Option<String>,
    pub(super) staying: Arc<[Staying]>,
    bad_answers: u32,
}

impl Pulse {
    pub(super) fn known(&self) -> Known {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a probe saw.
    pub(super) fn set_enforcement(&self, enforcement: Enforcement) {
        self.lock().enforcement = enforcement;
    }

    /// What a look saw.
    pub(super) fn set_staying(&self, staying: Vec<Staying>) {
        self.lock().staying = staying.into();
    }

    /// Takes an answer: its version, or what was wrong. Gives what the host is now, when that is something else.
    fn take(&self, answer: Result<String, String>) -> Option<Health> {
        let mut known = self.lock();
        let before = known.health;
        match answer {
            Ok(version) => {
                known.health = Health::Well;
                known.bad_answers = 0;
                known.version = version;
                known.message = None;
            }
            Err(message) => {
                known.bad_answers += 1;
                known.message = Some(message);
                if known.bad_answers >= BAD_ANSWERS_MAX || before == Health::Unknown {
                    known.health = Health::Sick;
                }
            }
        }
        (known.health != before).then_some(known.health)
    }
}

/// Asks for ever.
pub(super) async fn watch(inner: Arc<Inner>) {
    loop {
        let answer = tokio::time::timeout(ANSWER_MAX, ask(&inner)).await;
        let answer = answer.unwrap_or_else(|_| Err("it does not answer in time".into()));
        let host = &inner.host.name;
        let why = answer.as_ref().err().cloned();
        match inner.pulse.take(answer) {
            Some(Health::Well) => {
                tracing::info!(host, "a host answers");
                // Whoever waits for a place there, or for an end, goes on.
                inner.changes.notify_one();
            }
            Some(Health::Sick) => {
                tracing::error!(
                    host,
                    why,
                    "a host does not answer: it gets no new environments"
                );
            }
            Some(Health::Unknown) | None => {}
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn ask(inner: &Inner) -> Result<String, String> {
    let client = HostClient::own(&inner.connection, &inner.calls);
    let get = async |path: &str| {
        let answer = client.get(path).await.map_err(|error| error.to_string())?;
        answer
            .is_success()
            .then_some(())
            .ok_or_else(|| answer.message())?;
        Ok::<_, String>(answer)
    };
    get("/readyz").await?;
    if !inner.pulse.known().version.is_empty() && inner.pulse.known().health == Health::Well {
        return Ok(inner.pulse.known().version);
    }
    let version = get("/version").await?.json().unwrap_or_default();
    let version = version
        .get("gitVersion")
        .and_then(serde_json::Value::as_str);
    Ok(version.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_answer_is_an_accident_and_two_are_a_sickness() {
        let pulse = Pulse::default();
        let (good, bad) = (|| Ok("v1.34.4".to_owned()), || Err("gone".to_owned()));
        assert_eq!(pulse.take(good()), Some(Health::Well));
        assert_eq!(pulse.take(bad()), None);
        assert_eq!(pulse.take(good()), None);
        assert_eq!(
            [pulse.take(bad()), pulse.take(bad())],
            [None, Some(Health::Sick)]
        );
        assert_eq!(pulse.known().message.as_deref(), Some("gone"));
        assert_eq!(pulse.take(good()), Some(Health::Well));
        assert_eq!(pulse.known().message, None);
        // A host that has never answered has nothing to lose.
        assert_eq!(Pulse::default().take(bad()), Some(Health::Sick));
    }
}
