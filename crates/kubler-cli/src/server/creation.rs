//! Asking for an environment and waiting until it is usable.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubler_api::{CreateEnvironment, Environment, Phase, Scope, WAIT_SECONDS_MAX};

use crate::arguments::Wanted;
use crate::clock::{self, Deadline};
use crate::exit::{Exit, Failure, Outcome};
use crate::job::token::TokenSource;
use crate::process::watched;
use crate::renewer::renewal::{self, Renewal};
use crate::server::answers::retrying;
use crate::server::client::CALL_SECONDS_MAX;
use crate::server::connected::{Connected, Proof};
use crate::variables;

/// A token is good for several calls, but not to its last second.
const TOKEN_REUSE_SECONDS_MAX: i64 = 120;

/// What was made, and the token it was made with: good for one session of it.
pub struct Created {
    /// The environment.
    pub environment: Environment,
    /// The proof, when it is still young.
    pub proof: Proof,
}

/// How it is asked for.
#[derive(Default)]
pub struct Asking<'a> {
    /// Ends the wait as soon as it becomes readable, though a call that is under way is not cut.
    pub stop: Option<BorrowedFd<'a>>,
    /// Whether it matters who made it: costs one more question.
    pub tells_who_made_it: bool,
}

/// The first answer that names the environment.
pub struct First<'a> {
    /// As it is then.
    pub environment: &'a Environment,
    /// What it was asked for with.
    pub proof: &'a Proof,
    /// It was there before this process asked. Only told when asked for.
    pub was_there: bool,
}

impl First<'_> {
    /// Keeps it alive from now on: making it may take longer than its lease, with others in the queue before it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn keep_alive(&self, connected: &Arc<Connected>) -> Outcome<Renewal> {
        let token = match self.proof {
            Proof::Token(token) => Some(token.clone()),
            Proof::Certificate => None,
        };
        let (id, every) = (
            self.environment.id.clone(),
            renewal::every(self.environment),
        );
        Renewal::start(Arc::clone(connected), id, every, token)
            .map_err(|error| Failure::io("start renewing", &error))
    }
}

/// Asks for the environment, and keeps it alive while it waits as long as wanted.
///
/// # Errors
/// As [`create_with`].
pub fn create(connected: &Arc<Connected>, wanted: &Wanted) -> Outcome<Created> {
    let is_renewable = connected.tokens().is_ok_and(TokenSource::is_renewable);
    let mut renewal = None;
    let created = create_with(connected, wanted, &Asking::default(), |first| {
        if wanted.wait > 0 && is_renewable {
            renewal = Some(first.keep_alive(connected)?);
        }
        Ok(())
    });
    if let Some(mut renewal) = renewal {
        renewal.stop();
        renewal.settle();
    }
    created
}

/// Asks for the environment and waits as long as wanted. `asked` is called once, as soon as the server knows of one that
/// has not ended, and before it is usable.
///
/// # Errors
/// `EnvironmentFailed` when it could not be made, `Ended` when it ended meanwhile, `Unavailable` when it was
/// not usable in time, `Failed` when it was stopped, and whatever the server refuses.
pub fn create_with(
    connected: &Connected,
    wanted: &Wanted,
    asking: &Asking<'_>,
    asked: impl FnOnce(&First<'_>) -> Outcome<()>,
) -> Outcome<Created> {
    let stop = asking.stop;
    let deadline = Deadline::after(Duration::from_secs(wanted.wait.max(1) + CALL_SECONDS_MAX));
    let ready_by = Deadline::after(Duration::from_secs(wanted.wait));
    let mut minted_at = clock::now();
    let mut proof = connected.proof_unless(deadline, stop)?;
    let profile = profile(connected, wanted, &proof, deadline)?;
    let request = |wait_seconds| request(wanted, &profile, wait_seconds);
    let before = asking
        .tells_who_made_it
        .then(|| servers_time(connected, deadline))
        .flatten();
    let mut environment = connected
        .client
        .create(proof.caller(), &request(0), deadline)?;
    if matches!(environment.phase, Phase::Releasing | Phase::Gone) {
        // Nobody's from here on: there is nothing to keep alive, to announce or to end.
        is_settled(&environment)?;
    }
    asked(&First {
        was_there: was_there(&environment, before),
        environment: &environment,
        proof: &proof,
    })?;
    while !is_settled(&environment)? {
        if is_stopped(stop) {
            return Err(Failure::new(Exit::Failed, "it is no longer wanted"));
        }
        let left = ready_by.left().as_secs();
        if left == 0 {
            if wanted.wait == 0 {
                break;
            }
            return Err(not_in_time(&environment, wanted.wait));
        }
        if is_old(minted_at, clock::now()) {
            minted_at = clock::now();
            proof = connected.proof_unless(deadline, stop)?;
        }
        let wait_seconds = left.min(WAIT_SECONDS_MAX);
        environment = connected
            .client
            .create(proof.caller(), &request(wait_seconds), deadline)?;
    }
    Ok(Created { environment, proof })
}

/// The time on the server's clock, by which it also says when an environment was made.
fn servers_time(connected: &Connected, deadline: Deadline) -> Option<Timestamp> {
    let deadline = deadline.within(Duration::from_secs(CALL_SECONDS_MAX));
    retrying(deadline, || connected.client.health(deadline))
        .ok()
        .map(|health| health.now)
}

/// Whether `environment` was made before the server's time was `before`, or is the one that this job has already.
fn was_there(environment: &Environment, before: Option<Timestamp>) -> bool {
    before.is_some_and(|before| environment.created_at < before)
        || variables::get(variables::KUBLER_ENVIRONMENT).is_some_and(|id| id == environment.id)
}

fn is_stopped(stop: Option<BorrowedFd<'_>>) -> bool {
    let now = Deadline::after(Duration::ZERO);
    stop.is_some_and(|stop| !matches!(watched::first_of(&[stop], now), Ok(None)))
}

fn is_old(minted_at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(minted_at).as_secs() + i64::try_from(WAIT_SECONDS_MAX).unwrap_or(i64::MAX)
        > TOKEN_REUSE_SECONDS_MAX
}

/// The profile that is meant: the named one, or that of the environment which is to be made again.
fn profile(
    connected: &Connected,
    wanted: &Wanted,
    proof: &Proof,
    deadline: Deadline,
) -> Outcome<String> {
    match (&wanted.profile, &wanted.like) {
        (Some(profile), _) => Ok(profile.clone()),
        (None, Some(like)) => {
            let like = connected
                .client
                .environment(proof.caller(), like, deadline)?;
            Ok(like.profile)
        }
        (None, None) => Err(Failure::usage("no profile is named")),
    }
}

fn request(wanted: &Wanted, profile: &str, wait_seconds: u64) -> CreateEnvironment {
    CreateEnvironment {
        profile: profile.to_owned(),
        name: wanted.name.clone(),
        scope: wanted.scope.into(),
        attach: wanted.attach,
        like: wanted.like.clone(),
        despite_differences: wanted.despite_differences,
        wait_seconds,
    }
}

/// Whether waiting is over because it is usable.
///
/// # Errors
/// `EnvironmentFailed` and `Ended`, with the server's words, when it never will be.
pub fn is_settled(environment: &Environment) -> Outcome<bool> {
    let reason = || {
        environment
            .end
            .as_ref()
            .map_or("no reason was given", |end| end.message.as_str())
    };
    match environment.phase {
        Phase::Ready => Ok(true),
        Phase::Requested | Phase::Provisioning => Ok(false),
        Phase::Failed => Err(Failure::new(Exit::EnvironmentFailed, format!("environment {} could not be made: {}", environment.id, reason()))
            .hint("try again in a new job; the operator finds the cause with `kubler trace` and in the server's log")),
        Phase::Releasing | Phase::Gone => {
            let failed = environment.end.as_ref().is_some_and(|end| end.code == "failed");
            let exit = if failed { Exit::EnvironmentFailed } else { Exit::Ended };
            Err(Failure::new(exit, format!("environment {} has ended: {}", environment.id, reason()))
                .hint(next_after_end(environment.scope)))
        }
    }
}

/// What helps whoever asks for a name whose environment has ended.
const fn next_after_end(scope: Scope) -> &'static str {
    match scope {
        Scope::Job => {
            "a job gets one environment per name: give another name (`--name`), or start a new job"
        }
        Scope::Build => {
            "a build gets one environment per name, and so do all of its jobs and retries: rebuild, or give another name in every step that shares it"
        }
    }
}

fn not_in_time(environment: &Environment, seconds: u64) -> Failure {
    let failure = environment.last_failure.as_ref();
    let failure = failure.map_or_else(String::new, |why| format!("; the last try failed: {why}"));
    Failure::new(
        Exit::Unavailable,
        format!(
            "environment {} was not ready within {seconds} s{failure}",
            environment.id
        ),
    )
    .hint("it is still being made: ask again with the same name, or wait longer with `--wait`")
}
