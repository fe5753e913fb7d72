//! The guardrails of an environment's profile, on every request, and what no environment does on a cluster that it
//! shares with others.

use std::sync::Arc;

use http_body::Body as _;
use kubler_core::artifact::BODY_BYTES_MAX;
use kubler_core::guardrails::approvals::{Answer, Approval, Asked, Fingerprint};
use kubler_core::guardrails::{Needs, Refusal, is_dry_deletion, shared, what};
use kubler_core::ids::ApprovalId;
use kubler_core::ledger::record::{Body as RecordBody, Kind, KubernetesRequest, LedgerAction};
use kubler_core::profile::Profile;
use kubler_core::request::ApiRequest;
use sha2::{Digest as _, Sha256};

use super::body::BytesMax;
use super::forward::{Admitted, stopped};
use super::gate::Gate;
use super::refusals::Stop;
use super::status::Refused;
use super::{Arrival, Shared};
use crate::entropy;
use crate::ledger::Durability;
use crate::session::Session;

/// Whether the request may go on as far as it can be seen without its body, and what else is to be looked at.
///
/// # Errors
/// The guardrail that refuses it, as the caller is told.
pub(super) fn check(
    gate: &Gate,
    profile: &Profile,
    request: &ApiRequest,
    arrival: &Arrival,
) -> Result<Needs, Refused> {
    if let Some(namespace) = gate.namespace() {
        shared::check(namespace, request.record(), &arrival.head.headers)
            .map_err(|fault| Refused::forbidden(fault.code(), fault.to_string()))?;
    }
    // A body whose end nobody knows may still be short.
    let bytes_min = arrival.body.size_hint().lower();
    profile
        .guardrails
        .check(&profile.name, request, bytes_min)
        .map_err(|refusal| refused(&refusal))
}

/// How long the request's body may be.
pub(super) fn bytes_max(profile: &Profile, request: &ApiRequest) -> BytesMax {
    match profile.guardrails.object_bytes_of(request) {
        Some(bytes) if bytes < profile.request_bytes_max => BytesMax::Object(bytes),
        Some(_) | None => BytesMax::Request(profile.request_bytes_max),
    }
}

fn refused(refusal: &Refusal) -> Refused {
    Refused::forbidden(refusal.code(), refusal.to_string())
}

/// Why a request whose body was looked into does not go on.
pub(super) enum Held {
    /// It is refused.
    Stop(Box<Stop>),
    /// It is refused because it needs an approval, which is asked for by this record.
    Asked {
        id: ApprovalId,
        record: Box<RecordBody>,
        session: Arc<Session>,
        refused: Box<Refused>,
    },
}

impl Shared {
    /// Looks into the body, which is here as a whole or too long to be, for what guardrails want to see, and uses up its
    /// approval where one is needed.
    pub(super) fn look_into(
        &self,
        arrival: &Arrival,
        admitted: &Admitted,
        body: Option<&[u8]>,
    ) -> Result<Option<ApprovalId>, Held> {
        let session = admitted.admission.shared_session();
        let stop = |refused| Held::Stop(Stop::of(session, refused));
        if !admitted.needs.body() {
            return Ok(None);
        }
        let body = body.ok_or_else(|| stop(Refused::too_large(BODY_BYTES_MAX as u64)))?;
        let request = &admitted.understood;
        let environment = self.parts.directory.get(session.environment);
        let environment = environment.ok_or_else(|| stop(stopped()))?;
        let profile = &environment.resolved.profile;
        if let Some(place) = admitted.needs.dry_run_in_body
            && !is_dry_deletion(request, body)
        {
            let guardrails = &profile.guardrails;
            let refusal = guardrails.dry_run_only(place, &profile.name, request);
            return Err(stop(refused(&refusal)));
        }
        let Some(place) = admitted.needs.approval else {
            return Ok(None);
        };
        let ask = Ask {
            place,
            profile,
            session,
        };
        self.approved(arrival, request, body, &ask).map(Some)
    }

    /// Uses an approval up, or asks for one.
    fn approved(
        &self,
        arrival: &Arrival,
        request: &ApiRequest,
        body: &[u8],
        ask: &Ask<'_>,
    ) -> Result<ApprovalId, Held> {
        let stop = |refused| Held::Stop(Stop::of(ask.session, refused));
        let id = entropy::approval_id()
            .map_err(|error| stop(Refused::unavailable("NoEntropy", error.to_string())))?;
        let identity = &ask.session.identity;
        let headers = &arrival.head.headers;
        let of = ask.session.environment;
        let fingerprint = Fingerprint::of(of, &identity.job.id, request, headers, body);
        let asked = Asked {
            environment: of,
            job_id: identity.job.id.clone(),
            job_url: identity.job.url.clone(),
            request: request.record().clone(),
            body_sha256: (!is_secret(request.record())).then(|| hex::encode(Sha256::digest(body))),
        };
        let seconds = ask.profile.guardrails.approval_seconds();
        let answer = self
            .parts
            .approvals
            .with(|approvals| approvals.ask(fingerprint, asked, id, seconds, arrival.now));
        match answer {
            Ok(Answer::Granted(approval)) => Ok(approval.id),
            Ok(Answer::Refused(approval)) => Err(stop(ask.was_refused(&approval))),
            Ok(Answer::Waits { approval, is_new }) if is_new => Err(Held::Asked {
                id,
                record: Box::new(ask.record(arrival, &approval)),
                session: Arc::clone(ask.session),
                refused: Box::new(ask.waits(&approval)),
            }),
            Ok(Answer::Waits { approval, .. }) => Err(stop(ask.waits(&approval))),
            Err(error) => {
                let wait = self.bounds.wait_max;
                let refused = Refused::too_many("TooManyApprovals", error.to_string(), wait);
                Err(stop(refused))
            }
        }
    }

    /// What the caller is told. That an approval is asked for is written down first: one that is not in the ledger cannot
    /// be given.
    pub(super) async fn told(&self, held: Held) -> Box<Stop> {
        let (id, record, session, refused) = match held {
            Held::Stop(stop) => return stop,
            Held::Asked {
                id,
                record,
                session,
                refused,
            } => (id, record, session, refused),
        };
        match self.parts.ledger.event(*record, Durability::Disk).await {
            Ok(_) => Stop::of(&session, *refused),
            Err(error) => {
                tracing::error!(%error, "an approval was not asked for because that could not be recorded");
                self.parts
                    .approvals
                    .with(|approvals| approvals.withdraw(id));
                let message =
                    "that an approval is needed could not be recorded; try again in a moment";
                Stop::of(&session, Refused::unavailable("NotRecorded", message))
            }
        }
    }
}

/// Who asks for an approval, and by which guardrail.
struct Ask<'a> {
    place: usize,
    profile: &'a Profile,
    session: &'a Arc<Session>,
}

impl Ask<'_> {
    fn record(&self, arrival: &Arrival, approval: &Approval) -> RecordBody {
        let mut record = RecordBody::new(Kind::Event, LedgerAction::ApprovalAsk);
        record.request_id = Some(arrival.request_id);
        record.environment_id = Some(self.session.environment);
        record.session_id = Some(self.session.id);
        record.identity = Some(Box::new(self.session.identity.clone()));
        record.peer = Some(arrival.peer.to_string());
        record.request = Some(approval.asked.request.clone());
        let sha256 = approval.asked.body_sha256.clone();
        let details = [
            ("approval", Some(approval.id.to_string())),
            ("until", Some(approval.until.to_string())),
            ("body_sha256", sha256),
        ];
        let details = details
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        record.details.extend(details);
        record
    }

    fn waits(&self, approval: &Approval) -> Refused {
        let (id, until) = (approval.id, approval.until);
        let message = format!(
            "guardrail `approval[{}]` of profile `{}`: `{}` needs the approval of an operator, who gives it with `kubler approval approve {id}` (POST {}) until {until:.0}; then repeat exactly this request",
            self.place,
            self.profile.name,
            what(&approval.asked.request),
            kubler_api::paths::approve(&id.to_string()),
        );
        Refused::forbidden("ApprovalRequired", message)
    }

    fn was_refused(&self, approval: &Approval) -> Refused {
        let message = format!(
            "guardrail `approval[{}]` of profile `{}`: an operator refused `{}` (approval {}); it can be asked for again after {:.0}",
            self.place,
            self.profile.name,
            what(&approval.asked.request),
            approval.id,
            approval.until,
        );
        Refused::forbidden("ApprovalRefused", message)
    }
}

/// Of a Secret nothing is said that its content could be guessed from.
fn is_secret(request: &KubernetesRequest) -> bool {
    request.resource.as_deref() == Some("secrets")
}
