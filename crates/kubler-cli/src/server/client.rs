//! Calls to the server. Every call has a bound; tokens go into one header or one form field and nowhere else.

use std::time::Duration;

use kubler_api::{
    Approval, Approvals, CreateEnvironment, Differences, Drifts, Environment, Environments,
    GRANT_TOKEN_EXCHANGE, Health, IssuedToken, ReleaseEnvironment, TOKEN_TYPE_JWT, Tombstone,
    ledger, paths,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::RequestBuilder;
use ureq::http::header;
use ureq::tls::TlsConfig;
use ureq::typestate::WithoutBody;

use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome};
use crate::server::answers::{Peer, body, read, retrying, text, unreachable_server};

mod pods;

pub use pods::PendingPod;

/// Longest time for one call, beyond what it asks the server to wait.
pub const CALL_SECONDS_MAX: u64 = 10;
/// Most pods that are asked for.
const PODS_MAX: usize = 100;

/// Calls one server.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    server: Peer,
}

/// Who calls.
#[derive(Clone, Copy)]
pub enum Caller<'a> {
    /// Nobody in particular, or the holder of the client certificate.
    Connection,
    /// The holder of an identity token.
    Token(&'a SecretString),
}

/// Which environments.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// Pipeline id or slug.
    pub pipeline: Option<String>,
    /// Build number.
    pub build: Option<u64>,
    /// Job id.
    pub job: Option<String>,
    /// Commit.
    pub commit: Option<String>,
    /// Image.
    pub image: Option<String>,
    /// Phase.
    pub phase: Option<String>,
    /// Only what is not gone.
    pub remaining: bool,
}

/// Which records of the ledger.
#[derive(Debug)]
pub struct RecordsFilter<'a> {
    /// About this environment.
    pub environment: Option<&'a str>,
    /// Of this job.
    pub job: Option<&'a str>,
    /// From this sequence on.
    pub from: u64,
    /// At most so many.
    pub limit: usize,
}

impl Client {
    /// A client of `server`: `https://name:port`, whose CA comes from `ca`. Nothing is sent yet.
    pub fn new(server: &str, ca: Option<String>, tls: TlsConfig) -> Outcome<Self> {
        let has_host = server
            .strip_prefix("https://")
            .is_some_and(|rest| !rest.trim_start_matches('/').is_empty());
        if !has_host {
            return Err(
                Failure::usage(format!("`{server}` is not an https URL")).hint(
                    "give the server as `https://name:port`; tokens are not sent over plain http",
                ),
            );
        }
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("kubler/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            server: Peer {
                url: server.trim_end_matches('/').to_owned(),
                ca,
            },
        })
    }

    /// The server's URL, without a slash at its end.
    pub fn server(&self) -> &str {
        &self.server.url
    }

    /// Asks for an environment; repeats return the same one.
    pub fn create(
        &self,
        caller: Caller<'_>,
        request: &CreateEnvironment,
        deadline: Deadline,
    ) -> Outcome<Environment> {
        let bound = Duration::from_secs(CALL_SECONDS_MAX + request.wait_seconds);
        retrying(deadline, || {
            self.post(caller, paths::ENVIRONMENTS, request, deadline.within(bound))
        })
    }

    /// One environment.
    pub fn environment(
        &self,
        caller: Caller<'_>,
        id: &str,
        deadline: Deadline,
    ) -> Outcome<Environment> {
        retrying(deadline, || {
            self.get(caller, &paths::environment(&segment(id)), deadline)
        })
    }

    /// What differs in two environments.
    pub fn differences(
        &self,
        caller: Caller<'_>,
        id: &str,
        other: &str,
        deadline: Deadline,
    ) -> Outcome<Differences> {
        let path = paths::differences(&segment(id), &segment(other));
        retrying(deadline, || self.get(caller, &path, deadline))
    }

    /// What of an environment was found to be another than was made.
    pub fn drift(&self, caller: Caller<'_>, id: &str, deadline: Deadline) -> Outcome<Drifts> {
        let path = paths::drift(&segment(id));
        retrying(deadline, || self.get(caller, &path, deadline))
    }

    /// The environments the caller may see.
    pub fn environments(
        &self,
        caller: Caller<'_>,
        filter: &Filter,
        deadline: Deadline,
    ) -> Outcome<Environments> {
        let path = format!("{}{}", paths::ENVIRONMENTS, query(filter));
        retrying(deadline, || self.get(caller, &path, deadline))
    }

    /// Everything found by a pipeline, build, job, commit or environment.
    pub fn trace(
        &self,
        caller: Caller<'_>,
        anything: &str,
        deadline: Deadline,
    ) -> Outcome<Environments> {
        retrying(deadline, || {
            self.get(caller, &paths::trace(&segment(anything)), deadline)
        })
    }

    /// Approvals that are asked for.
    pub fn approvals(&self, caller: Caller<'_>, deadline: Deadline) -> Outcome<Approvals> {
        retrying(deadline, || self.get(caller, paths::APPROVALS, deadline))
    }

    /// Approves or refuses one request. One try: repeated, it would say that it was answered already.
    pub fn answer_approval(
        &self,
        caller: Caller<'_>,
        id: &str,
        approve: bool,
        deadline: Deadline,
    ) -> Outcome<Approval> {
        let id = segment(id);
        let path = if approve {
            paths::approve(&id)
        } else {
            paths::refuse(&id)
        };
        self.post(caller, &path, &serde_json::json!({}), deadline)
    }

    /// Proves life. One try: whoever renews knows when to try again.
    pub fn renew(
        &self,
        token: &SecretString,
        id: &str,
        deadline: Deadline,
    ) -> Outcome<Environment> {
        self.post(
            Caller::Token(token),
            &paths::renew(&segment(id)),
            &serde_json::json!({}),
            deadline,
        )
    }

    /// Ends an environment; repeats are harmless.
    pub fn release(
        &self,
        caller: Caller<'_>,
        id: &str,
        wait_seconds: u64,
        deadline: Deadline,
    ) -> Outcome<Environment> {
        let request = ReleaseEnvironment { wait_seconds };
        retrying(deadline, || {
            self.post(caller, &paths::release(&segment(id)), &request, deadline)
        })
    }

    /// What is known of a dead environment; `None` when it lives, or nobody knows it.
    pub fn tombstone(&self, id: &str, deadline: Deadline) -> Outcome<Option<Tombstone>> {
        match self.get(
            Caller::Connection,
            &paths::tombstone(&segment(id)),
            deadline,
        ) {
            Ok(tombstone) => Ok(Some(tombstone)),
            Err(failure) if failure.exit == Exit::Ended => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Exchanges an identity token for a session.
    pub fn exchange(
        &self,
        token: &SecretString,
        environment: &str,
        deadline: Deadline,
    ) -> Outcome<IssuedToken> {
        let form = [
            ("grant_type", GRANT_TOKEN_EXCHANGE),
            ("subject_token", token.expose_secret()),
            ("subject_token_type", TOKEN_TYPE_JWT),
            ("resource", environment),
        ];
        retrying(deadline, || {
            let request = self
                .agent
                .post(self.url(paths::TOKEN))
                .config()
                .timeout_global(Some(bound(deadline)?))
                .build();
            read(request.send_form(form), &self.server)
        })
    }

    /// The latest signed checkpoint.
    pub fn checkpoint(
        &self,
        caller: Caller<'_>,
        deadline: Deadline,
    ) -> Outcome<ledger::Checkpoint> {
        self.get(caller, paths::CHECKPOINT, deadline)
    }

    /// Records of the ledger, oldest first.
    pub fn records(
        &self,
        caller: Caller<'_>,
        filter: &RecordsFilter<'_>,
        deadline: Deadline,
    ) -> Outcome<ledger::Records> {
        let mut path = format!(
            "{}?from={}&limit={}",
            paths::LEDGER_RECORDS,
            filter.from,
            filter.limit
        );
        for (name, value) in [("environment", filter.environment), ("job", filter.job)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", segment(value)));
            }
        }
        retrying(deadline, || self.get(caller, &path, deadline))
    }

    /// The pods of an environment that wait for a node, at most `PODS_MAX`. `session` is the environment's.
    pub fn pending_pods(
        &self,
        session: &SecretString,
        environment: &str,
        deadline: Deadline,
    ) -> Outcome<Vec<PendingPod>> {
        let path = format!(
            "{}/api/v1/pods?fieldSelector=status.phase%3DPending&limit={PODS_MAX}",
            paths::gateway(&segment(environment))
        );
        let list: pods::PodList = retrying(deadline, || {
            self.get(Caller::Token(session), &path, deadline)
        })?;
        Ok(list.into())
    }

    /// How the server is, ready or not.
    pub fn health(&self, deadline: Deadline) -> Outcome<Health> {
        let mut response = self
            .asking(paths::READYZ, deadline)?
            .call()
            .map_err(|error| unreachable_server(&error, &self.server))?;
        body(&mut response, &self.server)
    }

    /// The server's metrics, in OpenMetrics; for operators.
    pub fn metrics(&self, deadline: Deadline) -> Outcome<String> {
        text(self.asking(paths::METRICS, deadline)?.call(), &self.server)
    }

    fn get<T: DeserializeOwned>(
        &self,
        caller: Caller<'_>,
        path: &str,
        deadline: Deadline,
    ) -> Outcome<T> {
        let mut request = self.asking(path, deadline)?;
        if let Caller::Token(token) = caller {
            request = request.header(header::AUTHORIZATION, bearer(token));
        }
        read(request.call(), &self.server)
    }

    /// A GET that says nothing of its caller yet.
    fn asking(&self, path: &str, deadline: Deadline) -> Outcome<RequestBuilder<WithoutBody>> {
        let request = self.agent.get(self.url(path)).config();
        Ok(request.timeout_global(Some(bound(deadline)?)).build())
    }

    fn post<T: DeserializeOwned>(
        &self,
        caller: Caller<'_>,
        path: &str,
        body: &impl Serialize,
        deadline: Deadline,
    ) -> Outcome<T> {
        let mut request = self
            .agent
            .post(self.url(path))
            .config()
            .timeout_global(Some(bound(deadline)?))
            .build();
        if let Caller::Token(token) = caller {
            request = request.header(header::AUTHORIZATION, bearer(token));
        }
        read(request.send_json(body), &self.server)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }
}

fn bound(deadline: Deadline) -> Outcome<Duration> {
    let left = deadline.left();
    if left.is_zero() {
        return Err(Failure::new(
            Exit::Unavailable,
            "the time for this operation is over",
        ));
    }
    Ok(left)
}

fn bearer(token: &SecretString) -> String {
    format!("Bearer {}", token.expose_secret())
}

/// `text` as one segment of a path.
fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut segment, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                segment.push(char::from(byte));
            } else {
                let _ = write!(segment, "%{byte:02X}");
            }
            segment
        })
}

fn query(filter: &Filter) -> String {
    let all = [
        ("pipeline", filter.pipeline.clone()),
        ("build", filter.build.map(|number| number.to_string())),
        ("job", filter.job.clone()),
        ("commit", filter.commit.clone()),
        ("image", filter.image.clone()),
        ("phase", filter.phase.clone()),
        ("remaining", filter.remaining.then(|| "true".to_owned())),
    ];
    let pairs: Vec<_> = all
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", segment(&value?))))
        .collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

#[cfg(test)]
mod tests;
