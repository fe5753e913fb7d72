//! Makes an environment: identity and etcd user, then the control plane, then what must be in it before Ready.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubler_core::environment::Environment;
use kubler_core::lease::after;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::api::ApiClient;
use super::certificates::{Authority, Validity, signing_key};
use super::etcd::Etcd;
use super::folder::{EnvironmentFolder, EnvironmentRecord, names};
use super::process::Process;
use super::{
    Inner, Programs, Slot, build_facts, joined, limits, permanent, remove, transient, upstream,
};
use crate::crash::{self, Point};
use crate::engine::EngineError;
use crate::engine::api::Api as _;
use crate::engine::manifests::{self, Manifest, Trouble, Within};
use crate::entropy::random_bytes;

/// How often a starting control plane is asked, in milliseconds.
const POLL_MILLISECONDS: u64 = 5;
/// How long certificates outlive the deadline, in seconds: requests that began before may still run.
const CERTIFICATE_GRACE_SECONDS: u64 = 3600;
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Names and addresses of the API server: as the control plane and clients inside know it.
const SERVING_NAMES: [&str; 6] = [
    "192.0.2.1",
    "10.96.0.1",
    "kubernetes",
    "kubernetes.default",
    upstream::SERVER_NAME,
    "kubernetes.default.svc.cluster.local",
];
const DEFAULT_SERVICE_ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default";

/// Makes the environment, or goes on where an earlier try stopped.
pub(super) async fn provision(
    inner: &Arc<Inner>,
    environment: &Environment,
) -> Result<(), EngineError> {
    let resolved = &environment.resolved;
    let version = &resolved.profile.kubernetes;
    let programs = inner.settings.binaries.versions.get(version).cloned();
    let programs = programs
        .ok_or_else(|| permanent(format!("there are no programs for Kubernetes `{version}`")))?;
    let manifests = manifests::read(&resolved.manifests)?;
    let slot = inner.slot(environment.id);
    let guard = Arc::clone(&slot.work).lock_owned().await;
    let cancelled = slot.begin(&guard);
    let began = Instant::now();

    // A task of its own that keeps the environment to itself: if our caller goes away, what is under way still
    // ends before anybody else may begin to look or take away.
    let (its_inner, its_environment, its_slot, stop) = (
        Arc::clone(inner),
        environment.clone(),
        Arc::clone(&slot),
        cancelled.clone(),
    );
    let making = tokio::spawn(async move {
        let making = Making {
            inner: &its_inner,
            environment: &its_environment,
            slot: &its_slot,
        };
        let (process, made) = making.control_plane(&programs, &stop, &guard).await?;
        Ok((process, made, guard))
    });
    let (process, made, guard) = joined(making).await?;
    let guard = Arc::new(guard);
    let grouped = group(inner, environment, &process, &guard);
    let making = Making {
        inner,
        environment,
        slot: &slot,
    };
    let trouble = Trouble::default();
    let waiting = Instant::now();
    let (limit, folder) = (
        inner.settings.start_max,
        inner.run.environment(environment.id),
    );
    let started = tokio::select! {
        started = making.contents(&manifests, &trouble) => started,
        how = process.ended() => {
            // The reason is told to late callers whom nobody knows; what stands in logs is the operator's.
            tracing::warn!(environment = %environment.id, how, log = folder.log_tail(), "a control plane ended while it started");
            Err(transient(format!("its control plane {how} while it started")))
        }
        () = cancelled.cancelled() => Err(transient("its end was asked for while it was made")),
        () = tokio::time::sleep(limit) => {
            tracing::warn!(environment = %environment.id, log = folder.log_tail(), "a control plane was not usable in time");
            Err(transient(format!("not usable within {} s; last: {}", limit.as_secs(), trouble.last())))
        }
    };
    let milliseconds = started?;
    // What is not in this is our own: `make bench` reads it.
    let waited_microseconds = u64::try_from(waiting.elapsed().as_micros()).unwrap_or(u64::MAX);
    // Before anybody but us can ask it for anything.
    joined(grouped).await?;
    making.finish()?;
    let total = began.elapsed().as_millis();
    tracing::info!(environment = %environment.id, ?made, ?milliseconds, waited_microseconds, total, "an environment is usable");
    drop(guard);
    Ok(())
}

/// Takes a control plane into the control groups of its environment. The system may take its time.
fn group(
    inner: &Arc<Inner>,
    environment: &Environment,
    process: &Process,
    guard: &Arc<OwnedMutexGuard<()>>,
) -> tokio::task::JoinHandle<Result<(), EngineError>> {
    let (groups, guard) = (Arc::clone(&inner.groups), Arc::clone(guard));
    let (id, pid) = (environment.id, process.record().pid);
    let bytes = environment.resolved.profile.memory_bytes_max();
    tokio::task::spawn_blocking(move || {
        let entered = groups.enter(id, pid, bytes);
        // Held until here, so that whoever takes the environment away finds what was made.
        drop(guard);
        entered.map_err(|error| transient(format!("its control group: {error}")))
    })
}

/// Milliseconds since the beginning of a part, by what was done.
type Milliseconds = Vec<(&'static str, u128)>;

struct Making<'a> {
    inner: &'a Arc<Inner>,
    environment: &'a Environment,
    slot: &'a Slot,
}

/// Files of an environment's folder, by name.
type NamedTexts = Vec<(&'static str, Zeroizing<String>)>;

impl Making<'_> {
    fn folder(&self) -> EnvironmentFolder {
        self.inner.run.environment(self.environment.id)
    }

    /// Starts the control plane, unless one lives that was wholly started.
    async fn control_plane(
        &self,
        programs: &Programs,
        cancelled: &CancellationToken,
        guard: &OwnedMutexGuard<()>,
    ) -> Result<(Arc<Process>, Milliseconds), EngineError> {
        if let Some(live) = self
            .slot
            .live()
            .as_ref()
            .filter(|live| live.ending.get().is_none())
        {
            return Ok((Arc::clone(&live.process), Vec::new()));
        }
        let id = self.environment.id;
        let began = Instant::now();
        let mut milliseconds = Vec::new();
        if self.folder().exists() {
            // Somebody died while making it. Nobody has used it yet, so it begins anew.
            remove::take_away(self.inner, id, self.slot, guard).await?;
        }
        let etcd = async {
            self.inner
                .etcd
                .admit(id)
                .await
                .map_err(|error| transient(format!("etcd user: {error}")))
        };
        let files = async { self.write_files() };
        let (etcd, files) = tokio::join!(etcd, files);
        files.and(etcd)?;
        milliseconds.push(("prepared", began.elapsed().as_millis()));
        if cancelled.is_cancelled() {
            return Err(transient("its end was asked for while it was made"));
        }
        let process = Arc::new(self.launch(programs)?);
        crash::at(Point::ControlPlaneSpawned);
        self.write_record(&process, false)?;
        crash::at(Point::ControlPlaneRecorded);
        let profile = &self.environment.resolved.profile;
        let live = self
            .inner
            .live(id, Arc::clone(&process), &profile.egress, profile.into())
            .map_err(|error| transient(format!("egress: {error}")))?;
        crash::at(Point::WayOutServed);
        *self.slot.live() = Some(live);
        milliseconds.push(("launched", began.elapsed().as_millis()));
        Ok((process, milliseconds))
    }

    /// Writes what makes this environment nobody else's: authority, keys, tokens.
    fn write_files(&self) -> Result<(), EngineError> {
        let wrong =
            |error: std::io::Error| transient(format!("its folder cannot be written: {error}"));
        let folder = self.folder();
        folder.create().map_err(wrong)?;
        crash::at(Point::FolderMade);
        let files = self
            .identity()
            .map_err(|error| transient(format!("its identity cannot be made: {error}")))?;
        for (name, text) in &files {
            folder.write(name, text).map_err(wrong)?;
        }
        crash::at(Point::KeysWritten);
        Ok(())
    }

    fn identity(&self) -> Result<NamedTexts, Box<dyn std::error::Error + Send + Sync>> {
        let Self {
            inner, environment, ..
        } = self;
        let until = after(
            environment.deadline,
            Duration::from_secs(CERTIFICATE_GRACE_SECONDS),
        );
        let validity = Validity::new(inner.clock.now(), until);
        // Its key is forgotten here: nothing can be signed for this environment later.
        let authority = Authority::new(&format!("kubler {}", environment.id), validity)?;
        let serving = authority.server("kube-apiserver", &SERVING_NAMES)?;
        let etcd = inner
            .etcd
            .client_certificate(&environment.id.to_string(), validity)?;
        let token =
            || random_bytes::<TOKEN_BYTES>().map(|bytes| Zeroizing::new(hex::encode(bytes)));
        let tokens = upstream::token_file(&token()?, &token()?, &environment.identity.job.id);
        Ok(vec![
            (names::AUTHORITY, authority.certificate().to_owned().into()),
            (names::SERVING_CERTIFICATE, serving.certificate.into()),
            (names::SERVING_KEY, serving.key),
            (names::SERVICE_ACCOUNT_KEY, signing_key()?),
            (names::TOKENS, tokens),
            (
                names::ETCD_AUTHORITY,
                inner.etcd.authority_certificate().to_owned().into(),
            ),
            (names::ETCD_CERTIFICATE, etcd.certificate.into()),
            (names::ETCD_KEY, etcd.key),
        ])
    }

    fn launch(&self, programs: &Programs) -> Result<Process, EngineError> {
        let id = self.environment.id;
        let folder = self.folder();
        let mut command = Command::new(&programs.control_plane);
        command
            .current_dir(folder.path())
            .arg(format!("--environment={id}"))
            .arg(format!("--folder={}", folder.path().display()))
            .arg(format!("--etcd-endpoint={}", self.inner.etcd.endpoint()))
            .arg(format!("--etcd-prefix={}", Etcd::prefix(id)))
            // It puts both into its log, which has a bound.
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(template) = &programs.template {
            command.arg(format!("--template={}", template.display()));
        }
        let path = &programs.control_plane;
        let process = Process::start(&mut command, &self.inner.mark(id)).map_err(|error| {
            permanent(format!("`{}` cannot be started: {error}", path.display()))
        })?;
        limits::bound(process.record().pid)
            .map_err(|error| transient(format!("its control plane cannot be bounded: {error}")))?;
        Ok(process)
    }

    fn write_record(&self, process: &Process, ready: bool) -> Result<(), EngineError> {
        let profile = &self.environment.resolved.profile;
        let record = EnvironmentRecord {
            process: process.record(),
            etcd: self.inner.etcd.endpoint(),
            egress: profile.egress.clone(),
            sizes: profile.into(),
            ready,
        };
        self.folder()
            .write_record(&record)
            .map_err(|error| transient(format!("its record cannot be written: {error}")))
    }

    /// Waits until the API serves, and puts in what must be there before Ready.
    async fn contents(
        &self,
        manifests: &[Manifest],
        trouble: &Trouble,
    ) -> Result<Milliseconds, EngineError> {
        let began = Instant::now();
        let mut milliseconds = Vec::new();
        let api = self.connect(trouble).await?;
        milliseconds.push(("connected", began.elapsed().as_millis()));
        let [config_map, namespace] = build_facts::objects(self.environment);
        // The first change that is taken says that the API works, admission included.
        let path = format!(
            "/api/v1/namespaces/default/configmaps/{}",
            build_facts::CONFIG_MAP
        );
        until(trouble, || applied(&api, &path, &config_map)).await;
        crash::at(Point::FactsApplied);
        milliseconds.push(("served", began.elapsed().as_millis()));
        let rest = async {
            tokio::join!(
                until(trouble, || applied(
                    &api,
                    "/api/v1/namespaces/default",
                    &namespace
                )),
                until(trouble, || found(&api, DEFAULT_SERVICE_ACCOUNT)),
                until(trouble, || found(&api, "/readyz")),
            );
            Ok(())
        };
        tokio::try_join!(
            rest,
            manifests::apply(&api, Within::Cluster, manifests, trouble)
        )?;
        crash::at(Point::ManifestsApplied);
        milliseconds.push(("filled", began.elapsed().as_millis()));
        Ok(milliseconds)
    }

    async fn connect(&self, trouble: &Trouble) -> Result<ApiClient, EngineError> {
        let folder = self.folder();
        let own = upstream::read_own(&folder).map_err(|error| transient(error.to_string()))?;
        loop {
            match ApiClient::connect(
                &folder.api_socket(),
                &own.tls,
                own.server_name.clone(),
                &own.token,
            )
            .await
            {
                Ok(api) => return Ok(api),
                Err(error) => trouble.note(format!("its API server cannot be reached: {error}")),
            }
            tokio::time::sleep(Duration::from_millis(POLL_MILLISECONDS)).await;
        }
    }

    /// Makes it known as usable.
    fn finish(&self) -> Result<(), EngineError> {
        let upstream =
            upstream::read(&self.folder()).map_err(|error| transient(error.to_string()))?;
        let mut live = self.slot.live();
        let live = live
            .as_mut()
            .ok_or_else(|| transient("it ended while it was made"))?;
        self.write_record(&live.process, true)?;
        crash::at(Point::WholeRecorded);
        live.upstream = Some(Arc::new(upstream));
        Ok(())
    }
}

/// Repeats until it works; the caller bounds the time.
async fn until<F: Future<Output = Result<(), String>>>(
    trouble: &Trouble,
    mut attempt: impl FnMut() -> F,
) {
    while let Err(why) = attempt().await {
        trouble.note(why);
        tokio::time::sleep(Duration::from_millis(POLL_MILLISECONDS)).await;
    }
}

async fn applied(api: &ApiClient, path: &str, object: &Value) -> Result<(), String> {
    let answer = api
        .apply(path, object)
        .await
        .map_err(|error| error.to_string())?;
    if answer.is_success() {
        Ok(())
    } else {
        Err(answer.message())
    }
}

async fn found(api: &ApiClient, path: &str) -> Result<(), String> {
    let answer = api.get(path).await.map_err(|error| error.to_string())?;
    if answer.is_success() {
        Ok(())
    } else {
        Err(answer.message())
    }
}
