//! Answers of the server: what a success says, why there was none, and whether another try can help.

use std::time::Duration;

use kubler_api::error::{ErrorCode, Problem};
use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response, StatusCode, header};

use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome, Retry};
use crate::output;

/// Largest answer.
const ANSWER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// First pause before another try, in milliseconds; doubled each time.
const RETRY_MILLISECONDS_MIN: u64 = 100;
/// Longest pause before another try, in milliseconds.
const RETRY_MILLISECONDS_MAX: u64 = 5_000;

/// Whom a client calls.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its URL, without a slash at its end.
    pub url: String,
    /// Where the CA comes from that is believed instead of the system's, for messages.
    pub ca: Option<String>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.url)
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

/// What a success says.
pub(super) fn read<T: DeserializeOwned>(
    response: Result<Response<ureq::Body>, ureq::Error>,
    server: &Peer,
) -> Outcome<T> {
    body(&mut success(response, server)?, server)
}

/// The text of an answer.
pub(super) fn text(
    response: Result<Response<ureq::Body>, ureq::Error>,
    server: &Peer,
) -> Outcome<String> {
    success(response, server)?
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_string()
        .map_err(|error| unreachable_server(&error, server))
}

fn success(
    response: Result<Response<ureq::Body>, ureq::Error>,
    server: &Peer,
) -> Outcome<Response<ureq::Body>> {
    let mut response = response.map_err(|error| unreachable_server(&error, server))?;
    if response.status().is_success() {
        return Ok(response);
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

/// An answer's JSON.
pub(super) fn body<T: DeserializeOwned>(
    response: &mut Response<ureq::Body>,
    server: &Peer,
) -> Outcome<T> {
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
fn refusal(status: StatusCode, text: &str, retry_after: Option<u64>, server: &Peer) -> Failure {
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
pub(super) fn unreachable_server(error: &ureq::Error, server: &Peer) -> Failure {
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

fn untrusted(error: &rustls::Error, server: &Peer) -> Failure {
    let hint = match error {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
        ) => {
            let what = match &server.ca {
                Some(origin) => {
                    format!("the CA in {origin} is not the one of this server: name that")
                }
                None => "the system's CAs do not know this server's: name it".to_owned(),
            };
            format!(
                "{what} with `--ca FILE` or `KUBLER_CA`; `kubler-server init` writes it to `tls/ca.pem`"
            )
        }
        rustls::Error::InvalidCertificate(_) => {
            "use the name that stands in the server's certificate, and check this machine's clock"
                .to_owned()
        }
        rustls::Error::AlertReceived(_) => {
            "the server did not accept this client's certificate".to_owned()
        }
        _ => "is it a TLS server?".to_owned(),
    };
    Failure::new(
        Exit::Unavailable,
        format!("no trusted connection to `{server}`: {error}"),
    )
    .hint(hint)
}

#[cfg(test)]
mod tests;
