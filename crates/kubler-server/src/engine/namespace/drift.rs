//! Keeps the walls of living environments as they were made: one watch for each kind of object and host tells what
//! changes, and what differs from what was applied is written down and put right, or only written down.
//!
//! What a watch says is a reason to look, never the truth: before anything is concluded the object is read again.

mod sight;
mod tending;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubler_core::environment::{Environment, Phase, Placement};
use kubler_core::host::drift::{Author, Change};
use kubler_core::host::objects::Object;
use kubler_core::ids::EnvironmentId;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::sight::{KINDS, Kind};
use super::client::HostClient;
use super::{Inner, NamespaceEngine};
use crate::directory::Directory;

/// Most drifts of one environment that are shown; the ledger has all of them.
const SHOWN_MAX: usize = 50;
/// Wait before an object is put right again that was changed again: doubled each time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest such wait.
const AGAIN_MAX: Duration = Duration::from_secs(300);
/// An object that stayed right for so long is looked at as one that never changed.
const CALM_AFTER: Duration = Duration::from_secs(600);
/// Wait before a host is looked at again after it did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Something that was found to be another than was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Kind and name.
    pub object: String,
    /// When it was found.
    pub found_at: Timestamp,
    /// What differs; empty when it was not there, or is not one of ours.
    pub changes: Vec<Change>,
    /// Who did it, as far as the host knows.
    pub by: Option<Author>,
    /// What became of it.
    pub answer: Answered,
}

/// What became of a drift.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// It is as it was made again.
    Repaired,
    /// It was only written down, as the profile says, or since it is not an object of ours.
    Reported,
    /// It could not be put right; that is tried again.
    Failed(String),
}

/// Keeps the walls on one host.
pub(super) struct Keeper {
    inner: Arc<Inner>,
    directory: Arc<Directory>,
    tended: Mutex<HashMap<String, Tended>>,
}

/// What is known of an object that was suspected.
#[derive(Default)]
struct Tended {
    /// Whose it is.
    environment: Option<EnvironmentId>,
    /// Somebody is at it.
    is_busy: bool,
    /// It changed while somebody was at it.
    again: bool,
    /// How often it was put right, or that failed, without a calm time between.
    times: u32,
    last: Option<std::time::Instant>,
    /// The host writes what was applied in this other form.
    harmless: Option<Vec<Change>>,
    /// What was written down and is still so.
    told: Option<Vec<Change>>,
}

/// A reason to look at an object.
struct Suspicion {
    environment: EnvironmentId,
    kind: &'static Kind,
    /// Its path.
    path: String,
}

impl NamespaceEngine {
    /// Keeps the walls of its environments until `over`.
    pub async fn keep_walls(self: Arc<Self>, directory: Arc<Directory>, over: CancellationToken) {
        let keeper = Arc::new(Keeper::new(Arc::clone(&self.inner), directory));
        let mut following = JoinSet::new();
        for kind in &KINDS {
            following.spawn(Arc::clone(&keeper).follow(kind));
        }
        over.cancelled().await;
        following.shutdown().await;
    }
}

impl Keeper {
    pub(super) fn new(inner: Arc<Inner>, directory: Arc<Directory>) -> Self {
        Self {
            inner,
            directory,
            tended: Mutex::default(),
        }
    }

    fn own(&self) -> HostClient<'_> {
        HostClient::own(&self.inner.connection, &self.inner.calls)
    }

    fn tended(&self) -> MutexGuard<'_, HashMap<String, Tended>> {
        self.tended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The living environment whose namespace is called so.
    fn environment(&self, namespace: &str) -> Option<(Arc<Environment>, Placement)> {
        let digits = namespace.strip_prefix(self.inner.host.namespace_prefix.as_str())?;
        let environment = self.directory.get(format!("env_{digits}").parse().ok()?)?;
        let placement = environment.placement.clone()?;
        let is_here = environment.phase == Phase::Ready
            && placement.host == self.inner.host.name
            && placement.namespace == namespace;
        is_here.then_some((environment, placement))
    }

    /// Follows one kind of object for ever.
    async fn follow(self: Arc<Self>, kind: &'static Kind) {
        let mut was_well = true;
        loop {
            let followed = self.follow_once(kind).await;
            if let Err(error) = &followed {
                let host = &self.inner.host.name;
                if was_well {
                    tracing::warn!(host, kind = kind.plural, %error, "the walls of environments cannot be watched; trying again");
                }
                tokio::time::sleep(RETRY_AFTER).await;
            }
            was_well = followed.is_ok();
        }
    }

    /// Lists, follows what changes, and returns when it is time for another list.
    async fn follow_once(self: &Arc<Self>, kind: &'static Kind) -> Result<(), super::EngineError> {
        self.forget_the_dead();
        let (suspicions, version) = self.list(kind).await?;
        for suspicion in suspicions {
            self.suspect(suspicion);
        }
        self.watch(kind, version, |suspicion| self.suspect(suspicion))
            .await
    }

    /// Has an object looked at, by a task of its own: one that resists delays no other.
    fn suspect(self: &Arc<Self>, suspicion: Suspicion) {
        {
            let mut all = self.tended();
            let tended = all.entry(suspicion.path.clone()).or_default();
            tended.environment = Some(suspicion.environment);
            tended.again = true;
            if std::mem::replace(&mut tended.is_busy, true) {
                return;
            }
        }
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(wait) = keeper.next(&suspicion) {
                tokio::time::sleep(wait).await;
                keeper.look(&suspicion).await;
            }
        });
    }

    /// How long to wait before the next look at an object; none when it is as it should be.
    fn next(&self, suspicion: &Suspicion) -> Option<Duration> {
        let mut all = self.tended();
        let tended = all.get_mut(&suspicion.path)?;
        if tended.again {
            return Some(tended.wait());
        }
        tended.is_busy = false;
        if tended.is_plain() {
            all.remove(&suspicion.path);
        }
        None
    }

    async fn look(&self, suspicion: &Suspicion) {
        // From here on what changes is seen by this look, or is a reason for another.
        if let Some(tended) = self.tended().get_mut(&suspicion.path) {
            tended.again = false;
        }
        let looked = self.tend(suspicion).await;
        if let Err(error) = &looked {
            tracing::warn!(environment = %suspicion.environment, path = suspicion.path, %error, "a wall could not be looked at; trying again");
        }
        if matches!(looked, Ok(true)) {
            return;
        }
        // What is not right now is looked at again.
        let mut all = self.tended();
        let tended = all.entry(suspicion.path.clone()).or_default();
        tended.again = true;
        tended.tried();
    }

    /// Forgets what it knows of environments that are over.
    fn forget_the_dead(&self) {
        let lives = |id: EnvironmentId| {
            let environment = self.directory.get(id);
            environment.is_some_and(|it| it.phase == Phase::Ready)
        };
        self.tended()
            .retain(|_, it| it.is_busy || it.environment.is_some_and(lives));
    }

    /// Looks at everything once, and returns when all of it is right.
    #[cfg(test)]
    pub(super) async fn sweep(self: &Arc<Self>) -> Result<(), super::EngineError> {
        for kind in &KINDS {
            let (suspicions, version) = self.list(kind).await?;
            for suspicion in suspicions {
                if !self.tend(&suspicion).await? {
                    let slot = self.inner.slot(suspicion.environment);
                    let drifts = slot.drifts.lock().unwrap_or_else(PoisonError::into_inner);
                    let why = match drifts.back().map(|drift| &drift.answer) {
                        Some(Answered::Failed(why)) => why.as_str(),
                        _ => "nobody said why",
                    };
                    return Err(super::EngineError::transient(format!(
                        "{} was not put right: {why}",
                        suspicion.path
                    )));
                }
            }
            self.open(kind, &version).await?;
        }
        Ok(())
    }

    /// Shows it with the environment.
    fn show(&self, environment: EnvironmentId, drift: Drift) {
        let slot = self.inner.slot(environment);
        let mut drifts = slot.drifts.lock().unwrap_or_else(PoisonError::into_inner);
        if drifts.len() >= SHOWN_MAX {
            drifts.pop_front();
        }
        drifts.push_back(drift);
    }
}

impl Tended {
    /// Whether there is nothing to remember.
    const fn is_plain(&self) -> bool {
        self.times == 0 && self.harmless.is_none() && self.told.is_none()
    }

    /// Something was done about it.
    fn tried(&mut self) {
        self.times = self.times.saturating_add(1);
        self.last = Some(std::time::Instant::now());
    }

    fn wait(&mut self) -> Duration {
        if self.last.is_some_and(|last| last.elapsed() > CALM_AFTER) {
            self.times = 0;
        }
        match self.times {
            0 => Duration::ZERO,
            times => AGAIN_AFTER
                .saturating_mul(1 << (times - 1).min(10))
                .min(AGAIN_MAX),
        }
    }
}

/// The drifts of an environment that were found since the start.
pub(super) type Drifts = Mutex<VecDeque<Drift>>;

/// Kind and name, for people.
fn title(kind: &Kind, name: &str) -> String {
    format!("{}/{name}", kind.plural)
}

/// What was applied, without what the objects of a list do not say.
fn comparable(object: &Object) -> Value {
    let mut value = object.value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    value
}
