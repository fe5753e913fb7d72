//! Calls to the server. Every call has a bound; tokens go into one header or one form field and nowhere else.

use std::time::Duration;

use kubler_api::error::{ErrorCode, Problem};
use kubler_api::{
    CreateEnvironment, Differences, Environment, Environments, GRANT_TOKEN_EXCHANGE, Health,
    IssuedToken, ReleaseEnvironment, TOKEN_TYPE_JWT, Tombstone, ledger, paths,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::TlsConfig;

use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome, Retry};
use crate::output;

mod pods;

pub use pods::PendingPod;

/// Longest time for one call, beyond what it asks the server to wait.
pub const CALL_SECONDS_MAX: u64 = 10;
/// Largest answer.
const ANSWER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most pods that are asked for.
const PODS_MAX: usize = 100;
/// First pause before another try, in milliseconds; doubled each time.
const RETRY_MILLISECONDS_MIN: u64 = 100;
/// Longest pause before another try, in milliseconds.
const RETRY_MILLISECONDS_MAX: u64 = 5_000;

/// Calls one server.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    server: String,
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
    /// A client of `server`: `https://name:port`. Nothing is sent yet.
    pub fn new(server: &str, tls: TlsConfig) -> Outcome<Self> {
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
            server: server.trim_end_matches('/').to_owned(),
        })
    }

    /// The server's URL, without a slash at its end.
    pub fn server(&self) -> &str {
        &self.server
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
        let request = self
            .agent
            .get(self.url(paths::READYZ))
            .config()
            .timeout_global(Some(bound(deadline)?))
            .build();
        let mut response = request
            .call()
            .map_err(|error| unreachable_server(&error, &self.server))?;
        body(&mut response, &self.server)
    }

    fn get<T: DeserializeOwned>(
        &self,
        caller: Caller<'_>,
        path: &str,
        deadline: Deadline,
    ) -> Outcome<T> {
        let mut request = self
            .agent
            .get(self.url(path))
            .config()
            .timeout_global(Some(bound(deadline)?))
            .build();
        if let Caller::Token(token) = caller {
            request = request.header(header::AUTHORIZATION, bearer(token));
        }
        read(request.call(), &self.server)
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

/// Tries again while that can help and time is left, and returns the last failure.
pub fn retrying<T>(deadline: Deadline, mut call: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    let mut pause = Duration::from_millis(RETRY_MILLISECONDS_MIN);
    let mut has_said_so = false;
    loop {
        let failure = match call() {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        let wait = match failure.retry {
            Retry::Never => return Err(failure),
            Retry::Soon => pause,
            Retry::After(seconds) => Duration::from_secs(seconds).max(pause),
        };
        if wait >= deadline.left() {
            return Err(failure);
        }
        // Once it takes longer than a moment: whoever waits wants to know for what.
        if pause > Duration::from_millis(RETRY_MILLISECONDS_MIN)
            && !std::mem::replace(&mut has_said_so, true)
        {
            let left = deadline.left().as_secs();
            output::remark(&format!(
                "kubler: {}; trying again for up to {left} s",
                failure.message
            ));
        }
        std::thread::sleep(wait);
        pause = (pause * 2).min(Duration::from_millis(RETRY_MILLISECONDS_MAX));
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

fn read<T: DeserializeOwned>(
    response: Result<Response<ureq::Body>, ureq::Error>,
    server: &str,
) -> Outcome<T> {
    let mut response = response.map_err(|error| unreachable_server(&error, server))?;
    if response.status().is_success() {
        return body(&mut response, server);
    }
    let retry_after = retry_after(response.headers());
    let status = response.status();
    let text = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_string()
        .unwrap_or_default();
    Err(refusal(status, &text, retry_after, server))
}

fn body<T: DeserializeOwned>(response: &mut Response<ureq::Body>, server: &str) -> Outcome<T> {
    response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_json()
        .map_err(|error| match error {
            ureq::Error::Json(error) => Failure::new(
                Exit::Failed,
                format!("`{server}` gave an answer that cannot be read: {error}"),
            )
            .hint("is it a kubler-server, and of a version that fits? `kubler doctor` compares"),
            other => unreachable_server(&other, server),
        })
}

/// An answer that is not a success. Only a kubler-server's own problem is trusted to say more than its status.
fn refusal(status: StatusCode, text: &str, retry_after: Option<u64>, server: &str) -> Failure {
    if let Ok(problem) = serde_json::from_str::<Problem>(text) {
        return Failure::problem(problem, retry_after);
    }
    let code = match status.as_u16() {
        401 => Some(ErrorCode::Unauthenticated),
        403 => Some(ErrorCode::Denied),
        429 => Some(ErrorCode::TooMany),
        502..=504 => Some(ErrorCode::Unavailable),
        _ => None,
    };
    match code {
        Some(code) => Failure {
            code: None,
            ..Failure::problem(
                Problem {
                    kind: String::new(),
                    title: String::new(),
                    status: status.as_u16(),
                    code,
                    detail: format!("`{server}` answered {status}"),
                    hint: code.next_step().to_owned(),
                    request_id: String::new(),
                },
                retry_after,
            )
        },
        None => Failure::new(Exit::Failed, format!("`{server}` answered {status}"))
            .hint("is it a kubler-server? `kubler doctor` looks"),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Why no answer came.
fn unreachable_server(error: &ureq::Error, server: &str) -> Failure {
    let failure = |reason: String, hint: &str| {
        Failure::new(
            Exit::Unavailable,
            format!("cannot reach `{server}`: {reason}"),
        )
        .hint(hint)
        .retry(Retry::Soon)
    };
    let no_such_name = || {
        failure(
            "its name cannot be resolved".to_owned(),
            "check `--server` (or `KUBLER_SERVER`) and this machine's DNS",
        )
    };
    match error {
        ureq::Error::Rustls(error) => untrusted(error, server),
        ureq::Error::Io(io) => match io
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(error) => untrusted(error, server),
            None if io.to_string().contains("lookup address") => no_such_name(),
            None => failure(
                io.to_string(),
                "is the server running, and may this machine connect to it?",
            ),
        },
        ureq::Error::HostNotFound => no_such_name(),
        ureq::Error::Timeout(_) => failure(
            "it did not answer in time".to_owned(),
            "try again; `kubler doctor` measures",
        ),
        ureq::Error::ConnectProxyFailed(reason) => failure(
            format!("the proxy refused: {reason}"),
            "check `HTTPS_PROXY` and `NO_PROXY`",
        ),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Failure::usage(format!("`{server}` is not a URL"))
                .hint("give the server as `https://name:port`")
        }
        other => failure(other.to_string(), "`kubler doctor` looks closer"),
    }
}

fn untrusted(error: &rustls::Error, server: &str) -> Failure {
    let hint = match error {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
        ) => {
            "name the server's CA with `--ca FILE` or `KUBLER_CA`; `kubler-server init` writes it to `tls/ca.pem`"
        }
        rustls::Error::InvalidCertificate(_) => {
            "use the name that stands in the server's certificate, and check this machine's clock"
        }
        rustls::Error::AlertReceived(_) => "the server did not accept this client's certificate",
        _ => "is it a TLS server?",
    };
    Failure::new(
        Exit::Unavailable,
        format!("no trusted connection to `{server}`: {error}"),
    )
    .hint(hint)
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
