//! Where identity tokens come from. A token goes from a pipe, a file or standard input into memory, and never
//! into arguments, variables or messages.

use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use secrecy::SecretString;

use crate::clock::Deadline;
use crate::exit::{Exit, Failure, Outcome, Retry};
use crate::process::{self, Unfinished};
use crate::variables;

/// Longest token that is sent.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// Life of the tokens we ask for, in seconds. As long as servers accept, so that the renewer's last one still
/// ends the environment when the job can mint no more.
pub const TOKEN_SECONDS: u64 = 300;
/// Longest time for minting one token, in seconds. The agent itself would try for minutes.
pub const MINT_SECONDS_MAX: u64 = 20;
/// The optional claims that name what a slug only describes.
pub const CLAIMS: &str = "organization_id,pipeline_id,build_id,cluster_id,queue_id";

/// Where to get an identity token.
#[derive(Debug)]
pub enum TokenSource {
    /// From the Buildkite agent of this job.
    Buildkite {
        /// The agent's program.
        agent: PathBuf,
    },
    /// From a file that somebody keeps fresh.
    File(PathBuf),
    /// From standard input, once.
    Input(OnceLock<SecretString>),
}

impl TokenSource {
    /// The agent's, when this is a Buildkite job.
    pub fn of_job() -> Option<Self> {
        variables::get(variables::BUILDKITE_JOB_ID).map(|_| Self::Buildkite {
            agent: agent_program(),
        })
    }

    /// A file; `-` is standard input.
    pub fn of_file(path: PathBuf) -> Self {
        if path == Path::new("-") {
            Self::Input(OnceLock::new())
        } else {
            Self::File(path)
        }
    }

    /// Whether it gives another token each time.
    pub fn is_renewable(&self) -> bool {
        !matches!(self, Self::Input(_))
    }

    /// A token for `audience`. Ends at `deadline`, and as soon as `stop` becomes readable.
    pub fn token(
        &self,
        audience: &str,
        deadline: Deadline,
        stop: Option<BorrowedFd<'_>>,
    ) -> Outcome<SecretString> {
        match self {
            Self::Buildkite { agent } => mint(agent, audience, deadline, stop),
            Self::File(path) => {
                let file = std::fs::File::open(path);
                let text = file.and_then(read).map_err(|error| {
                    Failure::new(
                        Exit::Denied,
                        format!("cannot read the token file `{}`: {error}", path.display()),
                    )
                    .hint("give a file that holds one identity token and nothing else")
                })?;
                checked(&text, &format!("the file `{}`", path.display()))
            }
            Self::Input(kept) => match kept.get() {
                Some(token) => Ok(token.clone()),
                None => {
                    let text = read(std::io::stdin().lock())
                        .map_err(|error| Failure::io("read standard input", &error))?;
                    let token = checked(&text, "standard input")?;
                    Ok(kept.get_or_init(|| token).clone())
                }
            },
        }
    }
}

fn read(source: impl std::io::Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// A JWT has three parts. The agent prints an empty line and ends well when the service sent no token.
fn checked(text: &str, origin: &str) -> Outcome<SecretString> {
    let token = text.trim();
    let is_token = token.split('.').count() == 3
        && token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if is_token {
        Ok(SecretString::from(token))
    } else if token.is_empty() {
        Err(Failure::new(
            Exit::Denied,
            format!("{origin} holds no identity token: it is empty"),
        )
        .hint("the job may have ended; an ended job gets no tokens"))
    } else {
        Err(Failure::new(
            Exit::Denied,
            format!("{origin} holds no identity token: a token is three parts joined by `.`"),
        )
        .hint("it is what `buildkite-agent oidc request-token` prints, and nothing else"))
    }
}

/// The program of the agent that runs this job.
pub fn agent_program() -> PathBuf {
    variables::path(variables::BUILDKITE_BIN_PATH)
        .map(|folder| folder.join("buildkite-agent"))
        .filter(|program| program.is_file())
        .unwrap_or_else(|| "buildkite-agent".into())
}

fn mint(
    agent: &Path,
    audience: &str,
    deadline: Deadline,
    stop: Option<BorrowedFd<'_>>,
) -> Outcome<SecretString> {
    let mut command = Command::new(agent);
    command.args([
        "oidc",
        "request-token",
        "--audience",
        audience,
        "--claim",
        CLAIMS,
    ]);
    command.args(["--lifetime", &TOKEN_SECONDS.to_string()]);
    if variables::get(variables::BUILDKITE_AGENT_JOB_API_SOCKET).is_none() {
        // Redaction goes through the job's own API; without it the command refuses to work at all.
        command.arg("--skip-redaction");
    }
    let deadline = deadline.within(std::time::Duration::from_secs(MINT_SECONDS_MAX));
    let finished = process::run(command, b"", deadline, stop)
        .map_err(|unfinished| not_minted(agent, &unfinished))?;
    if finished.status.success() {
        let text = String::from_utf8(finished.output).unwrap_or_default();
        return checked(&text, "`buildkite-agent oidc request-token`");
    }
    let reason = finished
        .errors
        .lines()
        .last()
        .unwrap_or("it gave no reason")
        .to_owned();
    Err(Failure::new(Exit::Denied, format!("the agent got no identity token: {reason}"))
        .hint("an ended job gets none; otherwise check that this Buildkite organization allows OIDC tokens"))
}

fn not_minted(agent: &Path, unfinished: &Unfinished) -> Failure {
    let failure = Failure::new(
        Exit::Unavailable,
        format!("`{}` gave no identity token: {unfinished}", agent.display()),
    );
    match unfinished {
        Unfinished::Start(_) => Failure { exit: Exit::Denied, ..failure }
            .hint("`buildkite-agent` must be on `PATH`; in a container, mount it together with the job API socket"),
        Unfinished::TimedOut => failure.hint("the agent could not reach Buildkite in time").retry(Retry::Soon),
        Unfinished::Stopped => failure,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_token_is_three_parts() {
        assert_eq!(
            checked("a.b-_.c\n", "x").unwrap().expose_secret(),
            "a.b-_.c"
        );
        for text in ["", "\n", "a.b", "a.b.c.d", "a.b.c d", "<html>"] {
            assert_eq!(
                checked(text, "x").unwrap_err().exit,
                Exit::Denied,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_refusal_does_not_repeat_what_it_refused() {
        let failure = checked("secret-but-not-a-token", "x").unwrap_err();
        assert!(
            !failure.lines().contains("secret-but"),
            "{}",
            failure.lines()
        );
    }

    #[test]
    fn a_file_gives_its_token_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let source = TokenSource::of_file(path.clone());
        let deadline = Deadline::after(std::time::Duration::from_secs(5));
        assert_eq!(
            source.token("a", deadline, None).unwrap_err().exit,
            Exit::Denied
        );
        for token in ["a.b.c", "d.e.f"] {
            std::fs::write(&path, token).unwrap();
            assert_eq!(
                source.token("a", deadline, None).unwrap().expose_secret(),
                token
            );
        }
    }
}
