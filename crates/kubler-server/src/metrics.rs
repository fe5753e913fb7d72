//! OpenMetrics, computed from the state of things when somebody asks: a counter that is kept beside the truth leaks.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kubler_core::environment::Phase;
use kubler_core::host::placement::Health;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::directory::Directory;
use crate::engine::{Standing as HostStanding, Stays};
use crate::ledger::sinks::Standing;
use crate::tasks::unremembered::unremembered;

/// What the reconciler knows that nobody else does.
#[derive(Debug, Default)]
pub struct Gauges {
    stuck: AtomicU64,
    engine_works: AtomicBool,
    bounds: OnceLock<Vec<&'static str>>,
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

    /// What the system holds each environment to; said once.
    pub fn set_bounds(&self, bounds: Vec<&'static str>) {
        let _ = self.bounds.set(bounds);
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

const LEDGER_SINK_BEHIND: Metric = Metric {
    name: "ledger_sink_behind_seconds",
    labels: &["sink"],
    help: "Since when a sink does not have the ledger's latest checkpoint: an alarm when above 300",
};

const ENVIRONMENT_BOUNDS: Metric = Metric {
    name: "environment_bounds",
    labels: &["bound"],
    help: "What the system holds each environment to: 1 for each bound in force",
};

const CONNECTIONS: Metric = Metric {
    name: "connections",
    labels: &[],
    help: "Connections that are open",
};
const CONNECTIONS_MAX: Metric = Metric {
    name: "connections_max",
    labels: &[],
    help: "Connections that may be open, as configured and as the limit of open files allows",
};
const REQUESTS_OPEN: Metric = Metric {
    name: "requests_open",
    labels: &[],
    help: "Requests of the HTTP API that are being answered, this one among them; those to environments are not",
};
const CERTIFICATE_EXPIRES_SECONDS: Metric = Metric {
    name: "certificate_expires_seconds",
    labels: &[],
    help: "When the certificate of the server expires, in seconds since 1970",
};
const CERTIFICATES_REFUSED: Metric = Metric {
    name: "certificates_refused",
    labels: &[],
    help: "1 while the files of certificates cannot be used and the old ones stay in force: an alarm when above zero",
};

const HOST_WELL: Metric = Metric {
    name: "host_well",
    labels: &["host"],
    help: "1 for a host cluster that answers: an alarm when 0",
};
const HOST_ENVIRONMENTS: Metric = Metric {
    name: "host_environments",
    labels: &["host"],
    help: "Environments on a host cluster that are not gone",
};
const HOST_ENVIRONMENTS_MAX: Metric = Metric {
    name: "host_environments_max",
    labels: &["host"],
    help: "Environments that a host cluster may have, as configured",
};
const HOST_CALLS: Metric = Metric {
    name: "host_calls",
    labels: &["host"],
    help: "Requests of the server's own to a host cluster since the start",
};
const HOST_NAMESPACES_WAITING: Metric = Metric {
    name: "host_namespaces_waiting",
    labels: &["host"],
    help: "Namespaces that the server made and whose environments its store does not know: they end at their deadline",
};
const HOST_NAMESPACES_UNTOUCHED: Metric = Metric {
    name: "host_namespaces_untouched",
    labels: &["host"],
    help: "Namespaces that look like environments' that the store does not know, and carry no mark that holds: nobody \
           ends them, an alarm when above zero",
};

/// Every metric; all are gauges.
pub const METRICS: [Metric; 16] = [
    ENVIRONMENTS,
    ENVIRONMENTS_STUCK,
    CONFIGURATION_BAD,
    LEDGER_SINK_BEHIND,
    ENVIRONMENT_BOUNDS,
    HOST_WELL,
    HOST_ENVIRONMENTS,
    HOST_ENVIRONMENTS_MAX,
    HOST_CALLS,
    HOST_NAMESPACES_WAITING,
    HOST_NAMESPACES_UNTOUCHED,
    CONNECTIONS,
    CONNECTIONS_MAX,
    REQUESTS_OPEN,
    CERTIFICATE_EXPIRES_SECONDS,
    CERTIFICATES_REFUSED,
];

/// What the door says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DoorState {
    /// Connections that are open.
    pub connections: usize,
    /// Connections that may be.
    pub connections_max: usize,
    /// Requests that are being answered.
    pub requests_open: usize,
    /// When the server's certificate expires, in seconds since 1970.
    pub certificate_expires_seconds: i64,
    /// Whether the files hold certificates that cannot be used.
    pub certificates_refused: bool,
}

impl DoorState {
    fn register(self, registry: &mut Registry) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let values = [
            (CONNECTIONS, count(self.connections)),
            (CONNECTIONS_MAX, count(self.connections_max)),
            (REQUESTS_OPEN, count(self.requests_open)),
            (
                CERTIFICATE_EXPIRES_SECONDS,
                self.certificate_expires_seconds,
            ),
            (CERTIFICATES_REFUSED, self.certificates_refused.into()),
        ];
        for (metric, value) in values {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            registry.register(metric.name, metric.help, gauge);
        }
    }
}
/// The whole page.
pub fn render(
    directory: &Directory,
    gauges: &Gauges,
    sinks: &[Standing],
    hosts: &[HostStanding],
    door: DoorState,
) -> String {
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
    let behind = Family::<Vec<(String, String)>, Gauge>::default();
    for sink in sinks {
        behind
            .get_or_create(&vec![("sink".into(), sink.name.clone())])
            .set(sink.behind_seconds);
    }
    registry.register(LEDGER_SINK_BEHIND.name, LEDGER_SINK_BEHIND.help, behind);
    let bounds = Family::<Vec<(String, String)>, Gauge>::default();
    for bound in gauges.bounds.get().into_iter().flatten() {
        let label = ("bound".to_owned(), (*bound).to_owned());
        bounds.get_or_create(&vec![label]).set(1);
    }
    registry.register(ENVIRONMENT_BOUNDS.name, ENVIRONMENT_BOUNDS.help, bounds);
    register_hosts(&mut registry, directory, hosts);
    door.register(&mut registry);
    let mut text = String::new();
    // Writing to a String cannot fail; an empty page says more than a panic would.
    let _ = encode(&mut text, &registry);
    text
}

fn register_hosts(registry: &mut Registry, directory: &Directory, hosts: &[HostStanding]) {
    let mut there: BTreeMap<String, i64> = BTreeMap::new();
    for environment in directory.remaining() {
        if let Some(placement) = environment.placement {
            *there.entry(placement.host).or_default() += 1;
        }
    }
    type Value = fn(&HostStanding, i64) -> i64;
    let metrics: [(Metric, Value); 4] = [
        (HOST_WELL, |host, _| (host.health == Health::Well).into()),
        (HOST_ENVIRONMENTS, |_, there| there),
        (HOST_ENVIRONMENTS_MAX, |host, _| {
            host.host.environments_max.into()
        }),
        (HOST_CALLS, |host, _| {
            i64::try_from(host.calls).unwrap_or(i64::MAX)
        }),
    ];
    for (metric, value) in metrics {
        let family = Family::<Vec<(String, String)>, Gauge>::default();
        for standing in hosts {
            let name = standing.host.name.clone();
            let environments = there.get(&name).copied().unwrap_or_default();
            family
                .get_or_create(&vec![("host".to_owned(), name)])
                .set(value(standing, environments));
        }
        registry.register(metric.name, metric.help, family);
    }
    register_unremembered(registry, directory, hosts);
}

fn register_unremembered(registry: &mut Registry, directory: &Directory, hosts: &[HostStanding]) {
    let (waiting, untouched) = <(Hosts, Hosts)>::default();
    for standing in hosts {
        let host = vec![("host".to_owned(), standing.host.name.clone())];
        for (family, is_one) in [
            (&waiting, is_waiting as fn(&Stays) -> bool),
            (&untouched, |why| !is_waiting(why)),
        ] {
            let all = unremembered(directory, standing).filter(|it| is_one(&it.why));
            let count = i64::try_from(all.count()).unwrap_or(i64::MAX);
            family.get_or_create(&host).set(count);
        }
    }
    for (metric, family) in [
        (HOST_NAMESPACES_WAITING, waiting),
        (HOST_NAMESPACES_UNTOUCHED, untouched),
    ] {
        registry.register(metric.name, metric.help, family);
    }
}

type Hosts = Family<Vec<(String, String)>, Gauge>;

const fn is_waiting(why: &Stays) -> bool {
    matches!(why, Stays::Until(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_listed_metrics_and_no_other() {
        let gauges = Gauges::default();
        gauges.set_bounds(vec!["memory"]);
        let page = render(
            &Directory::new(jiff::Timestamp::UNIX_EPOCH),
            &gauges,
            &[Standing {
                name: "https://log.example/kubler".into(),
                behind_seconds: 7,
                message: None,
            }],
            &[HostStanding {
                host: std::sync::Arc::new(
                    serde_json::from_str(r#"{"name": "east", "in_cluster": true}"#).unwrap(),
                ),
                health: Health::Well,
                enforcement: Default::default(),
                kubernetes_version: String::new(),
                message: None,
                calls: 3,
                staying: Vec::new().into(),
            }],
            DoorState::default(),
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
