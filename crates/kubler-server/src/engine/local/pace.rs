//! Where no control group shares out the CPU: an environment that uses much of it for a while goes behind its
//! neighbours, the server and etcd, until it uses less. It loses nothing on a machine with nothing else to do.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use kubler_core::ids::EnvironmentId;
use rustix::process::Pid;

use super::process::Process;

/// From this many cores on, in the mean of a window, an environment uses much.
const CORES_MAX: f64 = 0.5;
/// Looks at sizes that make one window.
pub(super) const WINDOW_LOOKS: u32 = 4;
/// The niceness of who uses much: a tenth of the share of others who want the CPU as well.
pub(super) const NICE: i32 = 10;
/// Clock ticks in a second, as `/proc` counts them on every Linux that runs Rust.
const TICKS_PER_SECOND: f64 = 100.0;

/// Who goes how fast.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    seen: HashMap<EnvironmentId, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    ticks: u64,
    at: Instant,
    is_behind: bool,
}

impl Pace {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            seen: HashMap::new(),
        }
    }

    /// What an environment has used of the CPU until now; says when it has to go behind, or may come back. Pure.
    fn saw(&mut self, id: EnvironmentId, ticks: u64, now: Instant) -> Option<bool> {
        let first = Seen {
            ticks,
            at: now,
            is_behind: false,
        };
        let seen = self.seen.entry(id).or_insert(first);
        let passed = now.duration_since(seen.at);
        if passed < self.window {
            return None;
        }
        #[allow(clippy::cast_precision_loss, clippy::as_conversions)] // a few thousand ticks
        let seconds = ticks.saturating_sub(seen.ticks) as f64 / TICKS_PER_SECOND;
        let is_behind = seconds / passed.as_secs_f64() > CORES_MAX;
        let was_behind = seen.is_behind;
        *seen = Seen {
            ticks,
            at: now,
            is_behind,
        };
        (was_behind != is_behind).then_some(is_behind)
    }

    pub(super) fn keep_only(&mut self, is_known: impl Fn(EnvironmentId) -> bool) {
        self.seen.retain(|id, _| is_known(*id));
    }

    /// Looks at one.
    pub(super) fn look(&mut self, id: EnvironmentId, process: &Process, now: Instant) {
        let Some(ticks) = process.cpu_ticks() else {
            return;
        };
        match self.saw(id, ticks, now) {
            Some(true) => {
                let result = set_niceness(process, NICE);
                tracing::info!(environment = %id, ?result, "an environment uses much of the CPU and goes behind the others");
            }
            // Only a privileged server may give back what was taken.
            Some(false) => drop(set_niceness(process, 0)),
            None => {}
        }
    }
}

/// Of all its threads: it has a process group to itself.
pub(super) fn set_niceness(process: &Process, nice: i32) -> io::Result<()> {
    let group = Pid::from_raw(process.record().pid).filter(|_| process.is_alive());
    let group = group.ok_or(io::ErrorKind::NotFound)?;
    Ok(rustix::process::setpriority_pgrp(Some(group), nice)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_much_for_a_window_goes_behind_and_comes_back_after_a_calm_one() {
        let (busy, calm) = (
            EnvironmentId::from_random([1; 16]),
            EnvironmentId::from_random([2; 16]),
        );
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(Duration::from_secs(10));
        // What came before the first look was the start.
        assert_eq!(pace.saw(busy, 5000, at(0)), None);
        assert_eq!(pace.saw(calm, 5000, at(0)), None);
        assert_eq!(pace.saw(busy, 6000, at(9)), None, "too early to say");
        assert_eq!(pace.saw(busy, 6000, at(10)), Some(true));
        assert_eq!(pace.saw(calm, 5400, at(10)), None);
        assert_eq!(pace.saw(busy, 7000, at(20)), None, "it is behind already");
        assert_eq!(pace.saw(busy, 7100, at(30)), Some(false));
        pace.keep_only(|id| id == calm);
        assert_eq!(pace.seen.len(), 1);
    }
}
