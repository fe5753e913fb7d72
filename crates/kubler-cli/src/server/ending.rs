//! Ending an environment and looking until nothing of it is left. Whoever waits may be told to stop waiting: by then
//! the credentials are dead, and the server goes on by itself.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use kubler_api::{Phase, Scope};
use secrecy::SecretString;

use crate::clock::Deadline;
use crate::exit::{Failure, Outcome};
use crate::job;
use crate::output;
use crate::process::signals::{Came, Signals, Work};
use crate::server::client::{CALL_SECONDS_MAX, Caller};
use crate::server::connected::Connected;

/// Longest time that the verified end is waited for, in seconds. Most take less than one.
const GONE_SECONDS_MAX: u64 = 20;

/// An environment that is to end.
#[derive(Debug, Clone)]
pub struct Ending {
    /// `env_…`.
    pub environment: String,
    /// Who else may be using it.
    pub scope: Scope,
    /// It was there before whoever ends now asked for it: then it is not theirs to end.
    pub was_there: bool,
}

/// How far it came.
enum End {
    /// Looked for, and not found.
    Gone,
    /// Its credentials are dead; the rest is the server's.
    Released(&'static str),
    /// Other jobs of the build may be using it.
    LeftToTheBuild,
    /// Somebody else made it: the job's later commands go on using it.
    LeftAsFound,
    /// The server could not be told, and why.
    WithItsLease(Failure),
}

impl Ending {
    /// Ends it, waits until it is verified gone, and says how far that came. One of the signals `impatient` ends
    /// the wait, not the end.
    pub fn end(
        &self,
        connected: &Arc<Connected>,
        token: Option<SecretString>,
        signals: &mut Signals,
        impatient: &[i32],
    ) {
        let end = self.reached(connected, token, signals, impatient);
        let id = &self.environment;
        output::remark(&match &end {
            End::Gone => {
                format!("kubler: environment {id} is gone: looked for, and nothing is left")
            }
            End::Released(why) => format!(
                "kubler: environment {id} is released, its credentials are dead; {why}, and the server goes on removing it"
            ),
            End::LeftToTheBuild => {
                format!(
                    "kubler: environment {id} is left to the other jobs of this build; it ends with its lease"
                )
            }
            End::LeftAsFound => format!(
                "kubler: environment {id} was there before this command and lives on: who made it ends it"
            ),
            End::WithItsLease(_) => format!(
                "kubler: environment {id} could not be released; it ends with its lease, since nobody renews it any more"
            ),
        });
        if let End::WithItsLease(failure) = end {
            output::remark(&failure.lines());
        }
    }

    fn reached(
        &self,
        connected: &Arc<Connected>,
        token: Option<SecretString>,
        signals: &mut Signals,
        impatient: &[i32],
    ) -> End {
        let deadline = Deadline::after(Duration::from_secs(CALL_SECONDS_MAX));
        if self.was_there || self.scope == Scope::Build {
            // The last proof of life, so that whoever is next has a whole lease to come.
            if let Ok(token) = connected.token(deadline, None) {
                let _ = connected.client.renew(&token, &self.environment, deadline);
            }
            return match self.scope {
                Scope::Build => End::LeftToTheBuild,
                Scope::Job => End::LeftAsFound,
            };
        }
        let token = match token.map_or_else(|| connected.token(deadline, None), Ok) {
            Ok(token) => token,
            Err(failure) => return End::WithItsLease(failure),
        };
        // Without a wait first: the credentials die now, whatever becomes of the wait.
        match self.release(connected, &token, 0, deadline) {
            Ok(true) => return End::Gone,
            Ok(false) => {}
            Err(failure) => return End::WithItsLease(failure),
        }
        let (this, connected) = (self.clone(), Arc::clone(connected));
        let deadline = Deadline::after(Duration::from_secs(GONE_SECONDS_MAX + CALL_SECONDS_MAX));
        let looking =
            Work::start(move || this.release(&connected, &token, GONE_SECONDS_MAX, deadline));
        let Ok(looking) = looking else {
            return End::Released("its removal was not watched");
        };
        match signals.wait(impatient, looking.as_fd(), Some(deadline)) {
            Ok(Came::Signal(_)) => End::Released("its removal was not waited for"),
            Ok(Came::Other | Came::Nothing) | Err(_) => match looking.result() {
                Some(Ok(true)) => End::Gone,
                _ => End::Released("its removal is not verified yet"),
            },
        }
    }

    /// Releases it; whether it is gone.
    fn release(
        &self,
        connected: &Connected,
        token: &SecretString,
        wait_seconds: u64,
        deadline: Deadline,
    ) -> Outcome<bool> {
        let answer = connected.client.release(
            Caller::Token(token),
            &self.environment,
            wait_seconds,
            deadline,
        );
        if !job::is_released(answer.as_ref()) {
            answer.as_ref().map_err(Clone::clone)?;
        }
        Ok(answer.is_ok_and(|environment| environment.phase == Phase::Gone))
    }
}
