//! `/v1/token`: an identity token becomes a session (RFC 8693).

use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::{Form, Json};
use kubler_api::error::ErrorCode;
use kubler_api::{
    GRANT_TOKEN_EXCHANGE, IssuedToken, TOKEN_TYPE_ACCESS, TOKEN_TYPE_JWT, TokenExchange,
};
use secrecy::{ExposeSecret as _, SecretString};

use super::Arrival;
use super::error::ApiError;
use super::reading::{Answer, Refused, Shared, environment_id, refused, unreadable};

/// Exchanges the CI's identity token for a session (RFC 8693).
#[utoipa::path(post, operation_id = "exchange_token", path = "/v1/token", request_body(content = TokenExchange, content_type = "application/x-www-form-urlencoded"), responses(
    (status = 200, body = IssuedToken), Refused))]
pub(super) async fn exchange(
    State(api): Shared,
    arrival: Arrival,
    body: Result<Form<TokenExchange>, FormRejection>,
) -> Answer<Response> {
    let Form(request) =
        body.map_err(|rejection| unreadable(&rejection.body_text()).of(&arrival))?;
    let wrong = |field: &str, expected: &str| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("`{field}` must be `{expected}`"),
        )
        .of(&arrival)
    };
    if request.grant_type != GRANT_TOKEN_EXCHANGE {
        return Err(wrong("grant_type", GRANT_TOKEN_EXCHANGE));
    }
    if request.subject_token_type != TOKEN_TYPE_JWT {
        return Err(wrong("subject_token_type", TOKEN_TYPE_JWT));
    }
    let who = api
        .job(&arrival, &SecretString::from(request.subject_token))
        .await?;
    let call = api.call(&arrival, who);
    let id = environment_id(&request.resource, &call)?;
    let issued = api
        .broker
        .issue_session(&call, id)
        .await
        .map_err(refused(&call))?;
    let expires_at = issued.exchange.session_end;
    let answer = IssuedToken {
        access_token: issued.token.expose_secret().to_owned(),
        issued_token_type: TOKEN_TYPE_ACCESS.into(),
        token_type: "Bearer".into(),
        expires_in: u64::try_from(expires_at.as_second() - call.now.as_second()).unwrap_or(0),
        expires_at,
        session_id: issued.exchange.session_id.to_string(),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}
