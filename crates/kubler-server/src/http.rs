//! The HTTP API: reads a request, finds out who calls, asks the broker, writes the answer. Decides nothing.

mod approvals;
mod bodies;
mod connection;
mod environments;
pub mod error;
mod health;
pub mod listen;
pub mod places;
mod reading;
mod records;
mod routes;
mod sessions;
pub mod tls;
mod view;
mod webhooks;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use jiff::Timestamp;
use kubler_api::error::ErrorCode;
use kubler_core::ids::{RequestId, TokenDigest};
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::policy::Operator;
use kubler_core::text::UntrustedText;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use self::places::Places;
pub use self::routes::{ACCESS, Access, RouteAccess, openapi, router};
use self::tls::Tls;
use crate::bearer::{self, Bearer};
use crate::broker::{Broker, Call, Who};
use crate::clock::Clock;
use crate::engine::Engine;
use crate::entropy;
use crate::gateway::Gateway;
use crate::http::error::ApiError;
use crate::identity::{ListedOrganization, Refusal, Verifier};
use crate::in_force;
use crate::ledger::sinks::Sinks;
use crate::ledger::{Durability, RefusalBeforeVerification};
use crate::metrics::Gauges;

/// What the routes share.
pub struct Api {
    /// The operations.
    pub broker: Broker,
    /// Who callers are.
    pub verifier: Verifier,
    /// In front of every environment's Kubernetes API.
    pub gateway: Gateway,
    /// What makes and destroys environments.
    pub engines: Vec<Arc<dyn Engine>>,
    /// What the configuration says now.
    pub in_force: in_force::Shared,
    /// Numbers.
    pub gauges: Arc<Gauges>,
    /// Where the ledger's checkpoints are kept outside.
    pub sinks: Arc<Sinks>,
    /// Refused tokens that have their record.
    pub told: Told,
    /// The certificates in force.
    pub tls: Arc<Tls>,
    /// Places for connections.
    pub places: Arc<Places>,
    /// Every request that is being answered keeps one of these.
    pub answering: Arc<()>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Refusals that have a record of their own in this minute. So many and no more: the others are counted. Each listed
/// organization has its own share, and all others one, so that nobody who has an account at the issuer hides what is
/// tried with a listed organization's tokens.
#[derive(Debug)]
pub struct Told(Mutex<(Timestamp, Shares)>);

type Shares = HashMap<Option<ListedOrganization>, HashSet<(&'static str, TokenDigest)>>;

impl Told {
    /// How long a refusal that was recorded is only counted, in seconds.
    const SECONDS: i64 = 60;
    /// How many records of their own the refusals of one share get in that time.
    const MAX: usize = 120;

    fn is_news(
        &self,
        of: Option<ListedOrganization>,
        refusal: (&'static str, TokenDigest),
        now: Timestamp,
    ) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, shares) = &mut *told;
        if now.as_second().saturating_sub(since.as_second()) >= Self::SECONDS {
            *since = now;
            shares.clear();
        }
        let known = shares.entry(of).or_default();
        known.len() < Self::MAX && known.insert(refusal)
    }
}

impl Default for Told {
    fn default() -> Self {
        Self(Mutex::new((Timestamp::MIN, Shares::new())))
    }
}

/// What the connection says of the other side: put there by [`listen`] only.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Its client certificate.
    pub certificate: Certificate,
}

/// What a caller's certificate is worth at the moment of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// There is none.
    Absent,
    /// Verified: this operator's.
    Operator(Operator),
    /// It was good when the connection was opened, and is not any more.
    Over,
}

/// One request, before anybody knows who makes it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its name.
    pub request_id: RequestId,
    /// Where from.
    pub peer: Peer,
    gone: CancellationToken,
}

impl Arrival {
    /// Gives a request its name. `gone` is cancelled when nobody waits for its answer any more.
    ///
    /// # Errors
    /// Without randomness.
    pub fn new(peer: Peer, gone: CancellationToken) -> Result<Self, entropy::NoEntropy> {
        Ok(Self {
            request_id: entropy::request_id()?,
            peer,
            gone,
        })
    }

    /// Waits for something as long as the caller is there to hear of it. For what only waits: what changes something
    /// goes to its end.
    pub async fn while_here<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.gone.run_until_cancelled(wait).await
    }
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
        let refuse = |reason| {
            api.refuse(&arrival, reason);
            Err(ApiError::unauthenticated(None).of(&arrival))
        };
        let who = match (bearer::token(&parts.headers), &arrival.peer.certificate) {
            (Bearer::Malformed, _) => return refuse("authorization_malformed"),
            (Bearer::Token(token), _) => api.job(&arrival, &SecretString::from(token)).await?,
            (Bearer::Absent, Certificate::Operator(operator)) => Who::Operator(operator.clone()),
            (Bearer::Absent, Certificate::Over) => return refuse("operator_certificate_over"),
            (Bearer::Absent, Certificate::Absent) => return refuse("no_credential"),
        };
        Ok(api.call(&arrival, who))
    }
}

impl Api {
    /// Verifies an identity token. All failures look alike from outside, unless the token was validly signed for us.
    ///
    /// # Errors
    /// One uniform 401 (rule T10); 503 when the issuer's keys cannot be had, so that the caller tries again.
    pub async fn job(&self, arrival: &Arrival, token: &SecretString) -> Result<Who, ApiError> {
        match self.verifier.verify(token).await {
            Ok(verified) => Ok(Who::Job(Box::new(verified))),
            Err(refusal) => {
                let answer = if refusal.reason.is_temporary() {
                    ApiError::new(
                        ErrorCode::Unavailable,
                        "the caller cannot be verified at this moment: the issuer's keys cannot be had",
                    )
                    .hint("try again in a moment; if it stays so, the operator finds the reason in the server's log")
                } else {
                    ApiError::unauthenticated(refusal.disclosed.clone())
                };
                self.refuse_token(arrival, TokenDigest::of(token.expose_secret()), refusal)
                    .await;
                Err(answer.of(arrival))
            }
        }
    }

    /// Records why a token was refused. A validly signed one gets a record of its own, once in a while: the same
    /// refusal again is counted, so that nobody fills the ledger with a dead token.
    async fn refuse_token(&self, arrival: &Arrival, digest: TokenDigest, refusal: Refusal) {
        let reason = refusal.reason.as_str();
        let is_signed = refusal.identity.is_some() || refusal.detail.is_some();
        let is_news = |told: &Told| {
            let now = self.clock.now();
            told.is_news(refusal.listed.as_deref().cloned(), (reason, digest), now)
        };
        if !is_signed || !is_news(&self.told) {
            return self.refuse(arrival, reason);
        }
        let mut body = Body::new(Kind::Event, LedgerAction::CallerRefuse);
        body.request_id = Some(arrival.request_id);
        body.peer = Some(arrival.peer.address.to_string());
        body.token_sha256 = Some(digest.to_string());
        body.identity = refusal.identity;
        body.details.insert("reason".into(), reason.into());
        if let Some(detail) = refusal.detail {
            let detail = UntrustedText::new(&detail);
            body.details.insert("detail".into(), detail.as_str().into());
        }
        body.note_clock_skew(refusal.clock_skew_seconds);
        if let Err(error) = self.broker.ledger.event(body, Durability::Process).await {
            tracing::error!(%error, "a refusal could not be recorded");
        }
    }

    /// What a caller asks, from here on under what is in force now.
    fn call(&self, arrival: &Arrival, who: Who) -> Call {
        Call {
            request_id: arrival.request_id,
            peer: arrival.peer.address,
            now: self.clock.now(),
            in_force: self.in_force.load_full(),
            who,
        }
    }

    fn refuse(&self, arrival: &Arrival, reason: &'static str) {
        let refusal = RefusalBeforeVerification {
            peer: arrival.peer.address,
            reason,
        };
        self.broker
            .ledger
            .refuse_request(arrival.request_id, refusal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_get_so_many_records_of_their_own_in_a_minute_and_no_more() {
        let told = Told::default();
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let token = |nth: usize| ("token_expired", TokenDigest::of(&nth.to_string()));
        assert!(told.is_news(None, token(0), at(0)));
        assert!(!told.is_news(None, token(0), at(59)), "the same again");
        let others = (1..5000)
            .filter(|nth| told.is_news(None, token(*nth), at(1)))
            .count();
        assert_eq!(others, Told::MAX - 1);
        assert!(told.is_news(None, token(0), at(60)));
    }

    #[test]
    fn a_flood_of_refusals_hides_those_of_no_other_listed_organization() {
        let told = Told::default();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let listed = |id: &str| {
            Some(ListedOrganization {
                issuer: "https://agent.buildkite.com".into(),
                id: id.into(),
            })
        };
        // Anybody with an account; one that is listed; another.
        for of in [None, listed("acme"), listed("umbrella")] {
            let news = |nth: usize| {
                let token = TokenDigest::of(&format!("{of:?} {nth}"));
                told.is_news(of.clone(), ("token_expired", token), now)
            };
            let own = (0..500).filter(|nth| news(*nth)).count();
            assert_eq!(own, Told::MAX, "{of:?}");
        }
    }
}
