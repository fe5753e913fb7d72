//! Points at which a test kills the server: after each durable step of making, renewing and ending, so that each
//! order of steps is tried with an end of the process behind every one of them.
//!
//! Only builds with debug assertions have them. There the variable `KUBLER_CRASH_AT` names one point, as `user.made`
//! or `user.made:3` for the third time, and whoever reaches it ends this process as `kill -9` would. `KUBLER_HOLD_AT`
//! names one and a file, as `release.begun=/folder/file`: whoever reaches it waits as long as the file is there. In
//! every other build `at` is empty, and neither a variable nor a name of a point is in the program.

use kubler_core::environment::Phase;
use kubler_core::ledger::record::LedgerAction;

/// Names the point at which the process ends.
#[cfg(debug_assertions)]
pub const CRASH_AT: &str = "KUBLER_CRASH_AT";
/// Names the point at which it waits, and the file that it waits for.
#[cfg(debug_assertions)]
pub const HOLD_AT: &str = "KUBLER_HOLD_AT";
/// What is added to the name of that file while somebody waits.
#[cfg(debug_assertions)]
pub const HELD: &str = ".held";

macro_rules! points {
    ($($(#[doc = $doc:literal])* $point:ident = $name:literal,)*) => {
        /// After which step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $doc])* $point,)*
        }

        #[cfg(debug_assertions)]
        impl Point {
            /// All of them, in the order of an environment's life.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// What it is called in the variable.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// The shared etcd has its certificates.
    EtcdPrepared = "etcd.prepared",
    /// It runs, and nobody has written that down.
    EtcdSpawned = "etcd.spawned",
    /// Its process is written down.
    EtcdRecorded = "etcd.recorded",
    /// Its users are enabled.
    EtcdUsersEnabled = "etcd.users_enabled",

    /// A create is in the ledger.
    CreateBegun = "create.begun",
    /// What it asks for is in the store.
    RequestedStored = "requested.stored",
    /// And in the ledger.
    RequestedRecorded = "requested.recorded",
    /// The end of the create is in the ledger.
    CreateEnded = "create.ended",
    /// The store says that it is being made.
    ProvisioningStored = "provisioning.stored",
    /// And the ledger.
    ProvisioningRecorded = "provisioning.recorded",
    /// Its folder is there, and empty.
    FolderMade = "folder.made",
    /// Its keys and certificates are in the folder.
    KeysWritten = "keys.written",
    /// Its role is in etcd.
    RoleMade = "role.made",
    /// Its user is in etcd.
    UserMade = "user.made",
    /// The user has the role.
    UserAdmitted = "user.admitted",
    /// Its control plane runs, and nobody has written that down.
    ControlPlaneSpawned = "control_plane.spawned",
    /// Its process is written down.
    ControlPlaneRecorded = "control_plane.recorded",
    /// Its way out is served.
    WayOutServed = "way_out.served",
    /// Its namespace is on the host, and nothing in it.
    NamespaceMade = "namespace.made",
    /// Everything that stands around it is there.
    WallsMade = "walls.made",
    /// Facts of the build are in it.
    FactsApplied = "facts.applied",
    /// Its profile's manifests are in it.
    ManifestsApplied = "manifests.applied",
    /// Its folder says that it is whole.
    WholeRecorded = "whole.recorded",
    /// The store says that it is ready.
    ReadyStored = "ready.stored",
    /// And the ledger.
    ReadyRecorded = "ready.recorded",

    /// A job that attached is in the store.
    AttachedStored = "attached.stored",
    /// An exchange of a token is in the ledger.
    SessionBegun = "session.begun",
    /// The spent token is in the store.
    SessionStored = "session.stored",
    /// The end of the exchange is in the ledger.
    SessionEnded = "session.ended",
    /// A renewal is in the ledger.
    RenewBegun = "renew.begun",
    /// The lease is in the store.
    LeaseStored = "lease.stored",
    /// The end of the renewal is in the ledger.
    RenewEnded = "renew.ended",

    /// The store says that it broke.
    FailedStored = "failed.stored",
    /// And the ledger.
    FailedRecorded = "failed.recorded",
    /// A release is in the ledger.
    ReleaseBegun = "release.begun",
    /// The store says that it ends.
    ReleasingStored = "releasing.stored",
    /// And the ledger.
    ReleasingRecorded = "releasing.recorded",
    /// The end of the release is in the ledger.
    ReleaseEnded = "release.ended",
    /// Its account is taken away from the host.
    AccountRemoved = "account.removed",
    /// Its namespace is going.
    NamespaceDeleted = "namespace.deleted",
    /// Its control plane has ended.
    ControlPlaneEnded = "control_plane.ended",
    /// Its user is no more.
    UserDeleted = "user.deleted",
    /// Its role is no more.
    RoleDeleted = "role.deleted",
    /// Its keys in etcd are no more.
    KeysDeleted = "keys.deleted",
    /// Its folder is no more.
    FolderDeleted = "folder.deleted",
    /// Nothing of it was found.
    Looked = "looked",
    /// The store says that it is gone: from here on its tombstone says so.
    GoneStored = "gone.stored",
    /// And the ledger.
    GoneRecorded = "gone.recorded",

    /// The server stops, and the last etcd has ended.
    EtcdEnded = "etcd.ended",
    /// Its data is no more.
    EtcdDeleted = "etcd.deleted",
}

impl Point {
    /// A phase is in the store.
    pub(crate) const fn stored(phase: Phase) -> Self {
        match phase {
            Phase::Requested => Self::RequestedStored,
            Phase::Provisioning => Self::ProvisioningStored,
            Phase::Ready => Self::ReadyStored,
            Phase::Failed => Self::FailedStored,
            Phase::Releasing => Self::ReleasingStored,
            Phase::Gone => Self::GoneStored,
        }
    }

    /// A phase is in the ledger.
    pub(crate) const fn recorded(phase: Phase) -> Self {
        match phase {
            Phase::Requested => Self::RequestedRecorded,
            Phase::Provisioning => Self::ProvisioningRecorded,
            Phase::Ready => Self::ReadyRecorded,
            Phase::Failed => Self::FailedRecorded,
            Phase::Releasing => Self::ReleasingRecorded,
            Phase::Gone => Self::GoneRecorded,
        }
    }

    /// What a caller asked is in the ledger, and so is its end.
    pub(crate) const fn of(action: LedgerAction) -> Option<(Self, Self)> {
        match action {
            LedgerAction::EnvironmentCreate => Some((Self::CreateBegun, Self::CreateEnded)),
            LedgerAction::EnvironmentRenew => Some((Self::RenewBegun, Self::RenewEnded)),
            LedgerAction::EnvironmentRelease => Some((Self::ReleaseBegun, Self::ReleaseEnded)),
            LedgerAction::SessionIssue => Some((Self::SessionBegun, Self::SessionEnded)),
            _ => None,
        }
    }
}

/// Ends the process here when a test wants it to.
#[inline(always)]
pub(crate) fn at(point: Point) {
    #[cfg(debug_assertions)]
    armed::at(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::ffi::OsString;
    use std::path::Path;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{CRASH_AT, HELD, HOLD_AT, Point};

    static CRASH: LazyLock<Option<Crash>> = LazyLock::new(|| {
        let text = read(CRASH_AT)?;
        let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Crash {
            name: name.to_owned(),
            left: AtomicU32::new(nth.parse().ok()?),
        })
    });

    static HOLD: LazyLock<Option<Hold>> = LazyLock::new(|| {
        let text = read(HOLD_AT)?;
        let (name, file) = text.split_once('=')?;
        Some(Hold {
            name: name.to_owned(),
            file: file.into(),
        })
    });

    struct Crash {
        name: String,
        left: AtomicU32,
    }

    struct Hold {
        name: String,
        file: OsString,
    }

    fn read(variable: &str) -> Option<String> {
        std::env::var_os(variable)?.into_string().ok()
    }

    pub(super) fn at(point: Point) {
        if let Some(crash) = &*CRASH
            && crash.name == point.name()
            && crash.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            let _ = kill_process(getpid(), Signal::KILL);
            // Nobody comes back from that; if somebody did, it would not go on.
            std::process::abort();
        }
        if let Some(hold) = &*HOLD
            && hold.name == point.name()
        {
            let held = [hold.file.as_os_str(), HELD.as_ref()]
                .into_iter()
                .collect::<OsString>();
            let _ = std::fs::write(held, "");
            while Path::new(&hold.file).exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
