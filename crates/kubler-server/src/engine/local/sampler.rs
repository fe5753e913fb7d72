//! Keeps environments within the sizes of their profiles: looks every few seconds at the memory of each control
//! plane and at what each stores, and marks what is over a bound, so that the next look at the world finds it
//! broken. Never ends anything itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kubler_core::ids::EnvironmentId;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::Slots;
use super::etcd::{self, Client, EtcdError, usage};
use super::pace::Pace;
use super::process::Process;
use super::sizes::Sizes;

/// Wait between two looks when the settings do not say, in seconds.
pub(super) const SAMPLE_SECONDS_DEFAULT: u64 = 3;
/// What an environment stores is counted this often even if nothing seems to have grown, in seconds: what one
/// writes can hide behind what another deletes.
const RECOUNT_SECONDS: u64 = 60;
/// Past this use the history of all environments is compacted at each look, so that nobody can fill the store by
/// overwriting: a quarter of what etcd may hold.
pub(super) const PRESSURE_BYTES: u64 = etcd::STORED_BYTES_MAX / 4;

/// Which bound an environment passed and by how much, for people; set once, as there is no way back.
pub(super) type Excess = Arc<OnceLock<String>>;

/// A usable environment as it is looked at.
struct Watched {
    id: EnvironmentId,
    process: Arc<Process>,
    sizes: Sizes,
    excess: Excess,
}

/// Looks again and again.
pub(super) struct Sampler {
    /// Not the whole engine: its lock must not live on in a look that is under way.
    slots: Arc<Slots>,
    etcd: Client,
    changes: Arc<Notify>,
    pressure_bytes: u64,
    growth: Growth,
    /// When nobody else shares out the CPU.
    pace: Option<Pace>,
    /// etcd's revision at the look before.
    revision: i64,
}

impl Sampler {
    pub(super) fn new(
        slots: Arc<Slots>,
        etcd: Client,
        changes: Arc<Notify>,
        pressure_bytes: u64,
    ) -> Self {
        Self {
            slots,
            etcd,
            changes,
            pressure_bytes,
            growth: Growth::default(),
            pace: None,
            revision: 0,
        }
    }

    /// Also looks at the CPU, in windows of this length.
    pub(super) fn with_pace(self, window: Duration) -> Self {
        Self {
            pace: Some(Pace::new(window)),
            ..self
        }
    }

    /// Looks for ever; one look at a time, however long it takes.
    pub(super) async fn run(mut self, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                // It may just be starting again.
                tracing::debug!(%error, "what environments store could not be counted; trying again");
            }
        }
    }

    /// One look at everybody.
    pub(super) async fn look(&mut self) -> Result<(), EtcdError> {
        let watched = self.watched();
        for one in &watched {
            let bound = one.sizes.memory_bytes_max;
            if let Some(bytes) = memory_bytes(&one.process).filter(|bytes| *bytes > bound) {
                self.mark(one, format!(
                    "its control plane holds {} of memory, and its profile allows {} (`memory_bytes_max`)",
                    mebibytes(bytes), mebibytes(bound)
                ));
            }
        }
        if let Some(pace) = &mut self.pace {
            let now = Instant::now();
            pace.keep_only(|id| watched.iter().any(|one| one.id == id));
            for one in &watched {
                pace.look(one.id, &one.process, now);
            }
        }
        self.look_at_stored(&watched).await
    }

    async fn look_at_stored(&mut self, watched: &[Watched]) -> Result<(), EtcdError> {
        let now = Instant::now();
        let (in_use, revision) = usage::in_use(&self.etcd).await?;
        if in_use > self.pressure_bytes {
            usage::compact(&self.etcd, self.revision).await?;
        }
        self.revision = revision;
        self.growth.saw(in_use);
        self.growth.keep_only(watched.iter().map(|one| one.id));
        for one in watched {
            let bound = one.sizes.stored_bytes_max;
            if !self.growth.is_due(one.id, bound, now) {
                continue;
            }
            let bytes = usage::stored_bytes(&self.etcd, one.id, bound).await?;
            self.growth.counted(one.id, bytes, now);
            if bytes > bound {
                // Counting stops past the bound.
                self.mark(
                    one,
                    format!(
                        "it stores at least {}, and its profile allows {} (`stored_bytes_max`)",
                        mebibytes(bytes),
                        mebibytes(bound)
                    ),
                );
            }
        }
        Ok(())
    }

    fn watched(&self) -> Vec<Watched> {
        let slots = self.slots.lock();
        let usable = slots.iter().filter_map(|(id, slot)| {
            let live = slot.live();
            // While it starts it holds more than it will.
            let live = live.as_ref().filter(|live| live.upstream.is_some())?;
            live.excess.get().is_none().then(|| Watched {
                id: *id,
                process: Arc::clone(&live.process),
                sizes: live.sizes,
                excess: Arc::clone(&live.excess),
            })
        });
        usable.collect()
    }

    fn mark(&self, one: &Watched, excess: String) {
        tracing::warn!(environment = %one.id, excess, "an environment is larger than it may be");
        if one.excess.set(excess).is_ok() {
            self.changes.notify_one();
        }
    }
}

/// Who may have passed a bound since what they store was last counted. Pure. Nobody can hold more than when they
/// were counted plus what etcd grew by since, so those with much room left are counted seldom.
#[derive(Debug, Default)]
struct Growth {
    /// Bytes in use at the last look.
    in_use: Option<u64>,
    /// All growth between two looks, added up; shrinking does not count against it.
    grown: u64,
    counted: HashMap<EnvironmentId, Counted>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    bytes: u64,
    grown: u64,
    at: Instant,
}

impl Growth {
    fn saw(&mut self, in_use: u64) {
        let before = self.in_use.replace(in_use).unwrap_or(in_use);
        self.grown += in_use.saturating_sub(before);
    }

    fn is_due(&self, id: EnvironmentId, bytes_max: u64, now: Instant) -> bool {
        let Some(counted) = self.counted.get(&id) else {
            return true;
        };
        // Half: etcd says what it uses in whole pages, and a moment late.
        let room = bytes_max.saturating_sub(counted.bytes) / 2;
        self.grown - counted.grown > room
            || now.duration_since(counted.at) >= Duration::from_secs(RECOUNT_SECONDS)
    }

    fn counted(&mut self, id: EnvironmentId, bytes: u64, at: Instant) {
        let grown = self.grown;
        self.counted.insert(id, Counted { bytes, grown, at });
    }

    fn keep_only(&mut self, ids: impl Iterator<Item = EnvironmentId>) {
        let ids: HashSet<_> = ids.collect();
        self.counted.retain(|id, _| ids.contains(id));
    }
}

/// What a process holds of its own, in bytes; nothing when it has ended.
pub(super) fn memory_bytes(process: &Process) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.record().pid)).ok()?;
    // Still alive, so the number meant this process when it was read.
    let kibibytes = process.is_alive().then(|| private_kibibytes(&status))?;
    Some(kibibytes * 1024)
}

fn private_kibibytes(status: &str) -> u64 {
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| matches!(*name, "RssAnon" | "RssShmem"))
        .filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .sum()
}

#[allow(clippy::cast_precision_loss, clippy::as_conversions)] // for people, to one digit
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_room_left_for_all_growth_is_not_counted_again() {
        let (small, large) = (
            EnvironmentId::from_random([1; 16]),
            EnvironmentId::from_random([2; 16]),
        );
        let now = Instant::now();
        let mut growth = Growth::default();
        growth.saw(5000);
        assert!(growth.is_due(small, 1000, now), "never counted");
        growth.counted(small, 100, now);
        growth.counted(large, 980, now);
        assert!(!growth.is_due(small, 1000, now) && !growth.is_due(large, 1000, now));
        growth.saw(5020);
        assert!(!growth.is_due(small, 1000, now) && growth.is_due(large, 1000, now));
        // What another deletes hides nothing that grows afterwards.
        growth.saw(100);
        growth.saw(600);
        assert!(growth.is_due(small, 1000, now));
        growth.counted(small, 100, now);
        assert!(!growth.is_due(small, 1000, now));
        assert!(growth.is_due(small, 1000, now + Duration::from_secs(RECOUNT_SECONDS)));
        growth.keep_only([large].into_iter());
        assert!(growth.is_due(small, 1000, now));
    }

    #[test]
    fn memory_is_what_is_neither_files_nor_swapped() {
        let status = "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  500 kB\nRssFile:\t  300 kB\nRssShmem:\t  100 kB\n";
        assert_eq!(private_kibibytes(status), 600);
        assert_eq!(mebibytes(1_572_864), "1.5 MiB");
    }
}
