//! Puts the parts together, runs them, and takes them apart in order. The only place that knows all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kubler_core::configuration::Configuration;
use kubler_core::ids::EnvironmentId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::profile::ResolvedProfile;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, RefusedJobs};
use crate::clock::Clock;
use crate::config::{ConfigError, Loaded, Surroundings};
use crate::directory::Directory;
use crate::engine::local::binaries::{self, Binaries, BinariesError};
use crate::engine::local::{LocalEngine, LocalSettings, StopMode};
use crate::engine::{Engine, EngineError};
use crate::gateway::{Gateway, GatewayParts};
use crate::http::places::Places;
use crate::http::tls::{CertificateError, Files, Tls};
use crate::http::{Api, Told, listen::serve};
use crate::identity::{IdentityError, Verifier};
use crate::in_force::{self, InForce};
use crate::ledger::sinks::{SinkError, Sinks};
use crate::ledger::{Durability, Ledger, LedgerError, LedgerLock, Witness};
use crate::metrics::Gauges;
use crate::policy::{Policies, PolicyLoadError};
use crate::reload::{self, Reload, SetLog};
use crate::session::{SessionError, Sessions};
use crate::store::{Store, StoreError};
use crate::tasks::downtime::Downtime;
use crate::tasks::reconcile::Reconciler;
use crate::tasks::restored::{self, RestoreError};
use crate::tasks::upkeep::Checkpoints;
use crate::tasks::{Wake, upkeep};

/// How long environments may take to end when the server ends them all.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// The ledger's folder in the data folder.
pub const LEDGER_FOLDER: &str = "ledger";
/// The store's file in the data folder.
pub const STORE_FILE: &str = "store.sqlite";

/// A server that is ready to serve.
pub struct App {
    api: Arc<Api>,
    engine: Arc<LocalEngine>,
    reconciler: Arc<Reconciler>,
    binaries: Arc<Binaries>,
    listener: TcpListener,
    checkpoint_every: Duration,
    shutdown: CancellationToken,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or a file it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Policies.
    #[error(transparent)]
    Policy(#[from] PolicyLoadError),
    /// Issuers.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Session keys.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A sink of the ledger.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine, or programs it needs.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Programs of a Kubernetes version.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// TLS.
    #[error("{source} (`certificate` is `{certificate}`, `key` is `{key}`)")]
    Certificate {
        /// The file of the chain.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
    /// The data folder.
    #[error("`{path}` cannot be made: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The address.
    #[error("cannot listen on `{address}`: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

impl From<RestoreError> for StartError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Ledger(error) => Self::Ledger(error),
            RestoreError::Store(error) => Self::Store(error),
        }
    }
}

impl StartError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Config(error) => error.hint(),
            Self::Policy(_) => "`kubler policy check` shows every fault with its line".into(),
            Self::Binaries(error) => error.hint(),
            Self::Listen { .. } => "another server may be running; `listen` in the configuration chooses another address".into(),
            Self::Ledger(error) => error.hint(),
            Self::Sink(_) => "a sink that is there must be readable: mend it, or take it out of `ledger.sinks`".into(),
            Self::Folder { .. } | Self::Store(_) | Self::Session(_) => "check the data folder's owner and the free space".into(),
            Self::Certificate { .. } => "`tls` in the configuration names the files: each must be PEM, `key` the private key that belongs to `certificate`; they are easily swapped".into(),
            Self::Identity(_) | Self::Engine(_) => "`kubler-server check` reads everything without starting".into(),
        }
    }
}

impl App {
    /// Brings everything up, except the doors: nothing is served before everything works.
    ///
    /// # Errors
    /// The first thing that does not work.
    pub async fn start(
        loaded: &Loaded,
        surroundings: &Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let Read {
            in_force,
            binaries,
            policies,
            verifier,
            tls,
            sinks,
        } = read(loaded, surroundings, &clock)?;
        let configuration = Arc::clone(&in_force.configuration);
        let data = make_data_folder(loaded)?;
        let (in_force, policies) = (in_force.shared(), Arc::new(policies));
        let (broker, lost) = open_broker(&data, in_force, policies, &sinks, &clock).await?;
        let mut settings = LocalSettings::new(&data, binaries.clone());
        if let Some(run) = &configuration.run {
            settings.run = loaded.path(run);
        }
        let engine =
            LocalEngine::start(settings, Arc::clone(&clock), broker.ledger.clone()).await?;
        let listener = bind(&configuration.listen).await?;
        let shutdown = CancellationToken::new();
        let gauges = Arc::new(Gauges::default());
        let bounds = engine.bounds_in_force();
        tracing::info!(?bounds, "what the system holds each environment to");
        gauges.set_bounds(bounds);
        let as_engine: Arc<dyn Engine> = Arc::<LocalEngine>::clone(&engine);
        let gateway = Gateway::new(GatewayParts {
            directory: Arc::clone(&broker.directory),
            sessions: Arc::clone(&broker.sessions),
            policies: Arc::clone(&broker.policies),
            ledger: broker.ledger.clone(),
            engines: vec![Arc::clone(&as_engine)],
            clock: Arc::clone(&clock),
            shutdown: shutdown.clone(),
        });
        let reconciler = Arc::new(Reconciler {
            store: Arc::clone(&broker.store),
            directory: Arc::clone(&broker.directory),
            engine: as_engine,
            ledger: broker.ledger.clone(),
            clock: Arc::clone(&clock),
            wake: broker.wake.clone(),
            downtime: Arc::new(Downtime::new(clock.now())),
            gauges: Arc::clone(&gauges),
            lost,
        });
        let checkpoint_every = Duration::from_secs(configuration.ledger.checkpoint_seconds.max(1));
        let api = Arc::new(Api {
            in_force: Arc::clone(&broker.in_force),
            broker,
            verifier,
            gateway,
            gauges,
            sinks: Arc::new(sinks),
            told: Told::default(),
            tls: Arc::new(tls),
            places: Arc::new(Places::of_this_process(&configuration.limits)),
            answering: Arc::new(()),
            clock,
            configuration,
        });
        Ok(Self {
            api,
            engine,
            reconciler,
            binaries: Arc::new(binaries),
            listener,
            checkpoint_every,
            shutdown,
        })
    }

    /// Loads anew what can change while it runs, from `file`.
    pub fn reload(&self, file: PathBuf, set_log: SetLog) -> Reload {
        let binaries = Arc::clone(&self.binaries);
        Reload::new(Arc::clone(&self.api), file, binaries, set_log)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Stops it from outside; see [`Self::run`].
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// What the routes share; through it policies are loaded anew.
    pub fn api(&self) -> Arc<Api> {
        Arc::clone(&self.api)
    }

    /// Serves until the shutdown token is cancelled; then environments stay alive for the next start, or end.
    pub async fn run(self, stop: StopMode) {
        let Self {
            api,
            engine,
            reconciler,
            listener,
            checkpoint_every,
            shutdown,
            ..
        } = self;
        let ledger = api.broker.ledger.clone();
        let checkpoints = Arc::new(Checkpoints {
            ledger: ledger.clone(),
            store: Arc::clone(&api.broker.store),
            sinks: Arc::clone(&api.sinks),
            clock: Arc::clone(&api.clock),
        });
        // What works in the background goes on while the doors close, so that what was asked for is still done.
        let work_over = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&reconciler.downtime).keep_ticking(
            Arc::clone(&reconciler.directory),
            Arc::clone(&reconciler.clock),
            work_over.clone(),
        ));
        tasks.spawn(reconciler.run(work_over.clone()));
        tasks.spawn(upkeep::forget(
            Arc::clone(&api.broker.store),
            Arc::clone(&api.clock),
            work_over.clone(),
        ));
        tasks.spawn(Arc::clone(&checkpoints).run(checkpoint_every, work_over.clone()));
        tasks.spawn(Arc::clone(&api.sinks).run(Arc::clone(&api.clock), work_over.clone()));
        let (fresh, over) = (Arc::clone(&api), work_over.clone());
        tasks.spawn(async move { fresh.verifier.keep_fresh(over).await });
        tasks.spawn(Arc::clone(&api).watch_certificates(work_over.clone()));

        serve(listener, Arc::clone(&api), shutdown).await;
        if stop == StopMode::EndEverything {
            api.broker.end_everything(END_TIMEOUT).await;
        }
        work_over.cancel();
        while tasks.join_next().await.is_some() {}
        if let Err(error) = engine.stop(stop).await {
            tracing::error!(%error, "something was left alive");
        }
        ledger.write_refusals();
        let stopped = ledger
            .event(
                Body::new(Kind::Event, LedgerAction::ServerStop),
                Durability::Disk,
            )
            .await;
        if let Err(error) = stopped {
            tracing::error!(%error, "the end could not be recorded");
        }
        checkpoints.finish().await;
    }
}

/// Opens the ledger and writes down the start and what is in force.
async fn open_ledger(
    configuration: &Configuration,
    lock: LedgerLock,
    witnesses: &[Witness],
    policies: &Policies,
    clock: &Arc<dyn Clock>,
) -> Result<Ledger, LedgerError> {
    let settings = &configuration.ledger;
    let origin = configuration.ledger_origin();
    let ledger = Ledger::open_before(lock, &origin, settings, witnesses, Arc::clone(clock))?;
    let mut started = Body::new(Kind::Event, LedgerAction::ServerStart);
    let digest = policies.current().digest().to_owned();
    let in_force = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("policy_digest", digest),
    ];
    started
        .details
        .extend(in_force.map(|(name, value)| (name.to_owned(), value.into())));
    ledger.event(started, Durability::Disk).await?;
    Ok(ledger)
}

async fn bind(address: &str) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen {
        address: address.to_owned(),
        source,
    })
}

/// Store, ledger and session keys, and what is done with them for callers; with the environments that only the ledger
/// knows.
async fn open_broker(
    data: &Path,
    in_force: in_force::Shared,
    policies: Arc<Policies>,
    sinks: &Sinks,
    clock: &Arc<dyn Clock>,
) -> Result<(Broker, Vec<EnvironmentId>), StartError> {
    let configuration = Arc::clone(&in_force.load().configuration);
    let lock = LedgerLock::take(&data.join(LEDGER_FOLDER))?;
    let directory = Arc::new(Directory::new(clock.now()));
    let limits = configuration.limits.clone();
    let store = Store::open(&data.join(STORE_FILE), Arc::clone(&directory), limits).await?;
    let witnesses = witnesses(&store, sinks).await?;
    let ledger = open_ledger(&configuration, lock, &witnesses, &policies, clock).await?;
    ledger.catch_up(&directory).await;
    let lost = restored::compare(&store, &directory, &ledger, clock.now()).await?;
    // Reading a large ledger took its time, and nobody could renew meanwhile.
    directory.resumed(clock.now());
    let sessions = Sessions::open(&data.join("sessions"), Arc::clone(clock))?;
    let broker = Broker {
        in_force,
        refused: RefusedJobs::default(),
        policies,
        store: Arc::new(store),
        directory,
        ledger,
        sessions: Arc::new(sessions),
        wake: Wake::default(),
        clock: Arc::clone(clock),
    };
    Ok((broker, lost))
}

/// All that a start reads.
struct Read {
    in_force: InForce,
    binaries: Binaries,
    policies: Policies,
    verifier: Verifier,
    tls: Tls,
    sinks: Sinks,
}

fn read(
    loaded: &Loaded,
    surroundings: &Surroundings,
    clock: &Arc<dyn Clock>,
) -> Result<Read, StartError> {
    let binaries = find_binaries(loaded, surroundings)?;
    reload::log_filter(loaded.configuration.log.as_ref())?;
    let in_force = InForce::read(loaded, &binaries)?;
    let folder = loaded.path(&loaded.configuration.policies);
    Ok(Read {
        policies: Policies::load(&folder, Arc::clone(&in_force.configuration))?,
        verifier: Verifier::new(&loaded.configuration, &loaded.folder, Arc::clone(clock))?,
        tls: read_tls(loaded)?,
        sinks: Sinks::new(&loaded.configuration.ledger.sinks, &loaded.folder)?,
        in_force,
        binaries,
    })
}

/// What a configuration comes to.
pub struct Checked {
    /// Profiles with everything that their names stand for.
    pub profiles: BTreeMap<String, ResolvedProfile>,
    /// The policies that would be in force.
    pub policies: Policies,
}

/// Reads everything that a start reads, and changes nothing.
///
/// # Errors
/// The first thing that a start would stop at.
pub fn check(
    loaded: &Loaded,
    surroundings: &Surroundings,
    clock: &Arc<dyn Clock>,
) -> Result<Checked, StartError> {
    let read = read(loaded, surroundings, clock)?;
    Ok(Checked {
        profiles: read.in_force.profiles,
        policies: read.policies,
    })
}

/// The programs that the configuration needs.
///
/// # Errors
/// When some are missing, with how to get them.
pub fn find_binaries(
    loaded: &Loaded,
    surroundings: &Surroundings,
) -> Result<Binaries, BinariesError> {
    binaries::resolve_all(&loaded.configuration, &loaded.folder, surroundings)
}

fn read_tls(loaded: &Loaded) -> Result<Tls, StartError> {
    let files = &loaded.configuration.tls;
    let optional = |path: &Option<String>| path.as_ref().map(|path| loaded.path(path));
    let (certificate, key) = (loaded.path(&files.certificate), loaded.path(&files.key));
    let read = Tls::load(Files {
        certificate: certificate.clone(),
        key: key.clone(),
        operator_ca: optional(&files.operator_ca),
        operator_crl: optional(&files.operator_crl),
    });
    read.map_err(|error| match error {
        CertificateError::File(error) => StartError::Config(error),
        source => StartError::Certificate {
            certificate,
            key,
            source,
        },
    })
}

/// The folder for everything the server keeps, made when it is not there.
///
/// # Errors
/// When it cannot be made.
pub fn make_data_folder(loaded: &Loaded) -> Result<PathBuf, StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let path = loaded.path(&loaded.configuration.data);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|source| StartError::Folder {
            path: path.clone(),
            source,
        })?;
    Ok(path)
}

/// Everybody who saw the ledger before.
///
/// # Errors
/// When what somebody saw is there and cannot be read.
pub async fn witnesses(store: &Store, sinks: &Sinks) -> Result<Vec<Witness>, StartError> {
    let mut all = sinks.witnesses().await?;
    all.extend(store.witness().await?);
    Ok(all)
}
