//! `kubler-server`: the broker's command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kubler_core::configuration::Configuration;
use kubler_core::host::rbac::{Broker, HostRights};
use kubler_core::ledger::layout;
use kubler_core::profile::{EngineKind, ResolvedProfile};
use kubler_server::app::App;
use kubler_server::clock::{Clock, SystemClock};
use kubler_server::config::{self, Surroundings};
use kubler_server::data_folder::DataFolder;
use kubler_server::engine::local::StopMode;
use kubler_server::init::{Init, InitError, TrialIssuer, init, listen_for, next_steps};
use kubler_server::ledger::recover::{GoOn, Recovered};
use kubler_server::maintenance::backup::{self, BackupError, Keys};
use kubler_server::maintenance::inspect::inspect;
use kubler_server::maintenance::{self, restore};
use kubler_server::reading::{AtStart, log_filter};
use kubler_server::reference::Page;
use kubler_server::reload::{Reload, SetLog};
use kubler_server::start_error::StartError;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A broker between CI jobs and Kubernetes.
#[derive(Parser)]
#[command(name = "kubler-server", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a folder with configuration, certificates and starter policies for a Buildkite organization.
    Init(InitArguments),
    /// Serve until SIGTERM. Environments stay alive; the next start finds them.
    Serve(ServeArguments),
    /// Read configuration, policies, manifests and programs without starting.
    Check(ConfigArgument),
    /// Put the ledger in order.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Copy the store and the ledger into a folder, also while the server runs.
    Backup(BackupArguments),
    /// Put a back-up into the empty data folder.
    Restore(RestoreArguments),
    /// Print as YAML the rights that the server needs on a host cluster, for an operator to apply there.
    HostRbac(HostRbacArguments),
    /// Bring the store's schema up to date without serving.
    Migrate(ConfigArgument),
    /// Print the configuration's JSON Schema.
    Schema,
    /// Print the OpenAPI document.
    Openapi,
    /// Print a reference page.
    #[command(hide = true)]
    Reference {
        /// Which.
        page: Page,
    },
}

/// The configuration when none is named.
const DEFAULT_CONFIG: &str = "kubler.yaml";
/// Commands that are about one configuration, as hints name them.
const CONFIGURED: [&str; 4] = [
    "kubler-server ledger recover",
    "kubler-server restore",
    "kubler-server check",
    "kubler policy check",
];

impl Command {
    /// The configuration that it was given.
    fn config(&self) -> Option<&Path> {
        let argument = match self {
            Self::Serve(arguments) => &arguments.config,
            Self::Check(argument) | Self::Migrate(argument) => argument,
            Self::Ledger(LedgerCommand::Recover(arguments)) => &arguments.config,
            Self::Backup(arguments) => &arguments.config,
            Self::HostRbac(arguments) => &arguments.config,
            Self::Restore(arguments) => &arguments.config,
            Self::Init(_) | Self::Schema | Self::Openapi | Self::Reference { .. } => return None,
        };
        Some(&argument.config)
    }
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The configuration file.
    #[arg(long, env = config::KUBLER_CONFIG, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(clap::Args)]
struct ServeArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// What becomes of living environments when the server stops.
    #[arg(long, value_enum, default_value_t = OnStop::Keep)]
    on_stop: OnStop,
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// Go on with what is sound of a ledger that the server does not start on. What is not is set aside, nothing is
    /// deleted, and a record tells for ever what was found and why it was done. The server must be stopped.
    Recover(RecoverArguments),
}

#[derive(clap::Args)]
struct RecoverArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Why, for whoever reads the ledger later.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Set all of it aside and begin another ledger with another key: for a key that is lost, or in other hands.
    #[arg(long)]
    begin_anew: bool,
}

#[derive(clap::Args)]
struct BackupArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The folder to write; it must not exist, or be empty.
    folder: PathBuf,
    /// Private keys too: the ledger's, and those that sign sessions. Whoever reads such a back-up can use them.
    #[arg(long)]
    with_keys: bool,
}

#[derive(clap::Args)]
struct RestoreArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The back-up.
    folder: PathBuf,
    /// Why, for whoever reads the ledger later.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
}

#[derive(clap::Args)]
struct HostRbacArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The host, as the configuration calls it [default: the only one].
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The user that the host knows the server as: the common name of a client certificate, or what its authentication
    /// makes of a token.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// The service account that the server is, for one that runs in a cluster [default: kubler/kubler when the host is
    /// configured as `in_cluster`, else the user `kubler`].
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "user", value_parser = service_account)]
    service_account: Option<Broker>,
}

fn service_account(text: &str) -> Result<Broker, String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(Broker::ServiceAccount {
                namespace: namespace.into(),
                name: name.into(),
            })
        }
        _ => Err("name it as NAMESPACE/NAME, such as kubler/kubler".into()),
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum OnStop {
    /// They live on; the next start finds them.
    Keep,
    /// They end, verified, before the server does.
    End,
}

#[derive(clap::Args)]
struct InitArguments {
    /// The folder to write.
    folder: PathBuf,
    /// The organization's UUID (Buildkite: Organization Settings, or the claim `organization_id` of a token).
    #[arg(long)]
    organization_id: String,
    /// The organization's slug, as in buildkite.com/SLUG.
    #[arg(long)]
    organization: String,
    /// What jobs call the server.
    #[arg(long, default_value = "https://localhost:8443")]
    url: String,
    /// Where the server listens; when absent, the port of `--url` on every address, or on the loopback address when that
    /// is all that the URL's name stands for.
    #[arg(long)]
    listen: Option<String>,
    /// The Kubernetes version to offer.
    #[arg(long, default_value = "1.34")]
    kubernetes: String,
    /// Another issuer than Buildkite's own, inside your network.
    #[arg(long)]
    issuer: Option<String>,
    /// The CA of that issuer.
    #[arg(long, requires = "issuer")]
    issuer_ca: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = arguments.command.config().map(Path::to_owned);
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, config.as_deref());
            ExitCode::FAILURE
        }
    }
}

/// What was wrong, then what to do next.
#[allow(clippy::print_stderr)] // the command line's own voice
fn report(error: &anyhow::Error, config: Option<&Path>) {
    eprintln!("error: {}", said_once(error));
    let hint = error
        .downcast_ref::<StartError>()
        .map(StartError::hint)
        .or_else(|| {
            error
                .downcast_ref::<config::ConfigError>()
                .map(config::ConfigError::hint)
        })
        .or_else(|| {
            error
                .downcast_ref::<InitError>()
                .map(|error| error.hint().to_owned())
        })
        .or_else(|| {
            error
                .downcast_ref::<BackupError>()
                .map(|error| error.hint().to_owned())
        });
    if let Some(hint) = hint {
        eprintln!("hint: {}", with_config(&hint, config));
    }
}

/// Commands in a hint, with the configuration that this one was given: whoever copies one must not do it to another server.
fn with_config(hint: &str, config: Option<&Path>) -> String {
    let Some(config) = config.filter(|config| *config != Path::new(DEFAULT_CONFIG)) else {
        return hint.to_owned();
    };
    CONFIGURED.iter().fold(hint.to_owned(), |hint, command| {
        hint.replace(command, &format!("{command} --config {}", config.display()))
    })
}

/// The error and its causes, without those whose words the error itself has said.
fn said_once(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = cause.to_string();
        if said.is_empty() {
            cause
        } else if said.contains(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

#[allow(clippy::print_stdout)] // what was asked for goes to stdout
fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(arguments) => {
            let wanted = wanted(arguments);
            init(&wanted, SystemClock.now())?;
            println!("{}", next_steps(&wanted));
            Ok(())
        }
        Command::Serve(arguments) => serve(&arguments),
        Command::Check(argument) => runtime()?.block_on(check(&argument)),
        Command::Ledger(LedgerCommand::Recover(arguments)) => {
            runtime()?.block_on(recover(&arguments))
        }
        Command::Backup(arguments) => runtime()?.block_on(backup(&arguments)),
        Command::Restore(arguments) => runtime()?.block_on(restore(&arguments)),
        Command::HostRbac(arguments) => host_rbac(arguments),
        Command::Migrate(argument) => runtime()?.block_on(migrate(&argument)),
        Command::Schema => {
            println!(
                "{}",
                serde_json::to_string_pretty(&schemars::schema_for!(Configuration))?
            );
            Ok(())
        }
        Command::Reference { page } => {
            print!("{}", page.text());
            Ok(())
        }
        Command::Openapi => {
            println!(
                "{}",
                serde_json::to_string_pretty(&kubler_server::http::openapi())?
            );
            Ok(())
        }
    }
}

fn wanted(arguments: InitArguments) -> Init {
    let url = arguments.url.trim_end_matches('/').to_owned();
    Init {
        listen: arguments.listen.unwrap_or_else(|| listen_for(&url)),
        folder: arguments.folder,
        organization_id: arguments.organization_id,
        organization_slug: arguments.organization,
        url,
        kubernetes: arguments.kubernetes,
        issuer: arguments.issuer.map(|url| TrialIssuer {
            url,
            ca: arguments.issuer_ca,
        }),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")
}

/// Takes all the descriptors that this process may have: how many connections there can be comes from it.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, open_files = limit.current, "the limit of open files stays as it is");
    }
}

/// Logs as `KUBLER_LOG` says, else as the configuration does from now on. Gives the way to change the latter.
fn log(configured: Option<EnvFilter>) -> SetLog {
    let from_environment = EnvFilter::try_from_env(config::KUBLER_LOG).ok();
    let is_fixed = from_environment.is_some();
    let filter = from_environment
        .or(configured)
        .unwrap_or_else(|| "info".into());
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    tracing_subscriber::registry()
        .with(filter)
        .with(
            tracing_subscriber::fmt::layer()
                .json()
                .with_writer(std::io::stderr),
        )
        .init();
    Box::new(move |filter| {
        if !is_fixed && let Err(error) = handle.reload(filter) {
            tracing::error!(%error, "what is logged could not be changed");
        }
    })
}

fn serve(arguments: &ServeArguments) -> anyhow::Result<()> {
    let file = &arguments.config.config;
    let loaded = config::load(file)?;
    let set_log = log(log_filter(loaded.configuration.log.as_ref())?);
    raise_open_files();
    runtime()?.block_on(async {
        let app = App::start(&loaded, &Surroundings::read(), Arc::new(SystemClock)).await?;
        tracing::info!(address = %app.address()?, url = loaded.configuration.url, "serving");
        let reload = app.reload(file.clone(), set_log);
        on_signals(app.shutdown(), reload)?;
        let stop = match arguments.on_stop {
            OnStop::Keep => StopMode::KeepEnvironments,
            OnStop::End => StopMode::EndEverything,
        };
        app.run(stop).await;
        Ok(())
    })
}

/// SIGTERM and SIGINT stop the server; SIGHUP loads anew what can change while it runs.
fn on_signals(shutdown: CancellationToken, reload: Reload) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reload.run().await,
            }
        }
        tracing::info!("stopping: open requests may end");
        shutdown.cancel();
    });
    Ok(())
}

/// What environments of a profile are made of, for people.
fn made_of(resolved: &ResolvedProfile) -> String {
    match resolved.profile.engine {
        EngineKind::Local => format!("Kubernetes {}", resolved.kubernetes_version),
        EngineKind::Namespace => "a namespace of a host".into(),
    }
}

#[allow(clippy::print_stdout)]
async fn check(argument: &ConfigArgument) -> anyhow::Result<()> {
    let loaded = config::load(&argument.config)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let AtStart {
        everything: read,
        tls,
        sinks,
        ..
    } = AtStart::read(&loaded, &Surroundings::read(), &clock)?;
    let notes = inspect(&loaded, &sinks).await?;
    let connections = kubler_server::engines::connections(&loaded).await?;
    for (name, resolved) in &read.in_force.profiles {
        println!(
            "profile {name}: {}, digest {}",
            made_of(resolved),
            resolved.digest()
        );
    }
    for (host, connection) in &connections {
        let (name, most) = (&host.name, host.environments_max);
        match connection.version().await {
            Ok(version) => {
                println!("host {name}: Kubernetes {version}, up to {most} environments");
            }
            // A start does not stop at it.
            Err(error) => println!(
                "note: host {name} does not answer, and gets no environments until it does: {error}"
            ),
        }
    }
    println!(
        "policies: {} in force, digest {}",
        read.policies.len(),
        read.policies.digest()
    );
    println!(
        "bounds of each environment by the system: {}",
        kubler_server::engine::local::bounds_to_be_had().join(", ")
    );
    for issuer in &loaded.configuration.issuers {
        let (audience, url) = (&issuer.audience, &loaded.configuration.url);
        if audience != url {
            println!(
                "note: tokens of {} must be for `{audience}`, which is not the server's `url` `{url}`: jobs must ask for it \
                 (`audience` in the plugin, `--audience` of `kubler`)",
                issuer.url
            );
        }
    }
    if let Some(key) = tls.open_key() {
        println!(
            "note: everybody on this machine may read the private key `{0}`: `chmod o= {0}`",
            key.display()
        );
    }
    for note in notes {
        println!("note: {note}");
    }
    println!("{} is fine", argument.config.display());
    Ok(())
}

#[allow(clippy::print_stdout)]
fn host_rbac(arguments: HostRbacArguments) -> anyhow::Result<()> {
    let loaded = config::load(&arguments.config.config)?;
    let configuration = &loaded.configuration;
    let names: Vec<_> = configuration
        .hosts
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    let host = match (&arguments.host, configuration.hosts.as_slice()) {
        (Some(name), _) => configuration.host(name).with_context(|| {
            format!(
                "`{name}` is no host of the configuration; it has: {}",
                names.join(", ")
            )
        })?,
        (None, [only]) => only,
        (None, []) => anyhow::bail!("the configuration has no `hosts`"),
        (None, _) => anyhow::bail!(
            "which host? Say `--host NAME`, one of: {}",
            names.join(", ")
        ),
    };
    let broker = arguments
        .user
        .map(Broker::User)
        .or(arguments.service_account)
        .unwrap_or_else(|| Broker::usual(host));
    let objects = HostRights::of(configuration, host, broker.clone()).objects();
    println!(
        "# Host `{}`, for Kubler as `{}`: kubectl apply --server-side -f -",
        host.name,
        broker.username()
    );
    for object in objects {
        print!("---\n{}", serde_saphyr::to_string(&object)?);
    }
    Ok(())
}

async fn recover(arguments: &RecoverArguments) -> anyhow::Result<()> {
    let loaded = config::load(&arguments.config.config)?;
    let go_on = if arguments.begin_anew {
        GoOn::Anew
    } else {
        GoOn::WithWhatIsSound
    };
    let clock = Arc::new(SystemClock);
    tell(&maintenance::recover_ledger(&loaded, &arguments.reason, go_on, clock).await?);
    Ok(())
}

#[allow(clippy::print_stdout)]
fn tell(recovered: &Recovered) {
    for found in &recovered.found {
        println!("found: {found}");
    }
    if recovered.found.is_empty() {
        println!("found: nothing that is wrong");
    }
    println!("kept: {} records", recovered.kept);
    if let Some(folder) = &recovered.set_aside {
        println!("set aside: {}", folder.display());
    }
    println!(
        "told: record {}, signed up to {} by {}",
        recovered.sequence,
        recovered.checkpoint.size,
        recovered.key.id()
    );
}

#[allow(clippy::print_stdout)]
async fn backup(arguments: &BackupArguments) -> anyhow::Result<()> {
    let loaded = config::load(&arguments.config.config)?;
    let data = DataFolder::of(&loaded);
    let keys = if arguments.with_keys {
        Keys::Included
    } else {
        Keys::Left
    };
    let made = backup::backup(&data, &arguments.folder, keys, SystemClock.now()).await?;
    print!("{}", made.checkpoint);
    println!(
        "{} files in {}",
        made.files.len(),
        arguments.folder.display()
    );
    Ok(())
}

#[allow(clippy::print_stdout)]
async fn restore(arguments: &RestoreArguments) -> anyhow::Result<()> {
    let loaded = config::load(&arguments.config.config)?;
    let data = DataFolder::of(&loaded);
    let manifest = restore::restore(&arguments.folder, &data).await?;
    println!("restored as of {}", manifest.made_at);
    if manifest.with_keys {
        let clock = Arc::new(SystemClock);
        let go_on = GoOn::WithWhatIsSound;
        let recovered =
            maintenance::recover_ledger(&loaded, &arguments.reason, go_on, clock).await?;
        tell(&recovered);
    } else {
        let then = "`kubler-server ledger recover --reason TEXT`";
        println!(
            "the ledger's private key is not in this back-up: put it into {} with mode 0600, then run {}; \
             without it, add `--begin-anew`",
            data.ledger().join(layout::PRIVATE_KEY).display(),
            with_config(then, Some(&arguments.config.config))
        );
    }
    Ok(())
}

#[allow(clippy::print_stdout)]
async fn migrate(argument: &ConfigArgument) -> anyhow::Result<()> {
    let loaded = config::load(&argument.config)?;
    let directory = Arc::new(kubler_server::directory::Directory::new(SystemClock.now()));
    let file = DataFolder::make(&loaded)?.store();
    kubler_server::store::Store::open(&file, directory, loaded.configuration.limits.clone())
        .await
        .map_err(StartError::from)?;
    println!("{} is up to date", file.display());
    Ok(())
}
