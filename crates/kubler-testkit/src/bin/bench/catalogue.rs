//! Every figure with its bars, in the order in which they are shown.

use crate::figure::{Bar, Figure, Number};

const NONE: &[Bar] = &[];

const fn figure(
    id: &'static str,
    unit: &'static str,
    bars: &'static [Bar],
    what: &'static str,
) -> Figure {
    Figure {
        id,
        what,
        unit,
        bars,
    }
}

pub(crate) const FIGURES: &[Figure] = &[
    figure(
        "local_cold",
        "ms",
        &[Number::Ratio.at_most(0.6)],
        "identity token to first authorised answer through the gateway; baseline: raw start of the stock pair",
    ),
    figure(
        "local_cold_namespace",
        "ms",
        &[Number::Ratio.at_most(0.6)],
        "the same until a new namespace has its service account, so that controllers work on both sides",
    ),
    figure(
        "local_cold_variant",
        "ms",
        NONE,
        "local_cold; baseline: raw start of the same control plane without Kubler",
    ),
    figure(
        "local_cold_kubectl",
        "ms",
        NONE,
        "identity token to first answer of kubectl with an empty cache; baseline: raw start of the stock pair",
    ),
    figure(
        "own_share",
        "ms",
        &[Number::P50.at_most(25.0)],
        "local_cold without the wait for the started control plane",
    ),
    figure(
        "credential_dead",
        "ms",
        &[Number::P99.at_most(100.0)],
        "release sent to session refused",
    ),
    figure(
        "stream_cut",
        "ms",
        &[Number::P99.at_most(1000.0)],
        "release sent to end of an open watch",
    ),
    figure(
        "local_gone",
        "ms",
        &[Number::P50.at_most(1000.0), Number::P99.at_most(3000.0)],
        "release sent to verified gone",
    ),
    figure(
        "crash_recovery",
        "ms",
        &[Number::P50.at_most(1000.0)],
        "SIGKILL of the server with 20 live environments to ready again and a session's first answer",
    ),
    figure(
        "local_many_start",
        "ms",
        &[Number::Ratio.at_most(1.3)],
        "identity token to first answer beside 30 live environments; baseline: beside none",
    ),
    figure(
        "local_many_start_10",
        "ms",
        &[Number::Ratio.at_most(1.3)],
        "the same beside 10",
    ),
    figure(
        "local_many_fit",
        "environments",
        &[Number::P50.at_least(100.0)],
        "live idle environments that fit into 20 GB, extrapolated from those alive in local_many_start",
    ),
    figure(
        "gateway_latency",
        "ms",
        &[Number::P50.at_most(0.3)],
        "added to a GET of a 1 KiB ConfigMap by the gateway; baseline: added by kubectl proxy",
    ),
    figure(
        "get_direct",
        "ms",
        NONE,
        "that GET on the API server's own socket",
    ),
    figure(
        "get_forwarded",
        "ms",
        NONE,
        "the same through the TCP forwarder that kubectl needs",
    ),
    figure(
        "get_kubectl_proxy",
        "ms",
        NONE,
        "the same through kubectl proxy and that forwarder",
    ),
    figure("get_gateway", "ms", NONE, "the same through the gateway"),
    figure(
        "get_gateway_http2",
        "ms",
        NONE,
        "the same through the gateway by HTTP/2; baseline: direct by HTTP/2",
    ),
    figure(
        "gateway_throughput",
        "requests/s",
        &[Number::Ratio.at_least(1.3)],
        "that GET on 32 connections through the gateway; baseline: kubectl proxy",
    ),
    figure(
        "throughput_direct",
        "requests/s",
        NONE,
        "the same on the API server's own socket; baseline: through the forwarder",
    ),
    figure(
        "watch_latency",
        "ms",
        &[Number::P50.at_most(0.3), Number::P99.at_most(2.0)],
        "by how much an event of a watch comes later through the gateway than directly, event by event",
    ),
    figure(
        "namespace_cold",
        "ms",
        &[Number::Ratio.at_most(1.3)],
        "identity token to first answer in a namespace of a host; baseline: the same calls of the API by one client",
    ),
    figure(
        "namespace_cold_tail",
        "ms",
        &[Number::TailRatio.at_most(2.0)],
        "the same; baseline: the p99 of the same calls",
    ),
    figure(
        "namespace_rate",
        "environments/s",
        &[Number::Ratio.at_least(1.0)],
        "such environments made and used, 32 at once; baseline: the same calls, 32 at once",
    ),
    figure(
        "namespace_calls",
        "calls",
        &[Number::P50.at_most(12.0)],
        "calls of the host's API for one environment",
    ),
    figure(
        "namespace_dead",
        "ms",
        &[Number::P99.at_most(100.0)],
        "release sent to session refused, in a namespace of a host",
    ),
    figure(
        "namespace_gone",
        "ms",
        NONE,
        "release sent to verified gone; baseline: deletion of a like namespace by the platform",
    ),
    figure(
        "namespace_gone_added",
        "ms",
        &[Number::P50.at_most(500.0)],
        "what of that is Kubler's",
    ),
    figure(
        "namespace_1000_memory",
        "kB",
        &[Number::P50.at_most(150.0)],
        "what each of 1,000 live namespaces adds to kubler-server",
    ),
    figure(
        "namespace_1000_cpu",
        "% of a core",
        &[Number::P50.at_most(5.0)],
        "CPU of kubler-server with them, when nothing changes",
    ),
    figure(
        "ledger_append",
        "records/s",
        &[Number::P50.at_least(10_000.0)],
        "start records made durable, 256 callers; baseline: each line synced by itself",
    ),
    figure(
        "local_memory",
        "MiB",
        &[Number::P50.at_most(150.0)],
        "private memory of an idle environment's processes; baseline: the idle stock pair",
    ),
    figure(
        "own_memory",
        "MB",
        &[Number::P50.at_most(40.0)],
        "resident memory of an idle kubler-server without environments",
    ),
    figure(
        "own_memory_per_environment",
        "kB",
        &[Number::P50.at_most(200.0)],
        "what each live environment with a used session adds to that",
    ),
    figure(
        "etcd_memory_per_environment",
        "kB",
        NONE,
        "what it adds to the shared etcd",
    ),
    figure(
        "neighbour",
        "ms",
        &[Number::TailRatio.at_most(2.0)],
        "a small request of one tenant while another attacks; baseline: the quiet p99",
    ),
    figure(
        "neighbour_quiet",
        "ms",
        NONE,
        "the same while the other rests",
    ),
    figure(
        "idle_cpu",
        "% of a core",
        &[Number::P50.at_most(1.0)],
        "CPU of one idle environment: its own process and its share of etcd and kubler-server",
    ),
    figure(
        "idle_cpu_control_plane",
        "% of a core",
        NONE,
        "of that, its own process",
    ),
    figure(
        "idle_cpu_etcd",
        "% of a core",
        NONE,
        "of that, its share of etcd",
    ),
    figure(
        "idle_cpu_server",
        "% of a core",
        NONE,
        "of that, its share of kubler-server",
    ),
    figure(
        "cli_size",
        "MB",
        &[Number::P50.at_most(10.0)],
        "the `kubler` binary as distributed",
    ),
    figure(
        "cli_start",
        "ms",
        &[Number::P50.at_most(10.0)],
        "`kubler --version`; baseline: /bin/true",
    ),
    figure(
        "bad_tokens",
        "1/s",
        &[Number::Ratio.at_least(0.8)],
        "token exchanges of 4 callers under 5,000 bad tokens a second from one address; baseline: when it is quiet",
    ),
    figure(
        "bad_tokens_sources",
        "1/s",
        &[Number::Ratio.at_least(0.8)],
        "the same with bad tokens from many addresses",
    ),
    figure(
        "bad_tokens_connections",
        "1/s",
        NONE,
        "the same with bad tokens from 8 clients that open a connection for each, as fast as they can",
    ),
    figure(
        "bad_tokens_answered",
        "1/s",
        NONE,
        "bad tokens that were refused meanwhile, on kept connections",
    ),
    figure(
        "bad_tokens_handshakes",
        "1/s",
        NONE,
        "bad tokens that were refused meanwhile, each on a connection of its own",
    ),
    figure(
        "idle_connection_memory",
        "KiB",
        NONE,
        "memory of the server for one idle connection, with 10,000 of them",
    ),
];
