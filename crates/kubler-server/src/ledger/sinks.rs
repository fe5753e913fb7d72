//! Sinks: where checkpoints go besides, outside of the data folder. Whoever changes the ledger afterwards is named by
//! what is kept there. Delivery is nobody's business but its own: no request waits for a sink, and a sink that cannot be
//! reached is told by a metric and in the log.

mod file;
mod url;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubler_api::ledger::Checkpoint;
use kubler_core::configuration::Sink as SinkSettings;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::file::FileSink;
use self::url::UrlSink;
use super::Witness;
use crate::clock::Clock;

/// Wait before the next try after one that failed; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest such wait.
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// A sink that is behind for longer than this is an alarm, in seconds.
pub const BEHIND_SECONDS_MAX: i64 = 300;
/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest note that is read back, in bytes.
const NOTE_BYTES_MAX: u64 = 4096;

/// Why a sink cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("`ledger.sinks`, `{name}`: {message}")]
pub struct SinkError {
    /// Which.
    pub name: String,
    /// Why.
    pub message: String,
}

/// All sinks of a ledger.
#[derive(Default)]
pub struct Sinks(Vec<Arc<Sink>>);

/// How far a sink is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which sink.
    pub name: String,
    /// Since how many seconds it does not have the latest checkpoint; 0 when it does.
    pub behind_seconds: i64,
    /// Why the last try failed, when it did.
    pub message: Option<String>,
}

impl Standing {
    /// Whether somebody should look.
    pub const fn is_alarming(&self) -> bool {
        self.behind_seconds > BEHIND_SECONDS_MAX
    }
}

struct Sink {
    name: String,
    target: Target,
    state: Mutex<State>,
    woken: Notify,
}

enum Target {
    File(Arc<FileSink>),
    Url(UrlSink),
}

#[derive(Default)]
struct State {
    /// What it should have.
    latest: Option<Checkpoint>,
    /// What it has, in records.
    delivered: u64,
    behind_since: Option<Timestamp>,
    message: Option<String>,
}

impl Sinks {
    /// As the configuration in `folder` names them; nothing is asked yet.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn new(settings: &[SinkSettings], folder: &Path) -> Result<Self, SinkError> {
        let sink = |settings: &SinkSettings| {
            let name = settings.name().to_owned();
            let target = match (&settings.file, &settings.url) {
                (Some(file), _) => Target::File(Arc::new(FileSink::new(folder.join(file)))),
                (None, url) => {
                    let url = url.clone().unwrap_or_default();
                    let made = UrlSink::new(&url, settings, folder);
                    Target::Url(made.map_err(|message| SinkError {
                        name: name.clone(),
                        message,
                    })?)
                }
            };
            Ok(Arc::new(Sink {
                name,
                target,
                state: Mutex::default(),
                woken: Notify::new(),
            }))
        };
        settings
            .iter()
            .map(sink)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What the sinks were given before, as far as they can tell.
    ///
    /// # Errors
    /// When a file is there and cannot be read: what it says must not pass for nothing.
    pub async fn witnesses(&self) -> Result<Vec<Witness>, SinkError> {
        let mut all = Vec::new();
        for sink in &self.0 {
            let kept = match &sink.target {
                Target::File(file) => file.read().map_err(|error| SinkError {
                    name: sink.name.clone(),
                    message: format!("what is there cannot be read: {error}"),
                })?,
                Target::Url(url) => url.read().await,
            };
            all.extend(kept.map(|note| Witness {
                name: format!("the sink `{}`", sink.name),
                note,
            }));
        }
        Ok(all)
    }

    /// Sinks that could keep nothing as it is now, and why.
    pub fn obstacles(&self) -> Vec<String> {
        let obstacle = |sink: &Arc<Sink>| match &sink.target {
            Target::File(file) => file
                .obstacle()
                .map(|why| format!("the sink `{}`: {why}", sink.name)),
            Target::Url(_) => None,
        };
        self.0.iter().filter_map(obstacle).collect()
    }

    /// There is a new checkpoint.
    pub fn publish(&self, checkpoint: &Checkpoint, now: Timestamp) {
        for sink in &self.0 {
            let mut state = sink.state();
            if state
                .latest
                .as_ref()
                .is_some_and(|latest| latest.size == checkpoint.size)
            {
                continue;
            }
            state.latest = Some(checkpoint.clone());
            state.behind_since.get_or_insert(now);
            sink.woken.notify_one();
        }
    }

    /// How far each is behind.
    pub fn standings(&self, now: Timestamp) -> Vec<Standing> {
        let standing = |sink: &Arc<Sink>| {
            let state = sink.state();
            let since = state.behind_since.unwrap_or(now);
            Standing {
                name: sink.name.clone(),
                behind_seconds: now.duration_since(since).as_secs().max(0),
                message: state.message.clone(),
            }
        };
        self.0.iter().map(standing).collect()
    }

    /// Delivers until `shutdown`.
    pub async fn run(self: Arc<Self>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        for sink in &self.0 {
            let delivering = Arc::clone(sink).deliver_for_ever(Arc::clone(&clock));
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(delivering));
        }
        while tasks.join_next().await.is_some() {}
    }

    /// One try each, for what was published last: the server stops.
    pub async fn deliver_once(&self, now: Timestamp) {
        let mut tasks = JoinSet::new();
        for sink in &self.0 {
            let sink = Arc::clone(sink);
            tasks.spawn(async move { sink.deliver(now).await });
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl Sink {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn deliver_for_ever(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let mut wait = RETRY_FIRST;
        loop {
            if self.deliver(clock.now()).await {
                wait = RETRY_FIRST;
                self.woken.notified().await;
            } else {
                tokio::time::sleep(wait).await;
                wait = wait.saturating_mul(2).min(RETRY_LONGEST);
            }
        }
    }

    /// Whether it has the latest afterwards.
    async fn deliver(&self, now: Timestamp) -> bool {
        let (wanted, delivered) = {
            let state = self.state();
            (state.latest.clone(), state.delivered)
        };
        let Some(checkpoint) = wanted.filter(|wanted| wanted.size != delivered) else {
            return true;
        };
        let given = match &self.target {
            // A network's file system may hang, and then so does this, and nothing else.
            Target::File(file) => {
                let (file, note) = (Arc::clone(file), checkpoint.note.clone());
                let written = tokio::task::spawn_blocking(move || file.write(&note, now));
                written
                    .await
                    .unwrap_or_else(|_| Err("it could not be tried".into()))
            }
            Target::Url(url) => url.give(&checkpoint.note).await,
        };
        let mut state = self.state();
        match given {
            Ok(()) => {
                state.delivered = checkpoint.size;
                state.message = None;
                let is_latest =
                    state.latest.as_ref().map(|latest| latest.size) == Some(checkpoint.size);
                state.behind_since = state.behind_since.filter(|_| !is_latest);
                true
            }
            Err(message) => {
                let behind = now
                    .duration_since(state.behind_since.unwrap_or(now))
                    .as_secs();
                if behind > BEHIND_SECONDS_MAX {
                    tracing::error!(sink = %self.name, behind, message, "a sink does not have the ledger's checkpoints; trying on");
                } else if state.message.as_ref() != Some(&message) {
                    tracing::warn!(sink = %self.name, message, "a checkpoint could not be given to a sink; trying again");
                }
                state.message = Some(message);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
