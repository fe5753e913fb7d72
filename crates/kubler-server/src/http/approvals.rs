//! `/v1/approvals`: requests that wait for an operator.

use axum::Json;
use axum::extract::{Path, State};
use kubler_api::{Approval, Approvals};
use kubler_core::guardrails::approvals::{Approval as Stored, State as Standing};
use kubler_core::guardrails::{verb, what};

use super::reading::{Answer, Refused, Shared, refused};
use crate::broker::Call;

/// The wire form.
fn show(approval: &Stored) -> Approval {
    let asked = &approval.asked;
    let by = match &approval.state {
        Standing::Pending => None,
        Standing::Approved { by } | Standing::Refused { by } => Some(by.clone()),
    };
    Approval {
        id: approval.id.to_string(),
        state: approval.state.as_str().into(),
        by,
        what: what(&asked.request),
        verb: verb(&asked.request).to_owned(),
        group: asked.request.group.clone(),
        resource: asked.request.resource.clone(),
        subresource: asked.request.subresource.clone(),
        namespace: asked.request.namespace.clone(),
        name: asked.request.name.clone(),
        body_sha256: asked.body_sha256.clone(),
        environment_id: asked.environment.to_string(),
        job_id: asked.job_id.clone(),
        job_url: asked.job_url.clone(),
        asked_at: approval.asked_at,
        until: approval.until,
    }
}

/// The requests that wait for an approval, and those that were answered and not yet repeated, oldest first.
#[utoipa::path(get, operation_id = "list_approvals", path = "/v1/approvals", responses(
    (status = 200, body = Approvals), Refused))]
pub(super) async fn list(State(api): Shared, call: Call) -> Answer<Json<Approvals>> {
    let all = api.broker.approvals(&call).await.map_err(refused(&call))?;
    let approvals = all.iter().map(show).collect();
    Ok(Json(Approvals { approvals }))
}

/// Lets one request through, once, when it is repeated as it was.
#[utoipa::path(post, operation_id = "approve", path = "/v1/approvals/{approval}/approve", params(("approval" = String, Path)), responses(
    (status = 200, body = Approval), Refused))]
pub(super) async fn approve(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Approval>> {
    let answered = api.broker.answer_approval(&call, &id, true).await;
    Ok(Json(show(&answered.map_err(refused(&call))?)))
}

/// Refuses one request for as long as it could have been approved.
#[utoipa::path(post, operation_id = "refuse_approval", path = "/v1/approvals/{approval}/refuse", params(("approval" = String, Path)), responses(
    (status = 200, body = Approval), Refused))]
pub(super) async fn refuse(
    State(api): Shared,
    call: Call,
    Path(id): Path<String>,
) -> Answer<Json<Approval>> {
    let answered = api.broker.answer_approval(&call, &id, false).await;
    Ok(Json(show(&answered.map_err(refused(&call))?)))
}
