//! The job's own API: HTTP over a Unix socket that the agent opens for each job. Used for two things: to hide
//! secrets from the job's log, and, where processes cannot be watched, to notice the end of the job.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::variables;

/// Longest time for one call, in seconds.
const CALL_SECONDS_MAX: u64 = 2;
/// Largest answer: it holds the whole environment of the job.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The API of this job.
pub struct JobApi {
    socket: String,
    password: SecretString,
}

impl JobApi {
    /// The API that the agent opened for this job, if it did.
    pub fn of_this_job() -> Option<Self> {
        Some(Self {
            socket: variables::get(variables::BUILDKITE_AGENT_JOB_API_SOCKET)?,
            password: variables::get(variables::BUILDKITE_AGENT_JOB_API_TOKEN)?.into(),
        })
    }

    /// Hides `secret` from the job's log from now on.
    pub fn redact(&self, secret: &str) -> io::Result<()> {
        let body = serde_json::json!({ "redact": secret }).to_string();
        self.call("POST", "redactions", &body).map(drop)
    }

    /// A connection that ends when the job does. One request has been answered on it: the agent would wait for
    /// a connection that never says anything.
    pub fn hold(&self) -> io::Result<UnixStream> {
        let stream = self.call("GET", "env", "")?;
        stream.set_read_timeout(None)?;
        Ok(stream)
    }

    fn call(&self, method: &str, path: &str, body: &str) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(CALL_SECONDS_MAX)))?;
        stream.set_write_timeout(Some(Duration::from_secs(CALL_SECONDS_MAX)))?;
        let request = format!(
            "{method} /api/current-job/v0/{path} HTTP/1.1\r\nHost: job\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.password.expose_secret(),
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let answer = read_answer(&mut stream)?;
        let status = answer.get(9..12).unwrap_or_default();
        if status.starts_with(b"2") {
            Ok(stream)
        } else {
            Err(io::Error::other(format!(
                "status {}",
                String::from_utf8_lossy(status)
            )))
        }
    }
}

/// Reads one answer to its end, so that nothing of it is left in the connection.
fn read_answer(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let bytes = stream.read(&mut buffer)?;
        answer.extend(buffer.iter().take(bytes));
        if is_whole(&answer) {
            return Ok(answer);
        }
        if bytes == 0 || answer.len() > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let (head, body) = answer.split_at(end + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    match header("content-length:").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => body.len() >= length,
        None if header("transfer-encoding:").is_some() => {
            body.ends_with(b"\r\n0\r\n\r\n") || body == b"0\r\n\r\n"
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn serve(answer: &'static str) -> (tempfile::TempDir, JobApi, std::thread::JoinHandle<String>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let bytes = stream.read(&mut buffer).unwrap();
            for piece in answer.as_bytes().chunks(7) {
                stream.write_all(piece).unwrap();
            }
            String::from_utf8_lossy(&buffer[..bytes]).into_owned()
        });
        let api = JobApi {
            socket: socket.to_str().unwrap().to_owned(),
            password: "pass".to_owned().into(),
        };
        (folder, api, served)
    }

    #[test]
    fn a_secret_is_sent_to_be_hidden() {
        let (_folder, api, served) =
            serve("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"redacted\":\"s\"}");
        api.redact("s3cret").unwrap();
        let request = served.join().unwrap();
        assert!(
            request.starts_with("POST /api/current-job/v0/redactions HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains("Authorization: Bearer pass\r\n")
                && request.ends_with(r#"{"redact":"s3cret"}"#),
            "{request}"
        );
    }

    #[test]
    fn a_held_connection_ends_with_its_server() {
        let (_folder, api, served) = serve(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{\"env\":{}}\r\n0\r\n\r\n",
        );
        let mut held = api.hold().unwrap();
        served.join().unwrap();
        assert_eq!(held.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_refusal_is_a_failure() {
        let (_folder, api, served) =
            serve("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
        assert!(api.redact("x").is_err());
        served.join().unwrap();
    }
}
