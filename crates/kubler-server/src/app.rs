//! Puts the parts together, runs them, and takes them apart in order. The only place that knows all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kubler_core::configuration::Configuration;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::profile::{Profile, ResolvedProfile};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::webhook::WebhookSecret;
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
use crate::ledger::sinks::{SinkError, Sinks};
use crate::ledger::{Durability, Ledger, LedgerError, LedgerLock, Witness};
use crate::metrics::Gauges;
use crate::policy::{Policies, PolicyLoadError};
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
    #[error(transparent)]
    Certificate(#[from] CertificateError),
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
            Self::Identity(_) | Self::Engine(_) | Self::Certificate(_) => "`kubler-server check` reads everything without starting".into(),
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
        let configuration = Arc::new(loaded.configuration.clone());
        let binaries = find_binaries(loaded, surroundings)?;
        let profiles = resolve_profiles(loaded, &binaries)?;
        let tls = Arc::new(read_tls(loaded)?);
        let policies = Arc::new(Policies::load(
            &loaded.path(&configuration.policies),
            Arc::clone(&configuration),
        )?);
        let verifier = Verifier::new(&configuration, &loaded.folder, Arc::clone(&clock))?;
        let data = make_data_folder(loaded)?;

        let lock = LedgerLock::take(&data.join(LEDGER_FOLDER))?;
        let directory = Arc::new(Directory::new(clock.now()));
        let limits = configuration.limits.clone();
        let store = Store::open(&data.join(STORE_FILE), Arc::clone(&directory), limits).await?;
        let store = Arc::new(store);
        let sinks = Arc::new(Sinks::new(&configuration.ledger.sinks, &loaded.folder)?);
        let witnesses = witnesses(&store, &sinks).await?;
        let ledger = open_ledger(&configuration, lock, &witnesses, &policies, &clock).await?;
        let lost = restored::compare(&store, &directory, &ledger, clock.now()).await?;
        // Reading a large ledger took its time, and nobody could renew meanwhile.
        directory.resumed(clock.now());
        ledger.catch_up(&directory).await;
        let sessions = Arc::new(Sessions::open(&data.join("sessions"), Arc::clone(&clock))?);
        let mut settings = LocalSettings::new(&data, binaries);
        if let Some(run) = &configuration.run {
            settings.run = loaded.path(run);
        }
        let engine = LocalEngine::start(settings, Arc::clone(&clock), ledger.clone()).await?;
        let listener = bind(&configuration.listen).await?;
        let shutdown = CancellationToken::new();
        let wake = Wake::default();
        let gauges = Arc::new(Gauges::default());
        let bounds = engine.bounds_in_force();
        tracing::info!(?bounds, "what the system holds each environment to");
        gauges.set_bounds(bounds);
        let as_engine: Arc<dyn Engine> = Arc::<LocalEngine>::clone(&engine);
        let gateway = Gateway::new(GatewayParts {
            directory: Arc::clone(&directory),
            sessions: Arc::clone(&sessions),
            policies: Arc::clone(&policies),
            ledger: ledger.clone(),
            engines: vec![Arc::clone(&as_engine)],
            clock: Arc::clone(&clock),
            shutdown: shutdown.clone(),
        });
        let reconciler = Arc::new(Reconciler {
            store: Arc::clone(&store),
            directory: Arc::clone(&directory),
            engine: as_engine,
            ledger: ledger.clone(),
            clock: Arc::clone(&clock),
            wake: wake.clone(),
            provisioning_max: configuration.limits.provisioning_max as usize,
            downtime: Arc::new(Downtime::new(clock.now())),
            gauges: Arc::clone(&gauges),
            lost,
        });
        let checkpoint_every = Duration::from_secs(configuration.ledger.checkpoint_seconds.max(1));
        let places = Arc::new(places(&configuration));
        let broker = Broker {
            refused: RefusedJobs::default(),
            profiles,
            policies,
            store,
            directory,
            ledger,
            sessions,
            wake,
            clock: Arc::clone(&clock),
        };
        let api = Arc::new(Api {
            broker,
            verifier,
            gateway,
            ca: read_ca(loaded)?,
            webhook_secrets: webhook_secrets(loaded)?,
            configuration,
            gauges,
            sinks,
            told: Told::default(),
            tls,
            places,
            answering: Arc::new(()),
            clock,
        });
        Ok(Self {
            api,
            engine,
            reconciler,
            listener,
            checkpoint_every,
            shutdown,
        })
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
    let origin = ledger_origin(configuration);
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
    clock: Arc<dyn Clock>,
) -> Result<Checked, StartError> {
    let configuration = Arc::new(loaded.configuration.clone());
    let binaries = find_binaries(loaded, surroundings)?;
    let profiles = resolve_profiles(loaded, &binaries)?;
    read_tls(loaded)?;
    read_ca(loaded)?;
    let folder = loaded.path(&configuration.policies);
    let policies = Policies::load(&folder, Arc::clone(&configuration))?;
    Verifier::new(&configuration, &loaded.folder, clock)?;
    webhook_secrets(loaded)?;
    Sinks::new(&configuration.ledger.sinks, &loaded.folder)?;
    Ok(Checked { profiles, policies })
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

/// Profiles with everything that their names stand for.
///
/// # Errors
/// When a manifest cannot be read.
pub fn resolve_profiles(
    loaded: &Loaded,
    binaries: &Binaries,
) -> Result<BTreeMap<String, ResolvedProfile>, ConfigError> {
    let mut manifests = loaded.manifests()?;
    let resolve = |profile: &Profile| ResolvedProfile {
        profile: profile.clone(),
        // The configuration was checked: every profile names a version that is there.
        kubernetes_version: binaries
            .version(&profile.kubernetes)
            .unwrap_or_default()
            .to_owned(),
        manifests: manifests.remove(&profile.name).unwrap_or_default(),
    };
    let resolved = loaded.configuration.profiles.iter().map(resolve);
    Ok(resolved
        .map(|resolved| (resolved.profile.name.clone(), resolved))
        .collect())
}

fn read_tls(loaded: &Loaded) -> Result<Tls, StartError> {
    let files = &loaded.configuration.tls;
    let optional = |path: &Option<String>| path.as_ref().map(|path| loaded.path(path));
    Ok(Tls::load(Files {
        certificate: loaded.path(&files.certificate),
        key: loaded.path(&files.key),
        operator_ca: optional(&files.operator_ca),
        operator_crl: optional(&files.operator_crl),
    })?)
}

/// As many places as are configured and as there are descriptors for.
fn places(configuration: &Configuration) -> Places {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let places = Places::new(&configuration.limits, limit.current.unwrap_or(u64::MAX));
    let (wanted, possible) = (configuration.limits.connections_max, places.all_max());
    if possible < wanted as usize {
        tracing::warn!(
            wanted,
            possible,
            "there are fewer places for connections than configured: the limit of open files is too low"
        );
    }
    places
}

/// The CA that callers should trust.
fn read_ca(loaded: &Loaded) -> Result<Option<String>, ConfigError> {
    let ca = loaded.configuration.tls.ca.as_ref();
    let pem = ca
        .map(|ca| crate::config::read(&loaded.path(ca)))
        .transpose()?;
    Ok(pem.map(|pem| String::from_utf8_lossy(&pem).into_owned()))
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

fn webhook_secrets(loaded: &Loaded) -> Result<Vec<WebhookSecret>, StartError> {
    let mut secrets = Vec::new();
    for issuer in &loaded.configuration.issuers {
        for organization in &issuer.organizations {
            if let Some(file) = &organization.webhook_secret {
                secrets.push(WebhookSecret {
                    issuer: issuer.url.clone(),
                    organization_id: organization.id.clone(),
                    secret: loaded.secret(file)?,
                });
            }
        }
    }
    Ok(secrets)
}

/// The ledger's name when it is made: a name without a scheme.
pub fn ledger_origin(configuration: &Configuration) -> String {
    let of_url = || {
        let name = configuration.url.trim_start_matches("https://");
        format!("{name}/ledger")
    };
    configuration.ledger.origin.clone().unwrap_or_else(of_url)
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
