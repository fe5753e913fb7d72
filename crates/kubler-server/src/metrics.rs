//! OpenMetrics, computed from the state of things when somebody asks: a counter that is kept beside the truth leaks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kubler_core::environment::Phase;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::directory::Directory;

/// What the reconciler knows that nobody else does.
#[derive(Debug, Default)]
pub struct Gauges {
    stuck: AtomicU64,
    engine_works: AtomicBool,
    configuration_bad: AtomicBool,
}

impl Gauges {
    /// How many environments resist their end.
    pub fn set_stuck(&self, count: u64) {
        self.stuck.store(count, Ordering::Relaxed);
    }

    /// How many environments resist their end.
    pub fn stuck(&self) -> u64 {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Whether the files were bad when they were last loaded.
    pub fn set_configuration_bad(&self, bad: bool) {
        self.configuration_bad.store(bad, Ordering::Relaxed);
    }

    /// Whether the last look at the world worked.
    pub fn engine_worked(&self, worked: bool) {
        self.engine_works.store(worked, Ordering::Relaxed);
    }

    /// Whether the last look at the world worked.
    pub fn engine_works(&self) -> bool {
        self.engine_works.load(Ordering::Relaxed)
    }
}

/// One metric. The reference page is generated from [`METRICS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name without [`PREFIX`].
    pub name: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// What every name begins with, before a `_`.
pub const PREFIX: &str = "kubler";

const ENVIRONMENTS: Metric = Metric {
    name: "environments",
    labels: &["phase"],
    help: "Environments that are not gone, by phase",
};
const ENVIRONMENTS_STUCK: Metric = Metric {
    name: "environments_stuck",
    labels: &[],
    help: "Environments that resist their end: an alarm when above zero",
};

const CONFIGURATION_BAD: Metric = Metric {
    name: "configuration_bad",
    labels: &[],
    help: "1 while an older configuration is in force because the files were bad when they were last loaded: an alarm",
};

/// Every metric; all are gauges.
pub const METRICS: [Metric; 3] = [ENVIRONMENTS, ENVIRONMENTS_STUCK, CONFIGURATION_BAD];

/// The whole page.
pub fn render(directory: &Directory, gauges: &Gauges) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    let phases = Family::<Vec<(String, String)>, Gauge>::default();
    for phase in Phase::ALL.into_iter().filter(|phase| *phase != Phase::Gone) {
        phases
            .get_or_create(&vec![("phase".into(), phase.as_str().into())])
            .set(0);
    }
    for environment in directory.remaining() {
        phases
            .get_or_create(&vec![("phase".into(), environment.phase.as_str().into())])
            .inc();
    }
    registry.register(ENVIRONMENTS.name, ENVIRONMENTS.help, phases);
    let stuck: Gauge = Gauge::default();
    stuck.set(i64::try_from(gauges.stuck()).unwrap_or(i64::MAX));
    registry.register(ENVIRONMENTS_STUCK.name, ENVIRONMENTS_STUCK.help, stuck);
    let bad: Gauge = Gauge::default();
    bad.set(gauges.configuration_bad.load(Ordering::Relaxed).into());
    registry.register(CONFIGURATION_BAD.name, CONFIGURATION_BAD.help, bad);
    let mut text = String::new();
    // Writing to a String cannot fail; an empty page says more than a panic would.
    let _ = encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_listed_metrics_and_no_other() {
        let page = render(
            &Directory::new(jiff::Timestamp::UNIX_EPOCH),
            &Gauges::default(),
        );
        let named: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        let listed: Vec<_> = METRICS
            .iter()
            .map(|metric| format!("{PREFIX}_{} gauge", metric.name))
            .collect();
        assert_eq!(named, listed);
    }
}
