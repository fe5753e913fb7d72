//! One admitted request on its way: recorded, sent, answered.

use std::sync::Arc;

use axum::body::Body;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use kubler_core::guardrails::Needs;
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::Outcome;
use kubler_core::profile::EngineKind;
use kubler_core::request::headers::{self, AUDIT_ID, Impersonation, Seal};
use kubler_core::request::upgrade::{Agreed, Upgrade};
use kubler_core::request::{ApiRequest, Span};
use tokio::time::Instant;

use super::admission::Admission;
use super::body::{BytesMax, Progress, RequestBody};
use super::framing::Framing;
use super::gate::{Gate, Room};
use super::load::Turn;
use super::status::{Refused, audit_id};
use super::stream::{AnswerBody, OpenStream, Running};
use super::upgrade::{Crossing, Ready, cross};
use super::wire::{SendError, Wire};
use crate::ledger::Entry;

/// A request that may go on: read, checked and admitted.
pub(super) struct Admitted {
    pub(super) request_id: RequestId,
    pub(super) admission: Arc<Admission>,
    pub(super) understood: ApiRequest,
    pub(super) outgoing: Outgoing,
    pub(super) bytes_max: BytesMax,
    /// What a guardrail wants to see in its body, or have approved.
    pub(super) needs: Needs,
    /// When its answer goes on.
    pub(super) room: Option<Room>,
    /// When it changes the protocol.
    pub(super) crossing: Option<Crossing>,
}

/// What is sent to the API server besides the body. Built before anything is recorded, so that a request whose
/// headers are refused never gets a start record.
pub(super) struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    seal: Seal,
    impersonation: Impersonation,
    upgrade: Option<Upgrade>,
}

impl Outgoing {
    /// Builds it from what the client sent and what was understood.
    ///
    /// # Errors
    /// When a header tries to be somebody else.
    pub(super) fn build(
        parts: &Parts,
        understood: &ApiRequest,
        gate: &Gate,
        engine: EngineKind,
        request_id: RequestId,
    ) -> Result<Self, headers::HeaderFault> {
        let impersonation = match engine {
            // A cluster of its own: its own API server decides who may be whom in it.
            EngineKind::Local => Impersonation::Forwarded,
            // A cluster that others share: nobody is anybody else there.
            EngineKind::Namespace => Impersonation::Refused,
        };
        let seal = gate.pool().destination().seal(audit_id(request_id));
        let headers = headers::to_upstream(&parts.headers, impersonation, &seal)?;
        let uri = Uri::from(understood.target().clone());
        Ok(Self {
            method: parts.method.clone(),
            uri,
            headers,
            seal,
            impersonation,
            upgrade: None,
        })
    }

    /// The same with a wish to change the protocol.
    pub(super) fn upgrading(self, upgrade: Option<Upgrade>) -> Self {
        Self { upgrade, ..self }
    }

    /// As if something had slipped through the rules.
    #[cfg(test)]
    pub(super) fn slip(&mut self, name: header::HeaderName, value: HeaderValue) {
        self.headers.append(name, value);
    }

    fn request(&self, body: RequestBody) -> Result<Request<RequestBody>, Refused> {
        if let Err(broken) = headers::check_seal(&self.headers, self.impersonation, &self.seal) {
            tracing::error!(%broken, "a request was stopped at the last moment");
            return Err(Refused::other(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "BrokenSeal",
                broken.to_string(),
            ));
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        // What was checked holds nothing of the kind; this is all there will be of it.
        if let Some(upgrade) = &self.upgrade {
            upgrade.write(request.headers_mut());
        }
        Ok(request)
    }

    /// Whether sending it twice does the same as sending it once, and the body can be sent again.
    fn is_repeatable(&self, body: &RequestBody) -> bool {
        body.is_empty() && matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// Sends `admitted` on, now that `entry` is in the ledger. Whatever happens, the entry gets its end.
pub(super) async fn forward(
    gate: Arc<Gate>,
    admitted: Admitted,
    turn: Turn,
    body: Body,
    entry: Entry,
) -> Result<Response<Body>, Refused> {
    let started = Instant::now();
    let (body, progress) =
        RequestBody::new(body, admitted.bytes_max.bytes(), gate.bounds().silence_max);
    let span = admitted.understood.span();
    let answered = tokio::select! {
        biased;
        answered = answer_in_time(&gate, &admitted.outgoing, body, &progress, admitted.bytes_max, span) => answered,
        () = gate.closed() => Err(gate.cut().map_or_else(stopped, |cut| cut.refused.clone())),
    };
    turn.sent(progress.bytes());
    match answered {
        Ok(Answered::Switched(head, agreed, wire)) => {
            let ready = Ready {
                gate,
                admission: admitted.admission,
                request_id: admitted.request_id,
                audit_id: admitted.outgoing.seal.audit_id.clone(),
                entry,
                started,
                shares: (turn, admitted.room),
            };
            Ok(cross(ready, admitted.crossing, head, agreed, wire))
        }
        Ok(Answered::Answer(answer, wire)) => {
            let (head, incoming) = answer.into_parts();
            let framing = Framing::of(span, &head.headers);
            let status = head.status.as_u16();
            let mut response = Response::new(());
            *response.status_mut() = head.status;
            *response.headers_mut() = answer_headers(
                &head.headers,
                &admitted.outgoing,
                head.status,
                &admitted.admission,
            );
            let length = incoming.size_hint().exact();
            let running = Running {
                wire,
                incoming,
                entry,
                progress,
                framing,
                status,
                started,
                bytes_out: 0,
                turn,
                _room: admitted.room,
            };
            let stream = OpenStream::new(running, admitted.admission, admitted.request_id, span);
            let body = AnswerBody::new(stream, gate, length);
            Ok(response.map(|()| Body::new(body)))
        }
        Err(refused) => {
            let outcome = Outcome {
                status: refused.status.as_u16(),
                code: Some(refused.code.to_owned()),
                message: Some(refused.message.clone()),
                bytes_in: progress.bytes(),
                duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                close_reason: gate.cut().map(|cut| cut.close_reason.to_owned()),
                ..Outcome::default()
            };
            entry.end(outcome).await;
            Err(refused)
        }
    }
}

pub(super) fn stopped() -> Refused {
    Refused::unavailable(
        "Stopping",
        "the environment's gate was closed; try again in a moment",
    )
}

async fn answer_in_time(
    gate: &Gate,
    outgoing: &Outgoing,
    body: RequestBody,
    progress: &Progress,
    bytes_max: BytesMax,
    span: Span,
) -> Result<Answered, Refused> {
    let answer = answer(gate, outgoing, body, progress, bytes_max);
    match span {
        // A connection goes on, but the answer that it begins with is a short one.
        _ if outgoing.upgrade.is_none() && span != Span::Short => answer.await,
        Span::Short | Span::Watch | Span::Long => {
            let limit = gate.bounds().answer_max;
            tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
                let message = format!("the environment's API server did not answer within {} s; what it did is not known", limit.as_secs());
                Err(Refused::other(StatusCode::GATEWAY_TIMEOUT, "Timeout", "UpstreamTimeout", message))
            })
        }
    }
}

/// What the API server answered.
enum Answered {
    /// An answer like others.
    Answer(Response<Incoming>, Wire),
    /// From now on the connection speaks another protocol; the client is told so by these headers.
    Switched(HeaderMap, Agreed, Wire),
}

async fn answer(
    gate: &Gate,
    outgoing: &Outgoing,
    body: RequestBody,
    progress: &Progress,
    bytes_max: BytesMax,
) -> Result<Answered, Refused> {
    let is_repeatable = outgoing.is_repeatable(&body);
    let mut request = outgoing.request(body)?;
    // A change of protocol gets a connection of its own.
    let reused = match outgoing.upgrade {
        Some(_) => None,
        None => gate.pool().reuse().await,
    };
    if let Some(mut wire) = reused {
        match wire.send(request).await {
            Ok(answer) => return accept(outgoing, answer, wire),
            // The API server closed a resting connection just now: that says nothing about the request.
            Err(SendError::Unsent(unsent)) => request = *unsent,
            Err(SendError::Unknown(_)) if is_repeatable => {
                request = outgoing.request(RequestBody::Empty)?
            }
            Err(SendError::Unknown(error)) => return Err(broken(&error, progress, bytes_max)),
        }
    }
    let mut wire = gate.pool().connect().await.map_err(|error| {
        Refused::unavailable(
            "UpstreamUnreachable",
            format!("the environment does not answer now: {error}"),
        )
    })?;
    match wire.send(request).await {
        Ok(answer) => accept(outgoing, answer, wire),
        Err(SendError::Unsent(_)) => Err(Refused::unavailable(
            "UpstreamUnreachable",
            "the environment closed the connection before the request was sent",
        )),
        Err(SendError::Unknown(error)) => Err(broken(&error, progress, bytes_max)),
    }
}

fn accept(
    outgoing: &Outgoing,
    answer: Response<Incoming>,
    wire: Wire,
) -> Result<Answered, Refused> {
    match answer.status() {
        // A 401 passed on would send the client for a new session, which is not what is missing.
        StatusCode::UNAUTHORIZED => {
            tracing::error!("an environment's API server does not accept the gateway's credential");
            let message = "the environment does not accept the gateway now; the operator finds more in the server's log";
            Err(Refused::other(
                StatusCode::BAD_GATEWAY,
                "InternalError",
                "UpstreamUnauthorized",
                message,
            ))
        }
        StatusCode::SWITCHING_PROTOCOLS => {
            let Some(upgrade) = &outgoing.upgrade else {
                let message = "the environment changed the protocol without being asked";
                return Err(wrong_protocol(message));
            };
            let agreed = upgrade
                .agreed(answer.status(), answer.headers())
                .map_err(|fault| wrong_protocol(fault.to_string()))?;
            Ok(Answered::Switched(upgrade.answer(&agreed), agreed, wire))
        }
        _ => Ok(Answered::Answer(answer, wire)),
    }
}

fn wrong_protocol(message: impl Into<String>) -> Refused {
    Refused::other(
        StatusCode::BAD_GATEWAY,
        "InternalError",
        "UpstreamProtocol",
        message,
    )
}

/// The connection broke in the middle: because of the client's body, or because of the API server.
fn broken(error: &hyper::Error, progress: &Progress, bytes_max: BytesMax) -> Refused {
    progress.state().refused(bytes_max).unwrap_or_else(|| {
        tracing::warn!(%error, "a request broke off on its way to an environment");
        let message =
            "the environment's API server broke off the connection; what it did is not known";
        Refused::other(
            StatusCode::BAD_GATEWAY,
            "InternalError",
            "UpstreamBroken",
            message,
        )
    })
}

fn answer_headers(
    upstream: &HeaderMap,
    outgoing: &Outgoing,
    status: StatusCode,
    admission: &Admission,
) -> HeaderMap {
    let mut headers = headers::to_client(upstream);
    // Where there is no body the length is a statement, not a count.
    if (outgoing.method == Method::HEAD || status == StatusCode::NOT_MODIFIED)
        && let Some(length) = upstream.get(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    if let Some(location) = upstream
        .get(header::LOCATION)
        .and_then(|value| relocated(value, admission))
    {
        headers.insert(header::LOCATION, location);
    }
    headers.insert(AUDIT_ID, outgoing.seal.audit_id.clone());
    headers
}

/// A redirect within the API server, as seen from outside; others would lead the client past the gateway.
fn relocated(location: &HeaderValue, admission: &Admission) -> Option<HeaderValue> {
    let path = location
        .to_str()
        .ok()
        .filter(|path| path.starts_with('/') && !path.starts_with("//"))?;
    HeaderValue::from_str(&format!(
        "{}{path}",
        kubler_api::paths::gateway(&admission.session().environment.to_string())
    ))
    .ok()
}
