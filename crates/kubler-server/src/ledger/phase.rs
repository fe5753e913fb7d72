//! Changes of phase, as the ledger tells them.

use kubler_core::environment::{EndReason, Environment, Phase};
use kubler_core::ids::RequestId;
use kubler_core::ledger::record::{Body, Kind, LedgerAction, PhaseChange};
use serde_json::{Map, Value};

use super::{Durability, Ledger};
use crate::crash::{self, Point};

impl Ledger {
    /// Writes down what was `stored` and the ledger does not know, since the server was killed between the two: every
    /// environment that has not ended, and those that have and are [`alive`](Self::alive) here.
    pub async fn catch_up_with(&self, stored: &[Environment]) {
        let recorded = self.writer().index().phases().clone();
        for environment in stored {
            let from = recorded.get(&environment.id).copied();
            // What had ended before, in a store that was put back, is not caught up with but ended again.
            let had_ended = || self.tells_gone(environment.id).unwrap_or_default();
            if from.is_none() && environment.phase.is_live() && had_ended() {
                continue;
            }
            if from != Some(environment.phase) {
                let how = Map::from_iter([("recorded_after".to_owned(), "crash".into())]);
                self.phase_changed(None, from, environment, how).await;
            }
        }
    }

    /// Writes down that `environment` left the phase `from`, because of a request or by itself, with evidence where
    /// there is some. What happened has happened: a failure is logged, not returned.
    pub async fn phase_changed(
        &self,
        request_id: Option<RequestId>,
        from: Option<Phase>,
        environment: &Environment,
        mut details: Map<String, Value>,
    ) {
        if environment.phase == Phase::Requested {
            let resolved = &environment.resolved;
            let made_of = [
                ("digest", &environment.digest),
                ("profile", &resolved.profile.name),
                ("kubernetes_version", &resolved.kubernetes_version),
            ];
            details.extend(made_of.map(|(name, value)| (name.to_owned(), value.clone().into())));
        }
        if let (Phase::Provisioning, Some(placement)) = (environment.phase, &environment.placement)
        {
            let place = [
                ("host", &placement.host),
                ("namespace", &placement.namespace),
                ("kubernetes_version", &placement.kubernetes_version),
            ];
            details.extend(place.map(|(name, value)| (name.to_owned(), value.clone().into())));
        }
        let reason = environment.reason.as_ref();
        let mut body = Body::new(Kind::Event, LedgerAction::EnvironmentPhase);
        body.request_id = request_id;
        body.environment_id = Some(environment.id);
        body.identity = Some(Box::new(environment.identity.clone()));
        body.phase = Some(PhaseChange {
            from,
            to: environment.phase,
            reason: reason.map(|reason| reason.code().to_owned()),
            message: reason.map(EndReason::sentence),
        });
        body.details = details;
        if let Err(error) = self.event(body, Durability::Process).await {
            tracing::error!(%error, environment = %environment.id, "a change of phase could not be recorded");
        }
        crash::at(Point::recorded(environment.phase));
    }
}
