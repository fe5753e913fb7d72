//! The engine on the real programs. Each test has an engine of its own, with an etcd of its own.

mod bounded;
mod doors;
mod ending;
mod making;
mod ready;
mod resisting;
mod sizes;
mod walls;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex as StdMutex;

use jiff::Timestamp;
use kubler_core::environment::{Phase, Scope};
use kubler_core::identity::{Identity, Job, Named, Run, Runner, Source};
use kubler_core::ledger::record::Body;
use kubler_core::plan::Condition;
use kubler_core::profile::{Profile, ResolvedProfile};
use kubler_core::text::UntrustedText;
use serde_json::Value;

use super::api::ApiClient;
use super::*;
use crate::clock::SystemClock;
use crate::config::Surroundings;
use crate::engine::api::Api as _;

const VERSION: &str = "1.34";
/// How long the tests wait for anything, in seconds.
const WAIT_SECONDS: u64 = 60;
/// How often engines of tests look at sizes, in milliseconds.
const SAMPLE_MILLISECONDS: u64 = 200;

/// A folder with an engine; whatever lives when it is dropped is ended.
struct Place {
    folder: tempfile::TempDir,
    records: Arc<StdMutex<Vec<Body>>>,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::Builder::new()
                .prefix("kubler-engine-")
                .tempdir()
                .unwrap(),
            records: Arc::default(),
        }
    }

    async fn engine(&self) -> Arc<LocalEngine> {
        self.engine_with(|_| {}).await
    }

    /// An engine with other settings than usual.
    async fn engine_with(&self, change: impl FnOnce(&mut LocalSettings)) -> Arc<LocalEngine> {
        let surroundings = Surroundings::read();
        let find = || -> Result<_, binaries::BinariesError> {
            let programs = Programs::find(VERSION, None, &surroundings)?;
            let etcd = binaries::find_etcd(&[], &surroundings)?;
            Ok(Binaries {
                versions: [(VERSION.to_owned(), programs)].into(),
                etcd,
            })
        };
        let found = find().unwrap_or_else(|error| panic!("{error}; {}", error.hint()));
        let records = Arc::clone(&self.records);
        let recorder: Recorder = Arc::new(move |body| {
            records.lock().unwrap().push(body);
            Box::pin(std::future::ready(true))
        });
        let mut settings = LocalSettings::new(&self.folder.path().join("local"), found);
        settings.sample_every = Duration::from_millis(SAMPLE_MILLISECONDS);
        change(&mut settings);
        LocalEngine::start_with(settings, Arc::new(SystemClock), recorder)
            .await
            .unwrap()
    }

    /// Process ids and subjects of everything that carries the installation's mark.
    fn processes(&self) -> Vec<(i32, String)> {
        let Ok(installation) = fs::read_to_string(self.folder.path().join("local/installation"))
        else {
            return Vec::new();
        };
        process::subjects(&installation)
    }

    /// What is left of an environment, looked for without the engine's own means where that is possible.
    async fn leftovers(&self, engine: &LocalEngine, id: EnvironmentId) -> Vec<String> {
        let mut left: Vec<_> = self
            .processes()
            .into_iter()
            .filter(|(_, subject)| *subject == id.to_string())
            .map(|(pid, _)| format!("process {pid}"))
            .collect();
        let folder = self.folder.path().join("local/run").join(id.to_string());
        left.extend(
            folder
                .exists()
                .then(|| format!("file {}", folder.display())),
        );
        // Whether its file is there or not. The other socket is the engine's own, closed a moment later.
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        left.extend(
            sockets
                .lines()
                .filter(|line| line.ends_with(&format!("{id}/api.sock")))
                .map(|line| format!("socket {line}")),
        );
        let traces = engine.inner.etcd.traces(id).await.unwrap();
        left.extend((traces.keys != 0).then(|| format!("key: {}", traces.keys)));
        left.extend(traces.user.then(|| "user".to_owned()));
        left.extend(traces.role.then(|| "role".to_owned()));
        left.extend(engine.inner.groups.exists(id).then(|| "group".to_owned()));
        left
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Twice: etcd's supervisor may just be starting another one.
        for _ in 0..2 {
            for (pid, _) in self.processes() {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid).unwrap(),
                    rustix::process::Signal::KILL,
                );
            }
        }
        self.sweep_groups();
    }
}

impl Place {
    /// Empty control groups, which nobody else would ever take away.
    fn sweep_groups(&self) {
        let Ok(name) = fs::read_to_string(self.folder.path().join("local/installation")) else {
            return;
        };
        let groups = Groups::open(name.trim());
        let bound = std::time::Instant::now() + Duration::from_secs(2);
        while groups.sweep().is_err() && std::time::Instant::now() < bound {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn environment(number: u8) -> Environment {
    let now = SystemClock.now();
    let named = |text: &str| Named {
        id: format!("{text}-id"),
        slug: text.into(),
    };
    let profile: Profile =
        serde_json::from_value(serde_json::json!({"name": "ci-small", "kubernetes": VERSION}))
            .unwrap();
    let resolved = ResolvedProfile {
        profile,
        kubernetes_version: "v1.34.4".into(),
        manifests: BTreeMap::default(),
    };
    Environment {
        id: EnvironmentId::from_random(crate::entropy::random_bytes().unwrap()),
        name: format!("test-{number}"),
        scope: Scope::Job,
        identity: Identity {
            issuer: "https://issuer.test".into(),
            organization: named("acme"),
            project: named("web"),
            run: Run {
                id: "build-id".into(),
                number: 42,
                url: "https://ci.test/acme/web/builds/42".into(),
            },
            job: Job {
                id: format!("job-{number}"),
                step_key: Some(UntrustedText::new("e2e")),
                url: "https://ci.test/j".into(),
            },
            source: Source {
                branch: Some(UntrustedText::new("mallory:feature/$(rm -rf)\n\u{1b}[31m")),
                tag: None,
                commit: UntrustedText::new("0123456789abcdef"),
                trigger: "webhook".into(),
            },
            runner: Runner::default(),
        },
        digest: resolved.digest(),
        resolved,
        placement: None,
        phase: Phase::Provisioning,
        reason: None,
        created_at: now,
        ready_at: None,
        lease_end: later(now, 300),
        deadline: later(now, 7200),
        dead_at: None,
        gone_at: None,
        version: 1,
    }
}

fn later(now: Timestamp, seconds: u64) -> Timestamp {
    kubler_core::lease::after(now, Duration::from_secs(seconds))
}

/// A client with the job's credential.
async fn job_client(engine: &LocalEngine, id: EnvironmentId) -> ApiClient {
    let upstream = engine.upstream(id).expect("an upstream");
    client_of(&upstream, &upstream.token).await
}

/// A client of the same server with another credential.
async fn client_of(upstream: &Upstream, token: &crate::engine::Bearer) -> ApiClient {
    let crate::engine::UpstreamAddress::Unix(socket) = &upstream.address else {
        panic!("not a socket")
    };
    ApiClient::connect(socket, &upstream.tls, upstream.server_name.clone(), token)
        .await
        .unwrap()
}

fn bearer(token: String) -> crate::engine::Bearer {
    crate::engine::Bearer::new(&token.into()).unwrap()
}

async fn condition(engine: &LocalEngine, id: EnvironmentId) -> Option<Condition> {
    let observed = engine.observe().await.unwrap();
    observed
        .into_iter()
        .find(|found| found.id == id)
        .map(|found| found.condition)
}

async fn ids(engine: &LocalEngine) -> BTreeSet<EnvironmentId> {
    engine
        .observe()
        .await
        .unwrap()
        .into_iter()
        .map(|found| found.id)
        .collect()
}

/// Waits until `attempt` gives something.
async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let found = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(WAIT_SECONDS), found)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
