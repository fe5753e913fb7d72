//! What the system itself holds a control plane to, with no privilege at all: set from outside right after its
//! start, before anybody but us can ask it for anything.

use std::io;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Most files and sockets of one control plane: a few hundred watches, requests in flight, as many connections out
/// for webhooks, and its own.
pub(super) const OPEN_FILES_MAX: u64 = 4096;
/// Most threads of one control plane, where there is a control group to count them: it has a dozen.
pub(super) const THREADS_MAX: u32 = 1024;
/// Bytes of a dump of its memory, which holds keys and whatever the job stores.
const CORE_BYTES_MAX: u64 = 0;

/// Bounds a process that just started. It may lower these bounds and never raise them, unless it runs as root.
///
/// The size of its log is bounded by itself, before it reads anything. The number of processes is not bounded: the
/// system counts those of a user together, so one environment would be held to what its neighbours have.
///
/// # Errors
/// When the system refuses.
pub(super) fn bound(pid: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let may_have = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    for (resource, most) in [
        (Resource::Nofile, OPEN_FILES_MAX.min(may_have)),
        (Resource::Core, CORE_BYTES_MAX),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        prlimit(Some(pid), resource, limit)?;
    }
    Ok(())
}
