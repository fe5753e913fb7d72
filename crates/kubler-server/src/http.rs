//! The HTTP API: reads a request, finds out who calls, asks the broker, writes the answer. Decides nothing.

pub mod error;
pub mod listen;
mod routes;
mod view;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use kubler_core::configuration::Configuration;
use kubler_core::identity::Identity;
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::policy::Operator;
use secrecy::SecretString;

pub use self::routes::{ACCESS, Access, RouteAccess, openapi, router};
use crate::broker::webhook::WebhookSecret;
use crate::broker::{Broker, Call, Who};
use crate::clock::Clock;
use crate::entropy;
use crate::gateway::Gateway;
use crate::http::error::ApiError;
use crate::identity::Verifier;
use crate::ledger::{Durability, RefusalBeforeVerification};
use crate::tasks::reconcile::Gauges;

/// What the routes share.
pub struct Api {
    /// The operations.
    pub broker: Broker,
    /// Who callers are.
    pub verifier: Verifier,
    /// In front of every environment's Kubernetes API.
    pub gateway: Gateway,
    /// What was configured.
    pub configuration: Arc<Configuration>,
    /// PEM of the CA that callers should trust.
    pub ca: Option<String>,
    /// Whose webhooks are believed.
    pub webhook_secrets: Vec<WebhookSecret>,
    /// Numbers.
    pub gauges: Arc<Gauges>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What the connection says of the other side: put there by [`listen`] only.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Its verified client certificate's name.
    pub operator: Option<Operator>,
}

/// One request, before anybody knows who makes it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its name.
    pub request_id: RequestId,
    /// Where from.
    pub peer: Peer,
}

impl<S: Send + Sync> FromRequestParts<S> for Arrival {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(ApiError::internal)
    }
}

impl FromRequestParts<Arc<Api>> for Call {
    type Rejection = ApiError;

    /// An identity token when one is sent, else the client certificate. Never both, so that nobody acts as another.
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let arrival = Arrival::from_request_parts(parts, api).await?;
        let bearer = bearer(parts).map_err(|error| error.of(&arrival))?;
        let who = match (bearer, arrival.peer.operator.clone()) {
            (Some(token), _) => api.job(&arrival, &token).await?,
            (None, Some(operator)) => Who::Operator(operator),
            (None, None) => {
                api.refuse(&arrival, "no_credential");
                return Err(ApiError::unauthenticated(None).of(&arrival));
            }
        };
        Ok(Self {
            request_id: arrival.request_id,
            peer: arrival.peer.address,
            now: api.clock.now(),
            who,
        })
    }
}

impl Api {
    /// Verifies an identity token. All failures look alike from outside, unless the token was validly signed for us.
    ///
    /// # Errors
    /// One uniform 401 (rule T10).
    pub async fn job(&self, arrival: &Arrival, token: &SecretString) -> Result<Who, ApiError> {
        match self.verifier.verify(token).await {
            Ok(verified) => Ok(Who::Job(Box::new(verified))),
            Err(refusal) => {
                match refusal.identity {
                    // Somebody we know: worth a record of its own.
                    Some(identity) => {
                        self.refuse_known(arrival, refusal.reason.as_str(), identity)
                            .await
                    }
                    None => self.refuse(arrival, refusal.reason.as_str()),
                }
                Err(ApiError::unauthenticated(refusal.disclosed).of(arrival))
            }
        }
    }

    async fn refuse_known(&self, arrival: &Arrival, reason: &'static str, identity: Box<Identity>) {
        let mut body = Body::new(Kind::Event, LedgerAction::CallerRefuse);
        body.request_id = Some(arrival.request_id);
        body.peer = Some(arrival.peer.address.to_string());
        body.identity = Some(identity);
        body.details.insert("reason".into(), reason.into());
        if let Err(error) = self.broker.ledger.event(body, Durability::Process).await {
            tracing::error!(%error, "a refusal could not be recorded");
        }
    }

    fn refuse(&self, arrival: &Arrival, reason: &'static str) {
        self.broker.ledger.refuse(RefusalBeforeVerification {
            peer: arrival.peer.address,
            reason,
        });
    }

    /// Gives a request its name.
    ///
    /// # Errors
    /// Without randomness.
    pub fn arrival(peer: Peer) -> Result<Arrival, entropy::NoEntropy> {
        Ok(Arrival {
            request_id: entropy::request_id()?,
            peer,
        })
    }
}

/// The bearer token, if there is an `Authorization` header. Several headers, or another scheme, are refused.
fn bearer(parts: &Parts) -> Result<Option<SecretString>, ApiError> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let token = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match (token, values.next()) {
        (Some((_, token)), None) => Ok(Some(SecretString::from(token.trim()))),
        _ => Err(ApiError::unauthenticated(None)),
    }
}
