//! One environment with its API server behind a gateway, and a clock that stands still.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use jiff::Timestamp;
use kubler_core::configuration::Configuration;
use kubler_core::environment::{EndReason, Environment, Event, Site};
pub(super) use kubler_core::environment::{Phase as EnvironmentPhase, Scope as EnvironmentScope};
use kubler_core::identity::{Identity, Job, Named, Run, Runner, Source};
use kubler_core::ids::{EnvironmentId, SessionId};
use kubler_core::ledger::record::{Kind, Record};
use kubler_core::plan::Observed;
use kubler_core::profile::{EngineKind, Profile, ResolvedProfile};
use kubler_core::text::UntrustedText;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::upstream::TestUpstream;
use crate::approvals::Approvals;
use crate::clock::{Clock as _, ManualClock};
use crate::directory::Directory;
use crate::engine::{Engine, EngineError, Evidence, Upstream};
use crate::gateway::{Bounds, Gateway, GatewayParts};
use crate::ledger::Ledger;
use crate::policy::{Policies, read_set};
use crate::session::{NewSession, Sessions};
use crate::store::Store;

pub(super) const ORGANIZATION: &str = "01945ecf-0000-4000-8000-000000000001";

pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) clock: Arc<ManualClock>,
    pub(super) directory: Arc<Directory>,
    pub(super) policies: Arc<Policies>,
    pub(super) ledger: Ledger,
    pub(super) shutdown: CancellationToken,
    pub(super) upstream: TestUpstream,
    pub(super) gateway: Gateway,
    pub(super) approvals: Arc<Approvals>,
    pub(super) id: EnvironmentId,
    doors: CancellationToken,
    sessions: Arc<Sessions>,
    sessions_issued: std::sync::atomic::AtomicU8,
    token: std::sync::OnceLock<String>,
}

/// `seconds` after the tests' beginning of time.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// The nth job of one build.
pub(super) fn job(nth: u8) -> Identity {
    Identity {
        issuer: "https://agent.buildkite.com".into(),
        organization: Named {
            id: ORGANIZATION.into(),
            slug: "acme".into(),
        },
        project: Named {
            id: "01945ecf-0000-4000-8000-000000000002".into(),
            slug: "web".into(),
        },
        run: Run {
            id: "01945ecf-0000-4000-8000-000000000003".into(),
            number: 5,
            url: "https://buildkite.com/acme/web/builds/5".into(),
        },
        job: Job {
            id: format!("01945ecf-0000-4000-8000-0000000001{nth:02}"),
            step_key: None,
            url: format!("https://buildkite.com/acme/web/builds/5#job-{nth}"),
        },
        source: Source {
            branch: None,
            tag: None,
            commit: UntrustedText::new("HEAD"),
            trigger: "ui".into(),
        },
        runner: Runner {
            environment: "self-hosted".into(),
            ..Runner::default()
        },
    }
}

fn configuration() -> Configuration {
    serde_json::from_value(json!({
        "url": "https://localhost:8443",
        "issuers": [{ "kind": "buildkite", "audience": "kubler", "organizations": [{ "id": ORGANIZATION, "slug": "acme" }] }],
        "kubernetes": { "1.34": {} },
        "profiles": [{ "name": "ci-small", "kubernetes": "1.34", "request_bytes_max": 1000 }],
    }))
    .unwrap()
}

fn environment(id: EnvironmentId) -> Environment {
    let profile = configuration().profiles.remove(0);
    let resolved = ResolvedProfile {
        profile,
        kubernetes_version: "v1.34.4".into(),
        manifests: BTreeMap::new(),
    };
    let mut environment: Environment = serde_json::from_value(json!({
        "id": id, "name": "main", "scope": "job", "identity": job(1), "resolved": resolved, "digest": resolved.digest(),
        "phase": "requested", "created_at": at(0), "lease_end": at(300), "deadline": at(7200), "version": 0,
    }))
    .unwrap();
    for event in [Event::ProvisioningStarted, Event::BecameReady] {
        environment = environment.transition(event, at(2)).unwrap().unwrap();
    }
    environment
}

struct OneUpstream {
    upstream: Arc<Upstream>,
    site: Site,
}

#[async_trait]
impl Engine for OneUpstream {
    fn kind(&self) -> EngineKind {
        EngineKind::Local
    }
    fn site(&self) -> Site {
        self.site.clone()
    }
    async fn provision(&self, _: &Environment) -> Result<(), EngineError> {
        Ok(())
    }
    async fn observe(&self) -> Result<Vec<Observed>, EngineError> {
        Ok(Vec::new())
    }
    async fn remove(&self, _: EnvironmentId) -> Result<Evidence, EngineError> {
        Ok(Evidence::default())
    }
    fn upstream(&self, _: EnvironmentId) -> Option<Arc<Upstream>> {
        Some(Arc::clone(&self.upstream))
    }
    async fn changed(&self) {
        std::future::pending().await
    }
}

pub(super) fn records(ledger: &Ledger) -> Vec<Record> {
    let everything = crate::ledger::Query {
        limit: Some(1000),
        ..Default::default()
    };
    let read = ledger.read(&everything).unwrap().records.into_iter();
    read.map(|record| serde_json::from_value(record).unwrap())
        .collect()
}

impl World {
    /// As a reload does it: the set is read, and then put in force.
    pub(super) fn read_policies_anew(&self) {
        let folder = self.folder.path().join("policies");
        let set = read_set(&folder, &configuration()).unwrap();
        self.policies.replace(set);
    }

    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A world whose environment is changed before anybody sees it.
    pub(super) async fn with(change: impl FnOnce(&mut Environment)) -> Self {
        Self::made(tempfile::tempdir().unwrap(), Bounds::default(), change).await
    }

    /// A world whose API server is not the test's.
    pub(super) async fn in_front_of(upstream: Arc<Upstream>) -> Self {
        let mut world = Self::new().await;
        let folder = world.folder.path().join("other");
        std::fs::create_dir(&folder).unwrap();
        let parts = GatewayParts {
            directory: Arc::clone(&world.directory),
            sessions: Arc::clone(&world.sessions),
            policies: Arc::clone(&world.policies),
            ledger: world.ledger.clone(),
            store: open_store(&folder, &world.directory).await,
            approvals: Arc::clone(&world.approvals),
            engines: vec![Arc::new(OneUpstream {
                upstream,
                site: Site::Here,
            })],
            clock: Arc::clone(&world.clock) as _,
            shutdown: world.shutdown.clone(),
        };
        world.gateway = Gateway::new(parts);
        world
    }

    /// A world with small bounds: nobody waits long, and four answers may go on at once.
    pub(super) async fn narrow() -> Self {
        let bounds = Bounds {
            open_max: 4,
            answer_max: Duration::from_millis(200),
            silence_max: Duration::from_millis(100),
            ..Bounds::default()
        };
        Self::made(tempfile::tempdir().unwrap(), bounds, |_| {}).await
    }

    /// A world with bounds and a profile of its own.
    pub(super) async fn bounded(bounds: Bounds, change: impl FnOnce(&mut Profile)) -> Self {
        let change = |environment: &mut Environment| change(&mut environment.resolved.profile);
        Self::made(tempfile::tempdir().unwrap(), bounds, change).await
    }

    async fn made(
        folder: tempfile::TempDir,
        bounds: Bounds,
        change: impl FnOnce(&mut Environment),
    ) -> Self {
        let clock = Arc::new(ManualClock::new(at(10)));
        let directory = Arc::new(Directory::new(at(0)));
        let policies = folder.path().join("policies");
        std::fs::create_dir(&policies).unwrap();
        for (name, text) in kubler_core::policy::starter(ORGANIZATION, "acme") {
            std::fs::write(policies.join(name), text).unwrap();
        }
        let policies = Arc::new(Policies::new(
            read_set(&policies, &configuration()).unwrap(),
        ));
        let ledger = open_ledger(folder.path(), &clock);
        let sessions = Arc::new(
            Sessions::open(&folder.path().join("sessions"), Arc::clone(&clock) as _).unwrap(),
        );
        let counted = ledger.clone();
        let upstream = TestUpstream::start(folder.path(), move || records(&counted).len());
        let shutdown = CancellationToken::new();
        let id = EnvironmentId::from_random([7; 16]);
        let mut environment = environment(id);
        change(&mut environment);
        environment.digest = environment.resolved.digest();
        let approvals = Arc::default();
        let parts = GatewayParts {
            directory: Arc::clone(&directory),
            sessions: Arc::clone(&sessions),
            policies: Arc::clone(&policies),
            ledger: ledger.clone(),
            store: open_store(folder.path(), &directory).await,
            approvals: Arc::clone(&approvals),
            engines: vec![Arc::new(OneUpstream {
                upstream: Arc::clone(&upstream.upstream),
                site: environment.site().unwrap(),
            })],
            clock: Arc::clone(&clock) as _,
            shutdown: shutdown.clone(),
        };
        let gateway = Gateway::with_bounds(parts, bounds);
        directory.put(environment);
        let sessions_issued = std::sync::atomic::AtomicU8::new(0);
        Self {
            folder,
            clock,
            directory,
            policies,
            ledger,
            shutdown,
            upstream,
            gateway,
            approvals,
            id,
            doors: CancellationToken::new(),
            sessions,
            sessions_issued,
            token: std::sync::OnceLock::new(),
        }
    }

    /// A session of the environment's own job that ends `seconds` after the beginning of time.
    pub(super) fn session(&self, seconds: i64) -> String {
        self.session_of(job(1), seconds)
    }

    /// One session that lives long, the same each time.
    pub(super) fn token(&self) -> &str {
        self.token.get_or_init(|| self.session(100_000))
    }

    pub(super) fn session_of(&self, identity: Identity, seconds: i64) -> String {
        let nth = self
            .sessions_issued
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let new = NewSession {
            id: SessionId::from_random([nth; 16]),
            environment: self.id,
            identity,
            issued_at: at(0),
            expires_at: at(seconds),
        };
        self.sessions.issue(new).unwrap().expose_secret().to_owned()
    }

    /// A request to the environment, with a session that lives long.
    pub(super) fn request(&self, method: &str, below: &str) -> http::request::Builder {
        let token = self.session(100_000);
        Request::builder()
            .method(method)
            .uri(format!("/k8s/{}{below}", self.id))
            .header("authorization", format!("Bearer {token}"))
    }

    pub(super) async fn send(&self, request: http::request::Builder) -> Response<Body> {
        self.send_with(request, "").await
    }

    pub(super) async fn send_with(
        &self,
        request: http::request::Builder,
        body: &'static str,
    ) -> Response<Body> {
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        self.gateway
            .handle(
                request.body(Full::<bytes::Bytes>::from(body)).unwrap(),
                peer,
            )
            .await
    }

    /// A body that comes in pieces, with no length told.
    pub(super) async fn send_pieces(
        &self,
        request: http::request::Builder,
        pieces: Vec<bytes::Bytes>,
    ) -> Response<Body> {
        let pieces = pieces.into_iter().map(Ok::<_, std::convert::Infallible>);
        let body = Body::from_stream(tokio_stream::iter(pieces));
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        self.gateway.handle(request.body(body).unwrap(), peer).await
    }

    pub(super) async fn get(&self, below: &str) -> Response<Body> {
        self.send(self.request("GET", below)).await
    }

    /// Changes the environment as the store would.
    pub(super) fn change(&self, change: impl FnOnce(&mut Environment)) {
        let mut environment = (*self.directory.get(self.id).unwrap()).clone();
        environment.version += 1;
        change(&mut environment);
        self.directory.put(environment);
    }

    pub(super) fn release(&self, reason: EndReason) {
        let environment = self.directory.get(self.id).unwrap();
        let next = environment
            .transition(Event::ReleaseRequested(reason), self.clock.now())
            .unwrap()
            .unwrap();
        self.directory.put(next);
    }

    /// A door in front of the gateway for clients that need a connection of their own.
    pub(super) async fn door(&self) -> SocketAddr {
        self.door_behind(|stream| std::future::ready(Some(stream)))
            .await
    }

    /// The same for clients that show their session over TLS only.
    pub(super) async fn secure_door(&self) -> SocketAddr {
        let acceptor = tokio_rustls::TlsAcceptor::from(super::upstream::certificate().0);
        self.door_behind(move |stream| {
            let accepting = acceptor.accept(stream);
            async move { accepting.await.ok() }
        })
        .await
    }

    async fn door_behind<S, F>(
        &self,
        shake: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> SocketAddr
    where
        F: Future<Output = Option<S>> + Send + 'static,
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (gateway, shutdown) = (self.gateway.clone(), self.doors.clone());
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (gateway, shaking) = (gateway.clone(), shake(stream));
                tokio::spawn(async move {
                    let Some(stream) = shaking.await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        let gateway = gateway.clone();
                        async move {
                            let answer = gateway.handle(request, peer.ip()).await;
                            Ok::<_, std::convert::Infallible>(answer)
                        }
                    });
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server
                        .serve_connection(stream, service)
                        .with_upgrades()
                        .await;
                });
            }
        }));
        address
    }

    pub(super) fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Nothing more can be recorded.
    pub(super) fn fill_the_ledger(&self) {
        self.ledger.fill();
    }

    /// The outcome of the connection whose protocol was changed.
    pub(super) async fn outcome_of_connection(&self) -> kubler_core::ledger::record::Outcome {
        let outcomes = || {
            let ends = records(&self.ledger).into_iter();
            ends.filter_map(|record| record.body.outcome)
        };
        let is_it = |outcome: &kubler_core::ledger::record::Outcome| outcome.upgraded.is_some();
        eventually(|| outcomes().any(|outcome| is_it(&outcome))).await;
        outcomes().find(is_it).unwrap()
    }

    /// The outcome of the nth forwarded request, when it has one.
    pub(super) async fn outcome(&self) -> kubler_core::ledger::record::Outcome {
        let ended = || {
            records(&self.ledger)
                .into_iter()
                .rfind(|record| record.body.kind == Kind::End)
        };
        eventually(|| ended().is_some()).await;
        ended().unwrap().body.outcome.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.doors.cancel();
    }
}

async fn open_store(folder: &std::path::Path, directory: &Arc<Directory>) -> Arc<Store> {
    let limits = kubler_core::configuration::Limits::default();
    let store = Store::open(&folder.join("store.db"), Arc::clone(directory), limits).await;
    Arc::new(store.unwrap())
}

pub(super) fn open_ledger(folder: &std::path::Path, clock: &Arc<ManualClock>) -> Ledger {
    let settings = kubler_core::configuration::Ledger::default();
    Ledger::open(
        &folder.join("ledger"),
        "test/ledger",
        &settings,
        Arc::<ManualClock>::clone(clock),
    )
    .unwrap()
}

/// Waits until something is so.
pub(super) async fn eventually(mut is_so: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(tokio::time::Instant::now() < limit, "it never came to be");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Status and body of a complete answer.
pub(super) async fn read(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
    )
}

/// The next bytes of an answer; `None` at its end.
pub(super) async fn next_bytes(body: &mut Body) -> Option<Result<bytes::Bytes, axum::Error>> {
    let frame = tokio::time::timeout(Duration::from_secs(5), body.frame())
        .await
        .expect("something comes");
    frame.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
}

/// The same as text.
pub(super) async fn next(body: &mut Body) -> Option<Result<String, axum::Error>> {
    let bytes = next_bytes(body).await;
    bytes.map(|bytes| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
}
