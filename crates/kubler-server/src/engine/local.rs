//! The `local` engine: each environment is a real Kubernetes control plane of its own, one process on a Unix
//! socket in a private folder, with its own authority, keys, issuer and prefix of one shared etcd.
//!
//! `provision` makes one, `remove` ends one and looks, `observe` finds what exists. What they make carries the
//! environment's id (folder, mark of the process, etcd user and prefix), so that each works from the world alone.

mod api;
pub mod binaries;
mod build_facts;
mod certificates;
mod egress;
mod etcd;
mod folder;
mod groups;
mod limits;
mod observe;
mod pace;
mod process;
mod provision;
mod remove;
mod sampler;
mod sizes;
mod upstream;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::plan::Observed;
use kubler_core::profile::EngineKind;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use build_facts::{CONFIG_MAP, LABEL_PREFIX};

use self::binaries::{Binaries, Programs};
use self::egress::Recorder;
use self::etcd::Etcd;
use self::folder::RunFolder;
use self::groups::Groups;
use self::process::{Mark, Process};
use self::sampler::{Excess, PRESSURE_BYTES, SAMPLE_SECONDS_DEFAULT, Sampler};
use self::sizes::Sizes;
use super::{Engine, EngineError, ErrorClass, Evidence, Upstream, joined, manifests};
use crate::clock::Clock;
use crate::files;
use crate::ledger::{Durability, Ledger};

/// How long an environment may take to become usable when the settings do not say, in seconds.
pub const START_SECONDS_MAX_DEFAULT: u64 = 60;
/// Where environments are when the data folder's path is too long.
pub const SHORT_FOLDER: &str = "/tmp";
/// What etcd's mark says instead of an environment's id.
const ETCD_SUBJECT: &str = "etcd";

/// What the engine works with.
#[derive(Debug, Clone)]
pub struct LocalSettings {
    /// Folder for etcd and what identifies this installation. Made if need be, mode 0700.
    pub data: PathBuf,
    /// Folder for the environments' sockets and keys, mode 0700. When its path is too long for sockets below
    /// it, one in [`SHORT_FOLDER`] is used instead.
    pub run: PathBuf,
    /// The programs.
    pub binaries: Binaries,
    /// How long an environment may take to become usable.
    pub start_max: Duration,
    /// Wait between two looks at how large environments are.
    pub sample_every: Duration,
    /// Whether control groups are used where they can be had.
    pub control_groups: bool,
}

impl LocalSettings {
    /// Everything below `folder`, with the usual bounds.
    pub fn new(folder: &Path, binaries: Binaries) -> Self {
        Self {
            run: folder.join("run"),
            data: folder.to_owned(),
            binaries,
            start_max: Duration::from_secs(START_SECONDS_MAX_DEFAULT),
            sample_every: Duration::from_secs(SAMPLE_SECONDS_DEFAULT),
            control_groups: true,
        }
    }
}

/// What becomes of environments when the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// They live on, and the next server adopts them. Without any, etcd ends as well.
    KeepEnvironments,
    /// All of them end, and etcd with them.
    EndEverything,
}

/// The engine. Dropped, it leaves environments alive.
pub struct LocalEngine {
    inner: Arc<Inner>,
    _sampling: AbortOnDropHandle<()>,
}

/// What the work on every environment shares.
struct Inner {
    settings: LocalSettings,
    clock: Arc<dyn Clock>,
    installation: String,
    run: RunFolder,
    groups: Arc<Groups>,
    etcd: Etcd,
    recorder: Recorder,
    slots: Arc<Slots>,
    changes: Arc<Notify>,
    /// Held as long as the engine: two servers on one folder would take each other's work for left-overs.
    _lock: File,
}

/// The environments this server knows.
#[derive(Default)]
struct Slots(Mutex<HashMap<EnvironmentId, Arc<Slot>>>);

impl Slots {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<EnvironmentId, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One environment as this server knows it.
#[derive(Default)]
struct Slot {
    /// Whoever holds it is the only one to change the environment's part of the world.
    work: Arc<tokio::sync::Mutex<()>>,
    /// Asks whoever is making it to stop.
    cancelled: Mutex<CancellationToken>,
    live: Mutex<Option<Live>>,
}

/// A control plane that was started or adopted.
struct Live {
    process: Arc<Process>,
    /// How it ended, once it has.
    ending: Arc<OnceLock<String>>,
    /// Set when it is usable.
    upstream: Option<Arc<Upstream>>,
    /// How large it may become.
    sizes: Sizes,
    /// Set when it is larger.
    excess: Excess,
    _watching: AbortOnDropHandle<()>,
    egress: Arc<egress::Serving>,
}

impl LocalEngine {
    /// Starts or adopts etcd, and adopts the environments that live.
    ///
    /// # Errors
    /// When another server uses the folder, a folder cannot be used, or etcd does not start.
    pub async fn start(
        settings: LocalSettings,
        clock: Arc<dyn Clock>,
        ledger: Ledger,
    ) -> Result<Arc<Self>, EngineError> {
        let recorder: Recorder = Arc::new(move |body| {
            let ledger = ledger.clone();
            Box::pin(async move {
                let recorded = ledger.event(body, Durability::Process).await;
                recorded
                    .inspect_err(
                        |error| tracing::error!(%error, "a connection out cannot be recorded"),
                    )
                    .is_ok()
            })
        });
        Self::start_with(settings, clock, recorder).await
    }

    async fn start_with(
        settings: LocalSettings,
        clock: Arc<dyn Clock>,
        recorder: Recorder,
    ) -> Result<Arc<Self>, EngineError> {
        let unusable =
            |error: io::Error| permanent(format!("the engine's folder cannot be used: {error}"));
        files::make_closed_folder(&settings.data).map_err(unusable)?;
        let lock = lock(&settings.data).map_err(unusable)?;
        let installation = installation(&settings.data).map_err(unusable)?;
        let short = Path::new(SHORT_FOLDER).join(format!(
            "kubler-{}",
            installation.get(..12).unwrap_or_default()
        ));
        let run = RunFolder::open(&settings.run, &short).map_err(unusable)?;
        let groups = Arc::new(if settings.control_groups {
            Groups::open(&installation)
        } else {
            Groups::default()
        });
        let changes = Arc::new(Notify::new());
        let etcd = Etcd::start(
            settings.binaries.etcd.clone(),
            settings.data.join("etcd"),
            Mark::new(&installation, ETCD_SUBJECT),
            Arc::clone(&changes),
            clock.now(),
        )
        .await?;
        let inner = Arc::new(Inner {
            settings,
            clock,
            installation,
            run,
            groups,
            etcd,
            recorder,
            slots: Arc::default(),
            changes,
            _lock: lock,
        });
        for id in inner.run.environments().map_err(unusable)? {
            inner.adopt(id);
        }
        let sampler = Sampler::new(
            Arc::clone(&inner.slots),
            inner.etcd.root(),
            Arc::clone(&inner.changes),
            PRESSURE_BYTES,
        );
        let window = inner.settings.sample_every * pace::WINDOW_LOOKS;
        let sampler = if inner.groups.share_the_cpu() {
            sampler
        } else {
            sampler.with_pace(window)
        };
        let sampling = tokio::spawn(sampler.run(inner.settings.sample_every));
        Ok(Arc::new(Self {
            inner,
            _sampling: AbortOnDropHandle::new(sampling),
        }))
    }

    /// What the system holds each environment to.
    pub fn bounds_in_force(&self) -> Vec<&'static str> {
        bounds(self.inner.groups.in_force())
    }

    /// Ends the engine's work. The engine cannot be used afterwards; drop it.
    ///
    /// # Errors
    /// When something does not end; the rest was tried.
    pub async fn stop(&self, mode: StopMode) -> Result<(), EngineError> {
        let found = self.observe().await?;
        if mode == StopMode::KeepEnvironments && !found.is_empty() {
            self.inner.close_the_ways_out().await;
            return Ok(());
        }
        let mut first_error = None;
        for found in found {
            first_error = self.remove(found.id).await.err().or(first_error);
        }
        match first_error {
            None => {
                self.inner.etcd.destroy().await?;
                let groups = self.inner.groups.destroy();
                groups.map_err(|error| transient(format!("a control group stays: {error}")))?;
                self.inner
                    .run
                    .destroy()
                    .map_err(|error| transient(format!("the run folder stays: {error}")))
            }
            Some(error) => Err(error),
        }
    }
}

#[async_trait]
impl Engine for LocalEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Local
    }

    async fn provision(&self, environment: &Environment) -> Result<(), EngineError> {
        provision::provision(&self.inner, environment).await
    }

    async fn observe(&self) -> Result<Vec<Observed>, EngineError> {
        self.inner.observe().await
    }

    async fn remove(&self, id: EnvironmentId) -> Result<Evidence, EngineError> {
        let slot = self.inner.slot(id);
        slot.cancel();
        let guard = Arc::clone(&slot.work).lock_owned().await;
        // A task of its own: a caller that goes away must not leave a request on its way that is done later.
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move {
            remove::remove(&inner, id, &slot, &guard).await
        }))
        .await
    }

    fn upstream(&self, id: EnvironmentId) -> Option<Arc<Upstream>> {
        let slot = Arc::clone(self.inner.slots.lock().get(&id)?);
        let live = slot.live();
        let live = live.as_ref().filter(|live| live.ending.get().is_none())?;
        live.upstream.clone()
    }

    async fn changed(&self) {
        self.inner.changes.notified().await;
    }
}

impl Inner {
    fn slot(&self, id: EnvironmentId) -> Arc<Slot> {
        Arc::clone(self.slots.lock().entry(id).or_default())
    }

    fn mark(&self, id: EnvironmentId) -> Mark {
        Mark::new(&self.installation, id)
    }

    /// Takes over an environment of an earlier server, if its control plane lives.
    fn adopt(self: &Arc<Self>, id: EnvironmentId) {
        let folder = self.run.environment(id);
        let Some(record) = folder.record() else {
            return;
        };
        let Some(process) = Process::find(record.process, &self.mark(id)) else {
            return;
        };
        let slot = self.slot(id);
        let adopted = self
            .live(id, Arc::new(process), &record.egress, record.sizes)
            .and_then(|mut live| {
                if record.ready {
                    live.upstream = Some(Arc::new(upstream::read(&folder)?));
                }
                Ok(live)
            });
        match adopted {
            Ok(live) => *slot.live() = Some(live),
            Err(error) => tracing::error!(environment = %id, %error, "cannot adopt an environment"),
        }
    }

    /// Nobody serves them any more; what they only counted is written down.
    async fn close_the_ways_out(&self) {
        let slots: Vec<_> = self.slots.lock().values().map(Arc::clone).collect();
        for slot in slots {
            let egress = slot.live().as_ref().map(|live| Arc::clone(&live.egress));
            if let Some(egress) = egress {
                egress.end().await;
            }
        }
    }

    /// Watches a control plane and serves its way out.
    fn live(
        self: &Arc<Self>,
        id: EnvironmentId,
        process: Arc<Process>,
        egress: &[String],
        sizes: Sizes,
    ) -> io::Result<Live> {
        let socket = self.run.environment(id).egress_socket();
        let egress = egress::serve(&socket, id, egress, Arc::clone(&self.recorder))?;
        let egress = Arc::new(egress);
        let ending = Arc::new(OnceLock::new());
        let (watched, noted, changes) = (
            Arc::clone(&process),
            Arc::clone(&ending),
            Arc::clone(&self.changes),
        );
        let watching = tokio::spawn(async move {
            let how = watched.ended().await;
            tracing::info!(environment = %id, how, "a control plane ended");
            let _ = noted.set(how);
            changes.notify_one();
        });
        Ok(Live {
            process,
            ending,
            upstream: None,
            sizes,
            excess: Excess::default(),
            _watching: AbortOnDropHandle::new(watching),
            egress,
        })
    }
}

impl Slot {
    fn live(&self) -> std::sync::MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self) {
        self.cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancel();
    }

    /// A fresh token for the next making; for whoever holds the work.
    fn begin(&self, _work: &OwnedMutexGuard<()>) -> CancellationToken {
        let token = CancellationToken::new();
        *self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = token.clone();
        token
    }
}

/// Reads manifests as the making of an environment does.
///
/// # Errors
/// When a document is no YAML, or no Kubernetes object with a name.
pub fn check_manifests(files: &BTreeMap<String, String>) -> Result<(), EngineError> {
    manifests::read(files).map(drop)
}

/// Whether sockets of environments have a path below `run`. Gives how many bytes too long it is.
pub fn run_excess_bytes(run: &Path) -> usize {
    folder::excess_bytes(run)
}

/// What the system would hold each environment to, if a server started here. Changes nothing.
pub fn bounds_to_be_had() -> Vec<&'static str> {
    bounds(Groups::to_be_had())
}

/// Limits of the process are always to be had; of the CPU either a share or the niceness.
fn bounds(groups: Vec<&'static str>) -> Vec<&'static str> {
    let mut bounds = vec!["open files", "memory dumps"];
    if !groups.contains(&"cpu") {
        bounds.push("niceness");
    }
    bounds.extend(groups);
    bounds
}

/// Locks the folder until the file is closed.
fn lock(data: &Path) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(data.join("lock"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| {
            io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("another server uses `{}`", data.display()),
            )
        },
    )?;
    Ok(file)
}

/// The random name of this installation: two on one machine must not take each other's processes for their own.
fn installation(data: &Path) -> io::Result<String> {
    let path = data.join("installation");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let name = hex::encode(crate::entropy::random_bytes::<16>().map_err(io::Error::other)?);
    files::write_private(&path, name.as_bytes())?;
    Ok(name)
}

fn transient(message: impl Into<String>) -> EngineError {
    EngineError {
        message: message.into(),
        class: ErrorClass::Transient,
    }
}

fn permanent(message: impl Into<String>) -> EngineError {
    EngineError {
        message: message.into(),
        class: ErrorClass::Permanent,
    }
}

#[cfg(test)]
mod tests;
