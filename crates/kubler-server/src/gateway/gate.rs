//! The gate of one environment: its connections, who was admitted, and every answer that is still open.
//!
//! One task per gate compares the open answers with what is true now: when the environment ends, a lease
//! lapses, policy changes or a session is over, it ends them. No answer has to watch for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kubler_core::environment::{EndReason, Environment, Scope};
use kubler_core::ids::EnvironmentId;
use kubler_core::lease;
use kubler_core::profile::StreamEnd;
use kubler_core::tombstone::Tombstone;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Admissions, Denied};
use super::artifacts::Artifacts;
use super::load::Load;
use super::pool::{Destination, Pool};
use super::status::Refused;
use super::stream::{Cut, OpenStream};
use super::tunnel::OpenTunnel;
use super::whole::BodyRoom;
use super::{Bounds, GatewayParts};
use crate::session::Session;

/// At least this often the gate looks at the clock: a quarter of the second it has.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A lapse is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Room for one answer that goes on. Given back when it is dropped.
pub(super) struct Room {
    _permit: OwnedSemaphorePermit,
}

/// The gate of one environment.
pub(super) struct Gate {
    id: EnvironmentId,
    bounds: Bounds,
    room: Arc<Semaphore>,
    load: Arc<Load>,
    artifacts: Artifacts,
    body_room: BodyRoom,
    namespace: Option<String>,
    pool: Pool,
    admissions: Admissions,
    open: Mutex<Open>,
    cut: OnceLock<Cut>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Watched>,
}

/// What is open, as far as it may have to be ended.
#[derive(Clone)]
pub(super) enum Watched {
    /// An answer.
    Answer(Arc<OpenStream>),
    /// A connection whose protocol was changed.
    Tunnel(Arc<OpenTunnel>),
}

impl Watched {
    fn admission(&self) -> Arc<Admission> {
        match self {
            Self::Answer(stream) => stream.admission(),
            Self::Tunnel(tunnel) => tunnel.admission(),
        }
    }

    fn readmit(&self, admission: Arc<Admission>) {
        match self {
            Self::Answer(stream) => stream.readmit(admission),
            Self::Tunnel(tunnel) => tunnel.readmit(admission),
        }
    }

    fn session_is_over(&self, now: Timestamp) -> bool {
        self.admission().session().has_expired(now)
    }

    /// Whether its client takes nothing. A tunnel looks for itself.
    fn is_stalled(&self, stall_max: Duration) -> bool {
        match self {
            Self::Answer(stream) => stream.is_stalled(stall_max),
            Self::Tunnel(_) => false,
        }
    }

    fn cut(&self, cut: &Cut) {
        match self {
            Self::Answer(stream) => stream.cut(cut),
            Self::Tunnel(tunnel) => tunnel.cut(cut),
        }
    }
}

impl Gate {
    /// An open gate in front of `destination`.
    pub(super) fn new(environment: &Environment, destination: Destination, bounds: Bounds) -> Self {
        Self {
            id: environment.id,
            bounds,
            room: Arc::new(Semaphore::new(bounds.open_max)),
            load: Load::new(bounds, &environment.resolved.profile),
            artifacts: Artifacts::default(),
            body_room: BodyRoom::default(),
            namespace: environment.namespace().map(str::to_owned),
            pool: Pool::new(destination),
            admissions: Admissions::default(),
            open: Mutex::default(),
            cut: OnceLock::new(),
            closed: CancellationToken::new(),
        }
    }

    /// All that the environment has of a cluster that others use as well; none when the cluster is its own.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whose gate it is.
    pub(super) fn id(&self) -> EnvironmentId {
        self.id
    }

    /// What nobody can have without end here.
    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Room for one more answer that goes on.
    ///
    /// # Errors
    /// When as many of them are open as may be.
    pub(super) fn room(&self) -> Result<Room, Refused> {
        Arc::clone(&self.room)
            .try_acquire_owned()
            .map(|permit| Room { _permit: permit })
            .map_err(|_| Refused::too_many_open(self.id, self.bounds.open_max))
    }

    /// How much of the API server is used.
    pub(super) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// What is known of what it runs.
    pub(super) fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Room for bodies that are kept until they are whole.
    pub(super) fn body_room(&self) -> &BodyRoom {
        &self.body_room
    }

    /// The connections.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Why it was closed, if it was.
    pub(super) fn cut(&self) -> Option<&Cut> {
        self.cut.get()
    }

    /// Resolves when it is closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether the session may pass now.
    pub(super) fn admit(
        &self,
        session: &Arc<Session>,
        environment: &Environment,
        parts: &GatewayParts,
    ) -> Result<Arc<Admission>, Box<Denied>> {
        self.admissions.admit(session, environment, &parts.policies)
    }

    /// Takes an answer under watch; gives its place.
    pub(super) fn enter(&self, stream: Watched) -> u64 {
        let place = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.next += 1;
            let place = open.next;
            open.streams.insert(place, stream.clone());
            place
        };
        // Closing sets the reason first and looks for answers second, so one of the two finds this one.
        if let Some(cut) = self.cut() {
            stream.cut(cut);
        }
        place
    }

    /// Forgets an answer that is over.
    pub(super) fn leave(&self, place: u64) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .streams
            .remove(&place);
    }

    fn streams(&self) -> Vec<Watched> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.streams.values().cloned().collect()
    }

    /// Ends everything that is open, and whatever would come.
    pub(super) fn close(&self, cut: Cut) {
        let cut = self.cut.get_or_init(|| cut);
        self.closed.cancel();
        for stream in self.streams() {
            stream.cut(cut);
        }
        self.pool.close();
    }

    /// Watches until the environment ends or the server stops, and closes then.
    pub(super) async fn watch(&self, parts: &GatewayParts) {
        let cut = self.wait_for_end(parts).await;
        self.close(cut);
    }

    async fn wait_for_end(&self, parts: &GatewayParts) -> Cut {
        let Some(mut watched) = parts.directory.watch(self.id) else {
            return forgotten(self.id);
        };
        let mut serving_since = parts.directory.watch_serving_since();
        let mut policies = parts.policies.watch();
        let mut has_looked_twice = false;
        loop {
            policies.mark_unchanged();
            let environment = Arc::clone(&watched.borrow_and_update());
            let since = *serving_since.borrow_and_update();
            let now = parts.clock.now();
            if let Some(tombstone) = parts.directory.tombstone(&environment, now) {
                // A suspended machine wakes everybody at once: whoever gives leases back what it took comes first.
                if tombstone.reason == EndReason::Lapsed
                    && !std::mem::replace(&mut has_looked_twice, true)
                {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                return ended(&tombstone);
            }
            has_looked_twice = false;
            self.look(&environment, parts, now);
            let left = lease::end(&environment, since).duration_since(now);
            let nap = Duration::try_from(left)
                .unwrap_or_default()
                .clamp(Duration::from_millis(1), LOOK_EVERY);
            tokio::select! {
                changed = watched.changed() => if changed.is_err() { return forgotten(self.id) },
                _ = serving_since.changed() => {}
                _ = policies.changed() => {}
                () = parts.shutdown.cancelled() => return stopping(),
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// Ends the answers that may no longer be open although their environment lives.
    fn look(&self, environment: &Environment, parts: &GatewayParts, now: Timestamp) {
        self.pool.sweep();
        let policies = parts.policies.current();
        let with_session = ends_with_session(environment);
        for stream in self.streams() {
            if with_session && stream.session_is_over(now) {
                let refused = Refused::session_expired(stream.admission().session().expires_at);
                stream.cut(&Cut {
                    close_reason: "session_expired",
                    refused,
                });
                continue;
            }
            if stream.is_stalled(self.bounds.patience.stall_max) {
                stream.cut(&slow_reader());
                continue;
            }
            let admission = stream.admission();
            if admission.is_under(&policies) {
                continue;
            }
            match self.admit(admission.shared_session(), environment, parts) {
                Ok(admission) => stream.readmit(admission),
                Err(denied) => stream.cut(&Cut {
                    close_reason: "policy",
                    refused: denied.refused,
                }),
            }
        }
    }
}

/// Whether an answer ends with the session that opened it. A lease of a whole build is kept by whichever of its jobs
/// runs, so it says nothing of the job that asked: what that job opened must not go on behind it.
fn ends_with_session(environment: &Environment) -> bool {
    environment.scope == Scope::Build
        || environment.resolved.profile.streams_end_with == StreamEnd::Session
}

/// The environment is over.
pub(super) fn ended(tombstone: &Tombstone) -> Cut {
    let close_reason = match &tombstone.reason {
        EndReason::Lapsed => "lease_end",
        EndReason::DeadlineReached => "deadline",
        reason @ (EndReason::Released
        | EndReason::JobFinished
        | EndReason::AgentLost
        | EndReason::Revoked
        | EndReason::Failed { .. }) => reason.code(),
    };
    Cut {
        close_reason,
        refused: Refused::ended(tombstone),
    }
}

fn slow_reader() -> Cut {
    let message = "the answer was not taken for so long that it was ended; ask again";
    Cut {
        close_reason: "slow_reader",
        refused: Refused::unavailable("SlowReader", message),
    }
}

fn forgotten(id: EnvironmentId) -> Cut {
    Cut {
        close_reason: "released",
        refused: Refused::forgotten(&id.to_string()),
    }
}

fn stopping() -> Cut {
    Cut {
        close_reason: "shutdown",
        refused: Refused::unavailable("Stopping", "the server is stopping; try again in a moment"),
    }
}
