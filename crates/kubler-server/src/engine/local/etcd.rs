//! The one etcd under all environments: started detached, adopted by a later server, started again when it
//! dies. Speaks TLS on a loopback port, to holders of our certificates only, and each of them reaches its own
//! prefix only.

mod client;
pub(super) mod keyspace;
mod room;
pub(super) mod usage;
pub(super) mod wire;

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

pub(super) use self::client::{Client, EtcdError};
use super::certificates::{Authority, Pair, Validity};
use super::process::{Mark, Process, ProcessRecord};
use crate::crash::{self, Point};
use crate::engine::{EngineError, ErrorClass};
use crate::files::{self, PRIVATE};

/// How long a start may take, in seconds.
const START_SECONDS_MAX: u64 = 20;
/// How often a starting etcd is asked, in milliseconds.
const START_POLL_MILLISECONDS: u64 = 5;
/// Ports that are tried when another program takes one between our choice and etcd's start.
const PORT_TRIES_MAX: u32 = 5;
/// Wait before etcd is started again after it died, in milliseconds; doubled as long as that does not help.
const RESTART_MILLISECONDS_MIN: u64 = 100;
/// Longest such wait, in milliseconds.
const RESTART_MILLISECONDS_MAX: u64 = 5000;
/// How long the certificates of etcd itself are valid, in days. They live in the data folder, where everything
/// that could renew them lives as well.
const CERTIFICATE_DAYS: u64 = 3650;
/// Operations in one transaction: more than a template has keys.
const TRANSACTION_OPERATIONS_MAX: u32 = 1024;
/// Bytes that all environments together may hold.
pub(super) const STORED_BYTES_MAX: u64 = 4 << 30;
/// Bound of etcd's log before it is turned over, in MiB; one older file is kept.
const LOG_MEBIBYTES_MAX: u32 = 4;
/// The user that may do everything.
const ROOT: &str = "root";

/// What is written down of the running etcd.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct EtcdRecord {
    process: ProcessRecord,
    port: u16,
}

/// A running, supervised etcd.
pub(super) struct Etcd {
    shared: Arc<Shared>,
    authority: Authority,
    client: Client,
    /// Starts it again when it dies.
    supervisor: AbortOnDropHandle<()>,
    /// Keeps room for it on the disk.
    _room: AbortOnDropHandle<()>,
}

struct Shared {
    program: PathBuf,
    folder: PathBuf,
    mark: Mark,
    port: u16,
    process: Mutex<Arc<Process>>,
    changes: Arc<Notify>,
}

impl Shared {
    fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Etcd {
    /// Adopts the etcd that a server before left in `folder`, or starts one.
    ///
    /// # Errors
    /// When it does not start; the message holds the end of its log.
    pub(super) async fn start(
        program: PathBuf,
        folder: PathBuf,
        mark: Mark,
        changes: Arc<Notify>,
        now: Timestamp,
    ) -> Result<Self, EngineError> {
        let authority = prepare_folder(&folder, now)
            .map_err(|error| failed(&format!("cannot prepare its folder: {error}"), &folder))?;
        crash::at(Point::EtcdPrepared);
        let known = read_record(&folder);
        let adopted =
            known.and_then(|record| Some((record.port, Process::find(record.process, &mark)?)));
        let (port, process, client) = match adopted {
            Some((port, process)) => {
                let client = root(&folder, port)?;
                wait_until_served(&client, &process, &folder).await?;
                (port, process, client)
            }
            None => start_anew(&program, &folder, &mark, known.map(|record| record.port)).await?,
        };
        finish_data(&folder).map_err(|error| failed(&error.to_string(), &folder))?;
        let process = Arc::new(process);
        enable_users(&client)
            .await
            .map_err(|error| failed(&error.to_string(), &folder))?;
        crash::at(Point::EtcdUsersEnabled);
        let shared = Arc::new(Shared {
            program,
            folder,
            mark,
            port,
            process: Mutex::new(process),
            changes,
        });
        let room = AbortOnDropHandle::new(tokio::spawn(room::keep(shared.folder.clone())));
        let supervisor =
            AbortOnDropHandle::new(tokio::spawn(supervise(Arc::clone(&shared), client.clone())));
        Ok(Self {
            shared,
            authority,
            client,
            supervisor,
            _room: room,
        })
    }

    /// Its address for control planes.
    pub(super) fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.shared.port)
    }

    /// The client of the user that may do everything.
    pub(super) fn root(&self) -> Client {
        self.client.clone()
    }

    /// The certificate that proves it is this etcd, PEM.
    pub(super) fn authority_certificate(&self) -> &str {
        self.authority.certificate()
    }

    /// A certificate for the user `name`.
    pub(super) fn client_certificate(
        &self,
        name: &str,
        validity: Validity,
    ) -> Result<Pair, rcgen::Error> {
        self.authority.client(name, validity)
    }

    /// Ends it and takes its data away. Only when no environment is left.
    pub(super) async fn destroy(&self) -> Result<(), EngineError> {
        self.supervisor.abort();
        let wrong = |error: io::Error| failed(&error.to_string(), &self.shared.folder);
        self.shared.process().kill().await.map_err(wrong)?;
        end_strays(&self.shared.mark).await;
        crash::at(Point::EtcdEnded);
        std::fs::remove_dir_all(&self.shared.folder).map_err(wrong)?;
        crash::at(Point::EtcdDeleted);
        Ok(())
    }
}

/// Writes what etcd reads, unless it is there, and gives the authority of its certificates.
fn prepare_folder(folder: &Path, now: Timestamp) -> io::Result<Authority> {
    files::make_closed_folder(folder)?;
    let until = kubler_core::lease::after(now, Duration::from_secs(CERTIFICATE_DAYS * 86_400));
    let validity = Validity::new(now, until);
    // Written last, so its presence says that all is there.
    let complete = folder.join("ca.key");
    if let (Ok(key), Ok(certificate)) = (
        std::fs::read_to_string(&complete),
        std::fs::read_to_string(folder.join("ca.crt")),
    ) {
        let pair = Pair {
            certificate,
            key: Zeroizing::new(key),
        };
        return Authority::load(&pair, validity).map_err(io::Error::other);
    }
    let authority = Authority::new("kubler etcd", validity).map_err(io::Error::other)?;
    let server = authority
        .server("kubler etcd", &["127.0.0.1", "localhost"])
        .map_err(io::Error::other)?;
    let root = authority.client(ROOT, validity).map_err(io::Error::other)?;
    let own = authority.pair();
    for (name, text) in [
        ("server.crt", &*server.certificate),
        ("server.key", &server.key),
        ("root.crt", &root.certificate),
        ("root.key", &root.key),
        ("ca.crt", &own.certificate),
    ] {
        files::replace_whole(&folder.join(name), PRIVATE, text.as_bytes())?;
    }
    files::replace_whole(&complete, PRIVATE, own.key.as_bytes())?;
    Ok(authority)
}

/// Stands beside data that etcd has not made whole yet.
const UNFINISHED: &str = "unfinished";

/// Makes the folder of the data. An etcd that was ended while it made them never serves again, and they hold nothing of
/// anybody's yet: they are made anew.
fn begin_data(folder: &Path) -> io::Result<()> {
    let (data, unfinished) = (folder.join("data"), folder.join(UNFINISHED));
    if unfinished.exists() && data.exists() {
        std::fs::remove_dir_all(&data)?;
    }
    if !data.exists() {
        std::fs::write(unfinished, "")?;
    }
    files::make_closed_folder(&data)
}

/// It serves: from now on the data are kept. Before anybody may write into them.
fn finish_data(folder: &Path) -> io::Result<()> {
    match std::fs::remove_file(folder.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_record(folder: &Path) -> Option<EtcdRecord> {
    serde_json::from_str(&std::fs::read_to_string(folder.join("record.json")).ok()?).ok()
}

async fn start_anew(
    program: &Path,
    folder: &Path,
    mark: &Mark,
    known: Option<u16>,
) -> Result<(u16, Process, Client), EngineError> {
    end_strays(mark).await;
    let wrong = |error: io::Error| failed(&error.to_string(), folder);
    let mut tries = 1;
    loop {
        begin_data(folder).map_err(wrong)?;
        // The environments that still live have the port of before written into them.
        let port = choose_port(known.filter(|_| tries == 1)).map_err(wrong)?;
        let process = launch(program, folder, mark, port).map_err(wrong)?;
        let client = root(folder, port)?;
        match wait_until_served(&client, &process, folder).await {
            Ok(()) => return Ok((port, process, client)),
            // Somebody else may have taken the port in between.
            Err(error) if tries == PORT_TRIES_MAX || process.is_alive() => return Err(error),
            Err(error) => tracing::warn!(%error, port, "etcd did not start; another port is tried"),
        }
        tries += 1;
    }
}

/// Ends an etcd of ours that nobody wrote down: the server died between its start and the record.
async fn end_strays(mark: &Mark) {
    for process in mark.processes() {
        if let Err(error) = process.kill().await {
            tracing::warn!(%error, "an etcd of an earlier server does not end");
        }
    }
}

/// The port of before if it is free, else one that the kernel chooses.
fn choose_port(known: Option<u16>) -> io::Result<u16> {
    let free =
        |port| TcpListener::bind(("127.0.0.1", port)).and_then(|listener| listener.local_addr());
    let address = known
        .and_then(|port| free(port).ok())
        .map_or_else(|| free(0), Ok)?;
    Ok(address.port())
}

fn launch(program: &Path, folder: &Path, mark: &Mark, port: u16) -> io::Result<Process> {
    let url = format!("https://127.0.0.1:{port}");
    let log = folder.join("etcd.log");
    // What the logger does not catch, such as a panic; begins anew at each start.
    let output = std::fs::File::create(folder.join("etcd.out"))?;
    let mut command = Command::new(program);
    command.current_dir(folder).args([
        "--name=kubler".to_owned(),
        "--data-dir=data".to_owned(),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        // A file name to etcd, relative to its folder, which must look like an address. There are no peers.
        "--listen-peer-urls=unix://127.0.0.1:2".to_owned(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2".to_owned(),
        "--initial-cluster=kubler=http://127.0.0.1:2".to_owned(),
        "--client-cert-auth".to_owned(),
        "--trusted-ca-file=ca.crt".to_owned(),
        "--cert-file=server.crt".to_owned(),
        "--key-file=server.key".to_owned(),
        "--enable-grpc-gateway=false".to_owned(),
        format!("--max-txn-ops={TRANSACTION_OPERATIONS_MAX}"),
        // The history of all is compacted here, since control planes are told not to.
        "--auto-compaction-mode=periodic".to_owned(),
        "--auto-compaction-retention=5m".to_owned(),
        // Nothing here is worth keeping past the machine: environments do not survive it either.
        "--unsafe-no-fsync".to_owned(),
        format!("--quota-backend-bytes={STORED_BYTES_MAX}"),
        "--log-level=warn".to_owned(),
        format!("--log-outputs={}", log.display()),
        "--enable-log-rotation".to_owned(),
        format!("--log-rotation-config-json={{\"maxsize\":{LOG_MEBIBYTES_MAX},\"maxbackups\":1}}"),
    ]);
    command.stdout(output.try_clone()?).stderr(output);
    let process = Process::start(&mut command, mark)?;
    crash::at(Point::EtcdSpawned);
    let record = EtcdRecord {
        process: process.record(),
        port,
    };
    let text = serde_json::to_string(&record).map_err(io::Error::other)?;
    let path = folder.join("record.json");
    if let Err(error) = files::replace_for_readers(&path, PRIVATE, text.as_bytes()) {
        // On a full disk it must run all the same, or nothing ends. A later server finds it by its mark, and starts
        // another in its place.
        tracing::warn!(%error, "etcd runs and could not be written down");
    }
    crash::at(Point::EtcdRecorded);
    Ok(process)
}

/// The client of the user that may do everything.
fn root(folder: &Path, port: u16) -> Result<Client, EngineError> {
    let read = || {
        let text = |name: &str| std::fs::read_to_string(folder.join(name));
        let user = Pair {
            certificate: text("root.crt")?,
            key: Zeroizing::new(text("root.key")?),
        };
        Client::new(port, &text("ca.crt")?, &user)
    };
    read().map_err(|error: io::Error| failed(&error.to_string(), folder))
}

async fn wait_until_served(
    client: &Client,
    process: &Process,
    folder: &Path,
) -> Result<(), EngineError> {
    let served = async {
        // A revision is known as soon as the only member leads itself.
        while keyspace::ask(client).await.is_err() {
            tokio::time::sleep(Duration::from_millis(START_POLL_MILLISECONDS)).await;
        }
    };
    tokio::select! {
        () = served => Ok(()),
        ending = process.ended() => Err(failed(&ending, folder)),
        () = tokio::time::sleep(Duration::from_secs(START_SECONDS_MAX)) => {
            Err(failed(&format!("does not answer within {START_SECONDS_MAX} s"), folder))
        }
    }
}

/// From here on a certificate reaches what its user's role names, and nothing else.
async fn enable_users(client: &Client) -> Result<(), EtcdError> {
    keyspace::add_user(client, ROOT).await?;
    let root = ROOT.to_owned();
    client
        .call(&wire::UserGrantRole {
            user: root.clone(),
            role: root,
        })
        .await?;
    client.call(&wire::AuthEnable {}).await?;
    Ok(())
}

/// Starts etcd again whenever it ends, on the same port: the environments on it may then go on.
async fn supervise(shared: Arc<Shared>, client: Client) {
    let mut wait = RESTART_MILLISECONDS_MIN;
    loop {
        let ending = shared.process().ended().await;
        tracing::error!(ending, "etcd ended; it is started again");
        shared.changes.notify_one();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        wait = (wait * 2).min(RESTART_MILLISECONDS_MAX);
        match launch(&shared.program, &shared.folder, &shared.mark, shared.port) {
            Ok(process) => {
                *shared
                    .process
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Arc::new(process)
            }
            Err(error) => {
                tracing::error!(%error, "etcd cannot be started");
                continue;
            }
        }
        match wait_until_served(&client, &shared.process(), &shared.folder).await {
            Ok(()) => {
                wait = RESTART_MILLISECONDS_MIN;
                tracing::info!("etcd answers again");
            }
            Err(error) => tracing::error!(%error, "etcd does not come back"),
        }
        shared.changes.notify_one();
    }
}

fn failed(what: &str, folder: &Path) -> EngineError {
    let said = std::fs::read_to_string(folder.join("etcd.log")).unwrap_or_default();
    let panic = std::fs::read_to_string(folder.join("etcd.out")).unwrap_or_default();
    let last = |text: &str| {
        text.lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .chars()
            .take(400)
            .collect::<String>()
    };
    let message = [format!("etcd: {what}"), last(&said), last(&panic)];
    let message: Vec<_> = message
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    EngineError {
        message: message.join("; "),
        class: ErrorClass::Transient,
    }
}
