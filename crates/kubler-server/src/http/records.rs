//! `/v1/ledger`: signed checkpoints and records.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use kubler_api::ledger::{Checkpoint, Records};
use kubler_core::ledger::record::LedgerAction;
use kubler_core::policy::Action;
use serde::Deserialize;

use super::reading::{Answer, Refused, Shared, count, environment_id, refused, unreadable};
use crate::broker::{BrokerError, Call};

/// The latest signed checkpoint of the ledger, to be kept elsewhere.
#[utoipa::path(get, operation_id = "read_checkpoint", path = "/v1/ledger/checkpoint", responses(
    (status = 200, body = Checkpoint), Refused))]
pub(super) async fn checkpoint(State(api): Shared, call: Call) -> Answer<Json<Checkpoint>> {
    // Signing writes to the disk and waits for it.
    let ledger = api.broker.ledger.clone();
    let sign = move || ledger.checkpoint();
    let read = async || match tokio::task::spawn_blocking(sign).await {
        Ok(checkpoint) => Ok(checkpoint?),
        Err(panicked) => Err(BrokerError::broke_down(&panicked)),
    };
    api.broker
        .read_server(
            &call,
            Action::ReadCheckpoint,
            LedgerAction::LedgerRead,
            read,
        )
        .await
        .map(Json)
        .map_err(refused(&call))
}

/// Which records.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RecordsQuery {
    /// Environment id.
    environment: Option<String>,
    /// Job id.
    job: Option<String>,
    /// First sequence.
    #[param(value_type = i64, minimum = 0, required = false)]
    #[serde(deserialize_with = "count")]
    from: Option<u64>,
    /// At most so many.
    #[param(value_type = i64, minimum = 0, required = false)]
    #[serde(deserialize_with = "count")]
    limit: Option<u64>,
}

/// Records of the ledger.
#[utoipa::path(get, operation_id = "read_records", path = "/v1/ledger/records", params(RecordsQuery), responses(
    (status = 200, body = Records), Refused))]
pub(super) async fn read(
    State(api): Shared,
    call: Call,
    query: Result<Query<RecordsQuery>, QueryRejection>,
) -> Answer<Json<Records>> {
    let Query(query) =
        query.map_err(|rejection| unreadable(&rejection.body_text()).with_id(call.request_id))?;
    let environment = query
        .environment
        .as_deref()
        .map(|id| environment_id(id, &call))
        .transpose()?;
    let query = crate::ledger::Query {
        environment,
        job: query.job,
        from: query.from.unwrap_or(0),
        limit: query
            .limit
            .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    };
    let read = async || Ok(api.broker.ledger.read(&query)?);
    api.broker
        .read_server(&call, Action::ReadLedger, LedgerAction::LedgerRead, read)
        .await
        .map(Json)
        .map_err(refused(&call))
}
