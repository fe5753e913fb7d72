//! A stand-in for the Buildkite service: the Agent API over HTTP and the OIDC issuer over HTTPS, both
//! on loopback, as strict as the real ones.
//!
//! ```no_run
//! # use kubler_testkit::buildkite::{Buildkite, OidcRequest};
//! let buildkite = Buildkite::start();
//! let job = buildkite.build("app").branch("main").start().job("test").run();
//! let token = job.oidc_token(&OidcRequest::for_kubler("https://kubler.test"));
//! ```

mod agent_api;
mod build;
mod faults;
mod forge;
mod issuer;
mod keys;
mod oidc;
mod record;
mod refusal;
mod shared;
mod webhook;
mod world;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::runtime::Runtime;
use uuid::Uuid;

pub use build::{Build, BuildDraft, Job, JobDraft, WaitedInVain};
pub use faults::{ApiFault, IssuerFault, OidcAnswer};
pub use forge::{Signature, TokenDraft};
pub use oidc::{OIDC_LIFETIME_SECONDS_DEFAULT, OIDC_LIFETIME_SECONDS_MAX, OidcRequest};
pub use record::{
    Annotation, AnnotationScope, BuildRecord, JobRecord, JobState, Mint, Organization, Pipeline,
    Timeline,
};
pub use refusal::Refusal;
pub use webhook::{Delivery, Webhook, WebhookEvent};

use issuer::IssuerTls;
use keys::{KeyRing, SigningKey};
use shared::Shared;
use world::{Settings, World};

/// The real service: three minutes without a heartbeat, then marked within the next sixty seconds.
pub const HEARTBEAT_TIMEOUT_REAL: Duration = Duration::from_mins(4);

/// What to start; see [`Buildkite::builder`].
#[must_use]
pub struct Builder {
    organizations: Vec<Organization>,
    settings: Settings,
}

impl Builder {
    /// Adds an organization with its pipelines. Without any there is `acme` with `app` and `docs`.
    pub fn organization(mut self, slug: &str, pipelines: &[&str]) -> Self {
        self.organizations.push(organization(slug, pipelines));
        self
    }

    /// How long after its last heartbeat an agent is given up and its job ends.
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Self {
        self.settings.heartbeat_timeout =
            SignedDuration::try_from(timeout).expect("a time-out of sane length");
        self
    }

    /// Seconds between two heartbeats of an agent; at least 1. 1 is what is set without this call.
    pub fn heartbeat_interval_seconds(mut self, seconds: u64) -> Self {
        self.settings.heartbeat_interval_seconds = seconds.max(1);
        self
    }

    /// Seconds between two looks of an agent at the state of its job; at least 1, as without this call.
    pub fn job_status_interval_seconds(mut self, seconds: u64) -> Self {
        self.settings.job_status_interval_seconds = seconds.max(1);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Buildkite {
        if self.organizations.is_empty() {
            self.organizations
                .push(organization("acme", &["app", "docs"]));
        }
        Buildkite::with(self)
    }
}

/// The running stand-in. It ends when this value is dropped.
pub struct Buildkite {
    shared: Shared,
    issuer_url: String,
    ca_pem: String,
    agent_endpoint: String,
    runtime: Option<Runtime>,
}

impl Buildkite {
    /// Starts one with the organization `acme`, its pipelines `app` and `docs`, and the real heartbeat time-out.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Says what to start.
    pub fn builder() -> Builder {
        let settings = Settings {
            heartbeat_timeout: SignedDuration::try_from(HEARTBEAT_TIMEOUT_REAL).expect("it fits"),
            ping_interval_seconds: 1,
            job_status_interval_seconds: 1,
            heartbeat_interval_seconds: 1,
        };
        Builder {
            organizations: Vec::new(),
            settings,
        }
    }

    fn with(builder: Builder) -> Self {
        let issuer_listener = loopback_listener();
        let issuer_url = format!(
            "https://{}",
            issuer_listener.local_addr().expect("an address")
        );
        let api_listener = loopback_listener();
        let agent_endpoint = format!(
            "http://{}/v3",
            api_listener.local_addr().expect("an address")
        );
        let tls = IssuerTls::generate();
        let shared = Shared::new(World {
            settings: builder.settings,
            organizations: builder.organizations,
            builds: BTreeMap::new(),
            jobs: BTreeMap::new(),
            agents: BTreeMap::new(),
            keys: KeyRing::new(),
            faults: faults::Faults::default(),
            issuer_url: issuer_url.clone(),
            agent_endpoint: agent_endpoint.clone(),
            jwks_requests: 0,
            discovery_requests: 0,
        });
        // A runtime of its own: a test that blocks its thread on a child process must not stop us.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("standin-buildkite")
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.spawn(shared.sweep());
        runtime.spawn(issuer::serve(issuer_listener, tls.config(), shared.clone()));
        runtime.spawn(agent_api::serve(api_listener, shared.clone()));
        Self {
            shared,
            issuer_url,
            ca_pem: tls.ca_pem,
            agent_endpoint,
            runtime: Some(runtime),
        }
    }

    /// `iss` of its tokens, `https://127.0.0.1:PORT`.
    pub fn issuer_url(&self) -> &str {
        &self.issuer_url
    }

    /// The certificate authority of the issuer, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// `BUILDKITE_AGENT_ENDPOINT`, `http://127.0.0.1:PORT/v3`.
    pub fn agent_endpoint(&self) -> &str {
        &self.agent_endpoint
    }

    /// An organization by its slug.
    pub fn organization(&self, slug: &str) -> Organization {
        self.shared.look(|world| {
            let found = world
                .organizations
                .iter()
                .find(|organization| organization.slug == slug);
            found
                .unwrap_or_else(|| panic!("no organization `{slug}`"))
                .clone()
        })
    }

    /// The organization that was declared first.
    pub fn first_organization(&self) -> Organization {
        self.shared.look(|world| world.organizations[0].clone())
    }

    /// The webhook that the service would send now for this job, or for its agent or build; to be signed and sent.
    pub fn webhook(&self, event: WebhookEvent, job: &Job) -> Webhook {
        self.shared
            .look(|world| Webhook::new(world, event, job.id()))
    }

    /// A pipeline by `PIPELINE` (of the first organization) or `ORGANIZATION/PIPELINE`.
    pub fn pipeline(&self, path: &str) -> Pipeline {
        self.shared
            .look(|world| world.find_pipeline(path).1.clone())
    }

    /// A new build of a pipeline; named as in [`Buildkite::pipeline`].
    pub fn build(&self, pipeline: &str) -> BuildDraft {
        BuildDraft::new(self.shared.clone(), pipeline)
    }

    /// Signs with a new key from now on; the former ones stay published.
    pub fn rotate_keys(&self) {
        let next = SigningKey::generate();
        self.shared.change(|world, _| world.keys.rotate(next));
    }

    /// Publishes only the key that signs now.
    pub fn retire_previous_keys(&self) {
        self.shared.change(|world, _| world.keys.retire_previous());
    }

    /// The key list as it is published now.
    pub fn jwks(&self) -> serde_json::Value {
        self.shared.look(|world| world.keys.jwks())
    }

    /// The key that signs now, in PEM.
    pub fn public_key_pem(&self) -> String {
        self.shared.look(|world| world.keys.current().public_pem())
    }

    /// How often the key list was asked for.
    pub fn jwks_requests(&self) -> u64 {
        self.shared.look(|world| world.jwks_requests)
    }

    /// How often the discovery document was asked for.
    pub fn discovery_requests(&self) -> u64 {
        self.shared.look(|world| world.discovery_requests)
    }

    /// Lets the issuer fail in this way from now on.
    pub fn issuer_fault(&self, fault: IssuerFault) {
        self.shared.change(|world, _| world.faults.issuer = fault);
    }

    /// Lets every route of the Agent API fail in this way from now on.
    pub fn api_fault(&self, fault: ApiFault) {
        self.shared.change(|world, _| world.faults.api = fault);
    }

    /// Answers the next requests for an OIDC token with this audience from the list, then as the rules say.
    pub fn answer_oidc(&self, audience: &str, answers: impl IntoIterator<Item = OidcAnswer>) {
        let answers = answers.into_iter().collect();
        self.shared
            .change(|world, _| world.faults.oidc_answers.insert(audience.into(), answers));
    }
}

impl Drop for Buildkite {
    fn drop(&mut self) {
        // Not from within an async test's own runtime by blocking: that would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn loopback_listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener
        .set_nonblocking(true)
        .expect("a socket that does not block");
    listener
}

fn organization(slug: &str, pipelines: &[&str]) -> Organization {
    let pipelines = pipelines.iter().map(|slug| Pipeline {
        id: Uuid::now_v7(),
        slug: (*slug).into(),
    });
    Organization {
        id: Uuid::now_v7(),
        slug: slug.into(),
        cluster_id: Uuid::now_v7(),
        cluster_name: "Default cluster".into(),
        queue_id: Uuid::now_v7(),
        queue_key: "default".into(),
        registration_token: format!("bkct_{}", Uuid::new_v4().simple()),
        pipelines: pipelines.collect(),
    }
}

fn job_token() -> String {
    format!("bkaj_{}", Uuid::new_v4().simple())
}
