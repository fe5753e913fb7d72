//! What machines ask: health, readiness, metrics, and the document that describes all of it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use kubler_api::Health;
use kubler_core::host::placement::Health as HostHealth;
use kubler_core::ledger::record::LedgerAction;
use kubler_core::policy::Action;

use super::Api;
use super::reading::{Answer, Refused, Shared, refused};
use super::routes::openapi;
use crate::broker::Call;
use crate::engine::Standing as HostStanding;
use crate::ledger::sinks::Standing;
use crate::metrics::DoorState;

/// OpenMetrics.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"), Refused))]
pub(super) async fn metrics(State(api): Shared, call: Call) -> Answer<Response> {
    let read = async || {
        let (directory, gauges) = (&api.broker.directory, &api.gauges);
        let standings = api.sinks.standings(api.clock.now());
        Ok(crate::metrics::render(
            directory,
            gauges,
            &standings,
            &api.standings(),
            api.door(),
        ))
    };
    let text = api
        .broker
        .read_server(&call, Action::ReadMetrics, LedgerAction::MetricsRead, read)
        .await
        .map_err(refused(&call))?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
        .into_response())
}

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(super) async fn healthz(State(api): Shared) -> Json<Health> {
    Json(api.health(BTreeMap::new()))
}

/// Whether it can do its work: store, ledger, engine.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn readyz(State(api): Shared) -> (StatusCode, Json<Health>) {
    let say = |result: Result<(), String>| result.err().unwrap_or_else(|| "ok".into());
    let mut checks = BTreeMap::new();
    checks.insert(
        "store".to_owned(),
        say(api
            .broker
            .store
            .check(api.clock.now())
            .await
            .map_err(|_| "cannot be written".into())),
    );
    checks.insert(
        "ledger".to_owned(),
        say(if api.broker.ledger.is_writable() {
            Ok(())
        } else {
            Err("cannot be written".into())
        }),
    );
    checks.insert(
        "engine".to_owned(),
        say(if api.gauges.engine_works() {
            Ok(())
        } else {
            Err("cannot look at the world".into())
        }),
    );
    let mut health = api.health(checks);
    health.remarks = api.sink_remarks();
    health.remarks.extend(api.issuer_remarks());
    health.remarks.extend(api.host_remarks());
    let status = if health.status == "ok" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health))
}

impl Api {
    fn door(&self) -> DoorState {
        DoorState {
            connections: self.places.taken(),
            connections_max: self.places.all_max(),
            requests_open: Arc::strong_count(&self.answering).saturating_sub(1),
            certificate_expires_seconds: self.tls.expires_at(),
            certificates_refused: self.tls.is_refusing(),
        }
    }

    fn health(&self, checks: BTreeMap<String, String>) -> Health {
        let well = checks.values().all(|check| check == "ok");
        Health {
            status: if well { "ok" } else { "unavailable" }.into(),
            checks,
            remarks: BTreeMap::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            now: self.clock.now(),
        }
    }

    /// Sinks that are behind: nothing waits for them, and somebody should look.
    fn sink_remarks(&self) -> BTreeMap<String, String> {
        let standings = self.sinks.standings(self.clock.now());
        let behind = standings
            .into_iter()
            .enumerate()
            .filter(|(_, standing)| standing.is_alarming());
        // By number: anybody may ask, and a place is nobody's business.
        let remark = |(nth, standing): (usize, Standing)| {
            let name = format!("ledger.sinks[{nth}]");
            (name, format!("behind since {} s", standing.behind_seconds))
        };
        behind.map(remark).collect()
    }

    /// Hosts that do not answer: nothing new goes there.
    fn host_remarks(&self) -> BTreeMap<String, String> {
        let mut remarks = BTreeMap::new();
        for (nth, standing) in self.standings().iter().enumerate() {
            // By number and without a reason: anybody may ask.
            if standing.health != HostHealth::Well {
                let state = standing.health.as_str();
                remarks.insert(format!("hosts[{nth}]"), format!("it is {state}"));
            }
        }
        remarks
    }

    /// How the hosts are, in the order of the configuration.
    fn standings(&self) -> Vec<HostStanding> {
        let engines = self.engines.iter();
        engines.filter_map(|engine| engine.standing()).collect()
    }

    /// Issuers without fresh keys: when they are too old, or there are none, jobs are refused.
    fn issuer_remarks(&self) -> BTreeMap<String, String> {
        let mut remarks = BTreeMap::new();
        for (nth, health) in self.verifier.health().into_iter().enumerate() {
            // How they are, and not why: anybody may ask, and what is in our network is nobody's business.
            let state = health.state;
            if state != "fresh" {
                remarks.insert(format!("issuers[{nth}]"), format!("its keys are {state}"));
            }
        }
        remarks
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn openapi_document() -> Json<&'static utoipa::openapi::OpenApi> {
    static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(openapi);
    Json(&DOCUMENT)
}
