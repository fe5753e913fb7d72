//! Keeps an environment alive: a thread that mints a token and renews the lease, again and again, until it is
//! told to stop. Whoever tells it never waits for a call that is under way.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kubler_api::Environment;
use kubler_api::error::ErrorCode;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::clock::Deadline;
use crate::exit::{Failure, Outcome};
use crate::job::token::{MINT_SECONDS_MAX, TOKEN_SECONDS};
use crate::server::client::CALL_SECONDS_MAX;
use crate::server::connected::Connected;

/// Longest time between two renewals, in seconds.
const EVERY_SECONDS_MAX: u64 = 90;
/// How many times a lease is renewed while it lasts, when the server does not say how often.
const RENEWALS_PER_LEASE: u64 = 4;
/// First pause after a failure; doubled each time, up to the ordinary one.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A token is good for a release until so many seconds before its end.
const TOKEN_REST_SECONDS: u64 = 30;
/// How long a stopped thread may take to end what it started.
const STOP_BOUND: Duration = Duration::from_millis(300);

/// What happened so far.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Renewals that succeeded.
    pub renewals: u64,
    /// Renewals that failed.
    pub failures: u64,
    /// Why the last one failed.
    pub last_failure: Option<String>,
    /// The environment ended on its own.
    pub ended: bool,
}

/// A running renewal.
pub struct Renewal {
    shared: Arc<Shared>,
    /// Dropping it stops whatever the thread has started.
    stop: Option<UnixStream>,
    wake: Option<Sender<()>>,
    done: Receiver<()>,
}

struct Shared {
    tally: Mutex<Tally>,
    token: Mutex<Option<Held>>,
}

/// The last token. It still proves who the job was when the job itself can mint no more.
struct Held {
    token: SecretString,
    minted_at: Instant,
}

impl Held {
    fn is_good(&self) -> bool {
        self.minted_at.elapsed() < Duration::from_secs(TOKEN_SECONDS - TOKEN_REST_SECONDS)
    }
}

/// The pause after the next failure: twice as long, up to the ordinary one. However long a server is away, the
/// pauses neither end nor overflow.
fn longer(pause: Duration, every: Duration) -> Duration {
    pause.saturating_mul(2).min(every)
}

/// How often to renew.
pub fn every(environment: &Environment) -> Duration {
    let seconds = environment
        .hooks
        .renew
        .every_seconds
        .unwrap_or(environment.lease_seconds / RENEWALS_PER_LEASE);
    Duration::from_secs(seconds.clamp(1, EVERY_SECONDS_MAX))
}

impl Renewal {
    /// Starts renewing `environment` as often as `every` says; `token` is what the environment was made with.
    pub fn start(
        connected: Arc<Connected>,
        environment: String,
        every: Duration,
        token: Option<SecretString>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (wake, woken) = channel();
        let (finished, done) = channel();
        let held = token.map(|token| Held {
            token,
            minted_at: Instant::now(),
        });
        let shared = Arc::new(Shared {
            tally: Mutex::default(),
            token: Mutex::new(held),
        });
        let thread = Thread {
            connected,
            environment,
            every,
            shared: Arc::clone(&shared),
            stopped,
        };
        std::thread::Builder::new()
            .name("renewal".to_owned())
            .spawn(move || {
                thread.run(&woken);
                let _ = finished.send(());
            })?;
        Ok(Self {
            shared,
            stop: Some(stop),
            wake: Some(wake),
            done,
        })
    }

    /// Stops it: a running token call is ended, a running renewal is not waited for.
    pub fn stop(&mut self) {
        self.stop = None;
        self.wake = None;
    }

    /// Waits a moment for a stopped thread, so that no program it started stays behind.
    pub fn settle(&self) {
        let _ = self.done.recv_timeout(STOP_BOUND);
    }

    /// The last token, while it is good.
    pub fn token(&self) -> Option<SecretString> {
        let held = self
            .shared
            .token
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.as_ref()
            .filter(|held| held.is_good())
            .map(|held| held.token.clone())
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.shared
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

struct Thread {
    connected: Arc<Connected>,
    environment: String,
    every: Duration,
    shared: Arc<Shared>,
    stopped: UnixStream,
}

impl Thread {
    fn run(&self, woken: &Receiver<()>) {
        let mut pause = self.every;
        let mut after_failure = PAUSE_AFTER_FAILURE;
        // Nothing is ever sent: the other side is dropped when all of this shall stop.
        while woken.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let begun = Instant::now();
            match self.renew() {
                Ok(()) => {
                    self.shared
                        .tally
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .renewals += 1;
                    pause = self.every.saturating_sub(begun.elapsed());
                    after_failure = PAUSE_AFTER_FAILURE;
                }
                Err(failure) if self.note(&failure) => return,
                Err(_) => {
                    pause = after_failure.min(self.every);
                    after_failure = longer(after_failure, self.every);
                }
            }
        }
    }

    fn renew(&self) -> Outcome<()> {
        let minted_at = Instant::now();
        let deadline = Deadline::after(Duration::from_secs(MINT_SECONDS_MAX));
        let token = self.connected.token(deadline, Some(self.stopped.as_fd()))?;
        let deadline = Deadline::after(Duration::from_secs(CALL_SECONDS_MAX));
        let renewed = self
            .connected
            .client
            .renew(&token, &self.environment, deadline);
        *self
            .shared
            .token
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Held { token, minted_at });
        renewed.map(drop)
    }

    /// Notes a failure; whether the environment has ended, so that no renewal can help any more.
    fn note(&self, failure: &Failure) -> bool {
        let mut tally = self
            .shared
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        tally.failures += 1;
        tally.last_failure = Some(failure.message.clone());
        tally.ended = failure.code == Some(ErrorCode::EnvironmentEnded);
        tally.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Connection;

    #[test]
    fn pauses_after_failures_double_up_to_the_ordinary_one() {
        let every = Duration::from_secs(75);
        let mut pause = PAUSE_AFTER_FAILURE;
        let mut pauses = Vec::new();
        for _ in 0..100 {
            pauses.push(pause.min(every).as_secs());
            pause = longer(pause, every);
        }
        assert_eq!(pauses.first_chunk(), Some(&[1, 2, 4, 8, 16, 32, 64, 75]));
        assert!(
            pauses.iter().skip(7).all(|pause| *pause == 75),
            "{pauses:?}"
        );
    }

    #[test]
    fn a_hundred_failures_do_not_end_the_renewal() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&ca, key.cert.pem()).unwrap();
        let connection = Connection {
            server: Some("https://localhost:1".to_owned()),
            ca: Some(ca),
            token_file: Some(folder.path().join("there-is-none")),
            ..Connection::default()
        };
        let connected = Arc::new(Connected::new(&connection, None, None).unwrap());
        let every = Duration::from_millis(1);
        let mut renewal = Renewal::start(connected, "env_1".to_owned(), every, None).unwrap();
        let bound = Deadline::after(Duration::from_secs(60));
        while renewal.tally().failures < 100 {
            assert!(!bound.is_over(), "{:?}", renewal.tally());
            std::thread::sleep(Duration::from_millis(5));
        }
        renewal.stop();
        assert!(renewal.done.recv_timeout(Duration::from_secs(60)).is_ok());
    }
}
