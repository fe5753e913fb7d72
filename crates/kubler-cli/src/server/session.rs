//! Sessions of one environment, kept in a private folder: however many kubectl start at once, one of them
//! exchanges a token and the others use what it got.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use kubler_api::IssuedToken;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Deadline};
use crate::exit::{Exit, Failure, Outcome};
use crate::job::agent_api::JobApi;
use crate::job::folder::PrivateFolder;
use crate::output;
use crate::server::connected::Connected;

/// How much earlier than the server a session's end is reported, in seconds, so that a 401 is the exception.
pub const EARLY_SECONDS: u64 = 60;
/// Longest time for getting a session, in seconds.
pub const SESSION_SECONDS_MAX: u64 = 30;

/// A session as it is kept. The only secret that is ever written down: 0600, in a 0700 folder, for minutes.
#[derive(Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The environment it belongs to.
    pub environment: String,
    /// The server that issued it.
    pub server: String,
    /// The credential.
    pub token: String,
    /// When it was got, on this machine's clock: only this clock's own distances count, not the server's time.
    pub obtained_at: Timestamp,
    /// How long it lives from then, in seconds.
    pub expires_in: u64,
}

impl Kept {
    /// What the server issued, as of `now`.
    pub fn new(issued: IssuedToken, environment: &str, server: &str, now: Timestamp) -> Self {
        Self {
            environment: environment.to_owned(),
            server: server.to_owned(),
            token: issued.access_token,
            obtained_at: now,
            expires_in: issued.expires_in,
        }
    }

    /// Until when it should be used: a minute before its end, or after two thirds of a short life.
    pub fn use_until(&self) -> Timestamp {
        let early = EARLY_SECONDS.min(self.expires_in.div_ceil(3));
        let usable = i64::try_from(self.expires_in.saturating_sub(early)).unwrap_or(0);
        self.obtained_at
            .checked_add(SignedDuration::from_secs(usable))
            .unwrap_or(self.obtained_at)
    }

    fn serves(&self, environment: &str, server: &str, now: Timestamp) -> bool {
        self.environment == environment
            && self.server == server
            && self.obtained_at <= now
            && now < self.use_until()
    }
}

/// A failure as it is kept, for those who were waiting for the same answer.
#[derive(Serialize, Deserialize)]
struct KeptFailure {
    at: Timestamp,
    exit: i32,
    text: String,
}

/// A usable session of `environment`: a kept one, or a new one for a fresh identity token.
pub fn session(connected: &Connected, folder: &PrivateFolder, environment: &str) -> Outcome<Kept> {
    let began_at = clock::now();
    if let Some(kept) = kept(connected, folder, environment) {
        return Ok(kept);
    }
    let _locked = folder.lock(&format!("{environment}.lock"))?;
    if let Some(kept) = kept(connected, folder, environment) {
        return Ok(kept);
    }
    if let Some(failure) = failed_meanwhile(folder, environment, began_at) {
        return Err(failure);
    }
    let result = obtain(connected, folder, environment);
    if let Err(failure) = &result {
        let kept = KeptFailure {
            at: clock::now(),
            exit: failure.exit as i32,
            text: failure.lines(),
        };
        let _ = folder.write_json(&failure_name(environment), &kept);
    }
    result
}

/// Keeps a session that was got on the way, so that the first kubectl need not ask for one.
pub fn keep(folder: &PrivateFolder, kept: &Kept) -> Outcome<()> {
    folder.write_json(&name(&kept.environment), kept).map(drop)
}

fn obtain(connected: &Connected, folder: &PrivateFolder, environment: &str) -> Outcome<Kept> {
    let deadline = Deadline::after(Duration::from_secs(SESSION_SECONDS_MAX));
    let token = connected.token(deadline, None)?;
    let kept = exchange(connected, &token, environment, deadline)?;
    hide(&kept);
    keep(folder, &kept)?;
    Ok(kept)
}

/// Hides a session from the log of a Buildkite job, also in the form that a Secret would show it in.
pub fn hide(kept: &Kept) {
    let Some(api) = JobApi::of_this_job() else {
        return;
    };
    for secret in [kept.token.clone(), STANDARD.encode(&kept.token)] {
        if let Err(error) = api.redact(&secret) {
            output::remark(&format!(
                "kubler: a session could not be hidden from the log: {error}"
            ));
        }
    }
}

/// Exchanges `token` for a session.
pub fn exchange(
    connected: &Connected,
    token: &SecretString,
    environment: &str,
    deadline: Deadline,
) -> Outcome<Kept> {
    let asked_at = clock::now();
    let issued = connected.client.exchange(token, environment, deadline)?;
    Ok(Kept::new(
        issued,
        environment,
        connected.client.server(),
        asked_at,
    ))
}

fn kept(connected: &Connected, folder: &PrivateFolder, environment: &str) -> Option<Kept> {
    folder
        .read_json::<Kept>(&name(environment))
        .filter(|kept| kept.serves(environment, connected.client.server(), clock::now()))
}

/// The failure of whoever had the lock while this one was waiting for it: to fail the same way forty times,
/// one after the other, would only take forty times as long.
fn failed_meanwhile(
    folder: &PrivateFolder,
    environment: &str,
    began_at: Timestamp,
) -> Option<Failure> {
    let kept: KeptFailure = folder.read_json(&failure_name(environment))?;
    let exit = match kept.exit {
        code if code == Exit::Ended as i32 => Exit::Ended,
        code if code == Exit::Unavailable as i32 => Exit::Unavailable,
        code if code == Exit::Denied as i32 => Exit::Denied,
        _ => Exit::Failed,
    };
    let text = kept.text.strip_prefix("error: ").unwrap_or(&kept.text);
    (kept.at >= began_at && kept.at <= clock::now()).then(|| Failure::new(exit, text))
}

fn name(environment: &str) -> String {
    format!("{environment}.session")
}

fn failure_name(environment: &str) -> String {
    format!("{environment}.failure")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn kept(expires_in: u64) -> Kept {
        Kept {
            environment: "env_1".into(),
            server: "https://s".into(),
            token: "t".into(),
            obtained_at: at(1000),
            expires_in,
        }
    }

    #[test]
    fn a_session_is_used_until_a_minute_before_its_end() {
        assert_eq!(kept(600).use_until(), at(1540));
    }

    #[test]
    fn a_short_session_is_used_for_two_thirds() {
        assert_eq!(kept(60).use_until(), at(1040));
        assert_eq!(kept(15).use_until(), at(1010));
        assert_eq!(kept(1).use_until(), at(1000));
    }

    #[test]
    fn it_serves_its_environment_its_server_and_its_time_only() {
        let kept = kept(600);
        assert!(kept.serves("env_1", "https://s", at(1000)));
        assert!(!kept.serves("env_2", "https://s", at(1000)));
        assert!(!kept.serves("env_1", "https://other", at(1000)));
        assert!(!kept.serves("env_1", "https://s", at(1540)));
        assert!(
            !kept.serves("env_1", "https://s", at(999)),
            "a clock that was set back"
        );
    }
}
