//! Puts the parts together, runs them, and takes them apart in order. The only place that knows all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Loaded, Surroundings};
use crate::data_folder::DataFolder;
use crate::engine::Engine;
use crate::engine::local::StopMode;
use crate::engine::local::binaries::Binaries;
use crate::engines::{self, Engines};
use crate::gateway::{Gateway, GatewayParts};
use crate::http::places::Places;
use crate::http::{Api, Told, listen::serve};
use crate::ledger::Durability;
use crate::metrics::Gauges;
use crate::opening::{self, Opened};
use crate::reading::{AtStart, Everything};
use crate::reload::{Reload, SetLog};
use crate::start_error::StartError;
use crate::tasks::certificates::Certificates;
use crate::tasks::downtime::Downtime;
use crate::tasks::reconcile::Reconciler;
use crate::tasks::upkeep::{self, Checkpoints};

/// How long environments may take to end when the server ends them all.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A server that is ready to serve.
pub struct App {
    api: Arc<Api>,
    engines: Engines,
    reconciler: Arc<Reconciler>,
    binaries: Arc<Binaries>,
    listener: TcpListener,
    checkpoint_every: Duration,
    shutdown: CancellationToken,
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
        let AtStart {
            everything,
            binaries,
            verifier,
            tls,
            sinks,
        } = AtStart::read(loaded, surroundings, &clock)?;
        let Everything {
            in_force,
            policies,
            issuers,
            log: _, // from the first line on
        } = everything;
        verifier.install(issuers);
        let connections = engines::connections(loaded).await?;
        // Before anything is opened or started: a server that cannot be reached leaves nothing behind.
        let listener = bind(&in_force.configuration.listen).await?;
        let configuration = Arc::clone(&in_force.configuration);
        let data = DataFolder::make(loaded)?;
        let Opened { broker, lost } =
            opening::open(&data, &configuration, policies, &sinks, &clock).await?;
        engines::check_sites(&broker.directory, &configuration)?;
        let engines = Engines::start(
            loaded,
            &data,
            &binaries,
            connections,
            &clock,
            &broker.ledger,
        )
        .await?;
        let (shutdown, gauges) = (CancellationToken::new(), Arc::new(Gauges::default()));
        match &engines.local {
            Some(local) => {
                let bounds = local.bounds_in_force();
                tracing::info!(?bounds, "what the system holds each environment to");
                gauges.set_bounds(bounds);
            }
            // There is nothing here that could be looked at.
            None => gauges.engine_worked(true),
        }
        let reconciler = Arc::new(Reconciler {
            store: Arc::clone(&broker.store),
            directory: Arc::clone(&broker.directory),
            engines: engines.all(),
            ledger: broker.ledger.clone(),
            clock: Arc::clone(&clock),
            wake: broker.wake.clone(),
            downtime: Arc::new(Downtime::new(clock.now())),
            gauges: Arc::clone(&gauges),
            lost,
        });
        let api = Arc::new(Api {
            gateway: gateway(&broker, engines.all(), &shutdown),
            engines: engines.all(),
            in_force: in_force.shared(),
            broker,
            verifier,
            gauges,
            sinks: Arc::new(sinks),
            told: Told::default(),
            tls: Arc::new(tls),
            places: Arc::new(Places::of_this_process(&configuration.limits)),
            answering: Arc::new(()),
            clock,
        });
        Ok(Self {
            api,
            engines,
            reconciler,
            binaries: Arc::new(binaries),
            listener,
            checkpoint_every: Duration::from_secs(configuration.ledger.checkpoint_seconds.max(1)),
            shutdown,
        })
    }

    /// Loads anew what can change while it runs, from `file`.
    pub fn reload(&self, file: PathBuf, set_log: SetLog) -> Reload {
        Reload {
            certificates: certificates(&self.api),
            api: Arc::clone(&self.api),
            file,
            binaries: Arc::clone(&self.binaries),
            set_log,
        }
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

    /// Serves until the shutdown token is cancelled; then environments stay alive for the next start, or end.
    pub async fn run(self, stop: StopMode) {
        let Self {
            api,
            engines,
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
        for host in &engines.hosts {
            let directory = Arc::clone(&reconciler.directory);
            tasks.spawn(Arc::clone(host).keep_walls(directory, work_over.clone()));
        }
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
        tasks.spawn(certificates(&api).watch(work_over.clone()));

        serve(listener, Arc::clone(&api), shutdown).await;
        if stop == StopMode::EndEverything {
            api.broker.end_everything(END_TIMEOUT).await;
        }
        work_over.cancel();
        while tasks.join_next().await.is_some() {}
        engines.stop(stop).await;
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
        say_what_stays(api.broker.directory.remaining().len());
    }
}

/// The last line of all: whoever stopped it by hand is told what it leaves, and how to leave nothing.
fn say_what_stays(environments: usize) {
    if environments == 0 {
        tracing::info!("stopped: no environment is left");
    } else {
        tracing::info!(
            environments,
            "stopped: so many environments stay alive for the next start; to end them all, start the server with \
             `--on-stop end` and stop it"
        );
    }
}

async fn bind(address: &str) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| StartError::Listen {
        address: address.to_owned(),
        source,
    })
}

fn gateway(
    broker: &Broker,
    engines: Vec<Arc<dyn Engine>>,
    shutdown: &CancellationToken,
) -> Gateway {
    Gateway::new(GatewayParts {
        directory: Arc::clone(&broker.directory),
        sessions: Arc::clone(&broker.sessions),
        policies: Arc::clone(&broker.policies),
        ledger: broker.ledger.clone(),
        store: Arc::clone(&broker.store),
        approvals: Arc::clone(&broker.approvals),
        engines,
        clock: Arc::clone(&broker.clock),
        shutdown: shutdown.clone(),
    })
}

fn certificates(api: &Api) -> Certificates {
    Certificates {
        tls: Arc::clone(&api.tls),
        ledger: api.broker.ledger.clone(),
    }
}
