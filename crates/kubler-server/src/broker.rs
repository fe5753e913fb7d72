//! What Kubler does for its callers, one screen per operation. Every operation reads the same way: open a ledger
//! record, decide, write down the intent, wake the reconciler, close the record. Nothing here touches a cluster.

mod approvals;
mod attach;
mod call;
mod error;
mod job_bounds;
mod likeness;
mod making;
mod trace;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use kubler_api::{CreateEnvironment, WAIT_SECONDS_MAX};
use kubler_core::environment::{self, EndReason, Environment, Event, Phase};
use kubler_core::ids::{EnvironmentId, RequestId};
use kubler_core::ledger::record::{Body, Kind, LedgerAction};
use kubler_core::policy::{Action, Permit, Target};
use kubler_core::tombstone::Tombstone;
use secrecy::SecretString;

pub use self::call::{Call, Who};
pub use self::error::BrokerError;
pub use self::job_bounds::JobBounds;
pub use self::likeness::Compared;
use self::making::{new_environment, note_asked, scope_of};
pub use self::trace::Found;
use crate::approvals::Approvals;
use crate::clock::Clock;
use crate::crash::{self, Point};
use crate::directory::Directory;
use crate::entropy;
use crate::ledger::{Durability, Ledger, RefusalBeforeVerification};
use crate::policy::Policies;
use crate::session::{NewSession, Sessions};
use crate::store::{Attached, EXCHANGE_REPEAT_SECONDS, Exchange, Exchanged, Store};
use crate::tasks::Wake;

/// Everything an operation needs.
pub struct Broker {
    /// Who may do what.
    pub policies: Arc<Policies>,
    /// What should exist.
    pub store: Arc<Store>,
    /// What exists for the gateway.
    pub directory: Arc<Directory>,
    /// What is written down.
    pub ledger: Ledger,
    /// What each job may still ask.
    pub jobs: JobBounds,
    /// What operators said to single requests.
    pub approvals: Arc<Approvals>,
    /// Credentials.
    pub sessions: Arc<Sessions>,
    /// Wakes the reconciler.
    pub wake: Wake,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// A session as it is handed out.
pub struct Issued {
    /// The credential.
    pub token: SecretString,
    /// What it is called and when it ends.
    pub exchange: Exchange,
}

type Result<T> = std::result::Result<T, BrokerError>;

impl Broker {
    /// Gives the caller an environment: a new one, or the one it asked for before by the same name.
    ///
    /// # Errors
    /// `Denied` with reasons, `Full`, or `Unavailable` when it cannot be recorded: nothing has been changed then.
    pub async fn request_environment(
        &self,
        call: &Call,
        request: &CreateEnvironment,
    ) -> Result<Environment> {
        self.recorded(call, LedgerAction::EnvironmentCreate, None, async |body| {
            let Who::Job(token) = &call.who else {
                return Err(BrokerError::only_jobs("make environments"));
            };
            note_asked(body, request);
            if !environment::is_name(&request.name) {
                return Err(BrokerError::invalid_name(&request.name));
            }
            let (owner, scope) = (token.identity.owner(), scope_of(request.scope));
            let existing = self.store.named(&owner, scope, &request.name).await?;
            if request.attach {
                return self.attach_to(call, body, token, request, existing).await;
            }
            let profiles = &call.in_force.profiles;
            let Some(resolved) = profiles.get(&request.profile) else {
                // The job that made it gets it back, also when its profile is offered no more.
                let is_it = |it: &Environment| {
                    it.owner() == owner && it.resolved.profile.name == request.profile
                };
                let own = existing
                    .filter(is_it)
                    .ok_or_else(|| BrokerError::no_profile(&request.profile, profiles))?;
                body.environment_id = Some(own.id);
                return self.attach(call, body, token, own).await;
            };
            let target = Target::Profile(Box::new(resolved.clone()));
            let permit = self
                .decide(call, body, Action::CreateEnvironment, target)
                .map_err(|error| self.with_profiles(call, error))?;
            let offered = existing.as_ref().map_or(resolved, |it| &it.resolved);
            self.is_alike(call, request, offered).await?;
            let wanted = new_environment(call, token, resolved, request, scope)?;
            self.make(call, body, token, permit, wanted).await
        })
        .await
    }

    /// Waits until an environment is usable or has ended, at most `seconds`; gives it as it is then.
    pub async fn wait_until_settled(&self, environment: &Environment, seconds: u64) -> Environment {
        self.wait(environment, seconds, |environment| {
            !matches!(environment.phase, Phase::Requested | Phase::Provisioning)
        })
        .await
    }

    /// Waits until an environment is verified gone, at most `seconds`; gives it as it is then.
    pub async fn wait_until_gone(&self, environment: &Environment, seconds: u64) -> Environment {
        self.wait(environment, seconds, |environment| {
            environment.phase == Phase::Gone
        })
        .await
    }

    async fn wait(
        &self,
        environment: &Environment,
        seconds: u64,
        done: impl Fn(&Environment) -> bool,
    ) -> Environment {
        let Some(mut watched) = self.directory.watch(environment.id) else {
            return environment.clone();
        };
        let bound = Duration::from_secs(seconds.min(WAIT_SECONDS_MAX));
        let _ =
            tokio::time::timeout(bound, watched.wait_for(|environment| done(environment))).await;
        watched.borrow().as_ref().clone()
    }

    /// One environment that the caller may see, and who attached to it.
    ///
    /// # Errors
    /// `NotFound` also when it exists but is none of the caller's business.
    pub async fn environment(
        &self,
        call: &Call,
        id: EnvironmentId,
    ) -> Result<(Environment, Vec<Attached>)> {
        self.recorded(
            call,
            LedgerAction::EnvironmentRead,
            Some(id),
            async |body| {
                let environment = self.readable(call, body, id).await?;
                let one = std::slice::from_ref(&environment);
                let attached = self.store.attached(one).await?.remove(&id);
                Ok((environment, attached.unwrap_or_default()))
            },
        )
        .await
    }

    /// The environment as it is stored, with all that it is made of, if policy lets the caller see it.
    async fn readable(
        &self,
        call: &Call,
        body: &mut Body,
        id: EnvironmentId,
    ) -> Result<Environment> {
        let stored = self.store.get(id).await?;
        let environment = stored.ok_or_else(|| BrokerError::no_environment(id))?;
        let target = Target::Environment(Box::new(environment.clone()));
        match self.decide(call, body, Action::ReadEnvironment, target) {
            Ok(_) => Ok(environment),
            Err(_) => Err(BrokerError::no_environment(id)),
        }
    }

    /// Proof of life: the lease of the caller's environment runs from when its token was minted.
    ///
    /// # Errors
    /// `Ended` when there is nothing left to renew.
    pub async fn renew_environment(&self, call: &Call, id: EnvironmentId) -> Result<Environment> {
        self.recorded(
            call,
            LedgerAction::EnvironmentRenew,
            Some(id),
            async |body| {
                let Who::Job(token) = &call.who else {
                    return Err(BrokerError::only_jobs("renew leases"));
                };
                let environment = self.own(call, id)?;
                let permit = self.decide(
                    call,
                    body,
                    Action::RenewEnvironment,
                    Target::Environment(Box::new(environment)),
                )?;
                let renewed = self
                    .store
                    .renew_environment(permit, token.issued_at, call.now)
                    .await?;
                body.details
                    .insert("lease_end".into(), renewed.lease_end.to_string().into());
                match self.directory.tombstone(&renewed, call.now) {
                    None => Ok(renewed),
                    Some(tombstone) => Err(BrokerError::Ended(Box::new(tombstone))),
                }
            },
        )
        .await
    }

    /// Ends an environment: its credentials are dead when this returns, the rest follows at once. Repeats are harmless.
    ///
    /// # Errors
    /// `Denied`; `NotFound` when the caller may not know of it.
    pub async fn release_environment(&self, call: &Call, id: EnvironmentId) -> Result<Environment> {
        self.recorded(
            call,
            LedgerAction::EnvironmentRelease,
            Some(id),
            async |body| {
                let environment = match &call.who {
                    Who::Job(_) => self.own_or_dead(call, id)?,
                    Who::Operator(_) => self
                        .store
                        .get(id)
                        .await?
                        .ok_or_else(|| BrokerError::no_environment(id))?,
                };
                let permit = self.decide(
                    call,
                    body,
                    Action::ReleaseEnvironment,
                    Target::Environment(Box::new(environment.clone())),
                )?;
                let reason = match &call.who {
                    Who::Job(_) => EndReason::Released,
                    Who::Operator(_) => EndReason::Revoked,
                };
                let changed = self
                    .store
                    .release_environment(permit, reason, call.now)
                    .await?;
                let Some((before, released)) = changed else {
                    return Ok(self.store.get(id).await?.unwrap_or(environment));
                };
                self.phase_changed(Some(call.request_id), Some(before), &released)
                    .await;
                self.wake.wake();
                Ok(released)
            },
        )
        .await
    }

    /// Exchanges an identity token for a session. One exchange a token; the same job may repeat it for ten seconds.
    ///
    /// # Errors
    /// `Ended`, `Denied`; `NotReady` while there is nothing to reach yet.
    pub async fn issue_session(&self, call: &Call, id: EnvironmentId) -> Result<Issued> {
        self.recorded(call, LedgerAction::SessionIssue, Some(id), async |body| {
            let Who::Job(token) = &call.who else {
                return Err(BrokerError::only_jobs("get sessions"));
            };
            let environment = self.own(call, id)?;
            if environment.phase != Phase::Ready {
                return Err(BrokerError::NotReady(Box::new(environment)));
            }
            let permit = self.decide(
                call,
                body,
                Action::IssueSession,
                Target::Environment(Box::new(environment.clone())),
            )?;

            let exchanged = self
                .store
                .exchange(permit, token, entropy::session_id()?, call.now)
                .await?;
            let exchange = match exchanged {
                Exchanged::Session(exchange) => exchange,
                Exchanged::TokenTooOld => return Err(BrokerError::token_too_old()),
                Exchanged::Ended(tombstone) => return Err(BrokerError::Ended(tombstone)),
            };
            body.session_id = Some(exchange.session_id);
            let repeat =
                call.now.as_second() - exchange.exchanged_at.as_second() <= EXCHANGE_REPEAT_SECONDS;
            if exchange.environment_id != id || !repeat {
                return Err(BrokerError::token_spent());
            }
            let token = self.sessions.issue(NewSession {
                id: exchange.session_id,
                environment: id,
                identity: token.identity.clone(),
                issued_at: exchange.exchanged_at,
                expires_at: exchange.session_end,
            })?;
            Ok(Issued { token, exchange })
        })
        .await
    }

    /// What anybody who knows its id may know of a dead environment.
    ///
    /// # Errors
    /// `NotFound` while it lives, or when there never was one.
    pub fn tombstone(&self, id: EnvironmentId) -> Result<Tombstone> {
        let environment = self.directory.get(id);
        environment
            .and_then(|environment| self.directory.tombstone(&environment, self.clock.now()))
            .ok_or_else(|| BrokerError::no_environment(id))
    }

    /// Ends every environment, because the operator stops the server for good; waits until they are gone.
    pub async fn end_everything(&self, bound: Duration) {
        let now = self.clock.now();
        for environment in self.directory.remaining() {
            let event = Event::ReleaseRequested(EndReason::Revoked);
            match self.store.apply(environment.id, event, now).await {
                Ok(Some((before, released))) => {
                    self.phase_changed(None, Some(before), &released).await
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, environment = %environment.id, "it could not be ended")
                }
            }
        }
        self.wake.wake();
        let all_gone = async {
            for environment in self.directory.remaining() {
                if let Some(mut watched) = self.directory.watch(environment.id) {
                    let _ = watched
                        .wait_for(|environment| environment.phase == Phase::Gone)
                        .await;
                }
            }
        };
        let _ = tokio::time::timeout(bound, all_gone).await;
    }

    /// Reads something of the server's own, such as the ledger, when policy lets the caller.
    ///
    /// # Errors
    /// `Denied`.
    pub async fn read_server<T>(
        &self,
        call: &Call,
        action: Action,
        ledger_action: LedgerAction,
        read: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        self.recorded(call, ledger_action, None, async |body| {
            self.decide(call, body, action, Target::Server)?;
            read().await
        })
        .await
    }

    /// The caller's own living environment; anything else looks as if it were not there (rule C8).
    fn own(&self, call: &Call, id: EnvironmentId) -> Result<Environment> {
        let environment = self.own_or_dead(call, id)?;
        match self.directory.tombstone(&environment, call.now) {
            None => Ok(environment),
            Some(tombstone) => Err(BrokerError::Ended(Box::new(tombstone))),
        }
    }

    fn own_or_dead(&self, call: &Call, id: EnvironmentId) -> Result<Environment> {
        let Who::Job(token) = &call.who else {
            return Err(BrokerError::no_environment(id));
        };
        let environment = self
            .directory
            .get(id)
            .ok_or_else(|| BrokerError::no_environment(id))?;
        if !environment.is_open_to(&token.identity.owner()) {
            return Err(BrokerError::no_environment(id));
        }
        Ok(environment.as_ref().clone())
    }

    /// Asks policy, and notes the answer for the ledger.
    fn decide(
        &self,
        call: &Call,
        body: &mut Body,
        action: Action,
        target: Target,
    ) -> Result<Permit> {
        match self
            .policies
            .current()
            .decide(&call.caller(), action, target)
        {
            Ok(permit) => {
                body.decision = Some(permit.decision());
                Ok(permit)
            }
            Err(denial) => {
                body.decision = Some(denial.decision());
                // What would have allowed it, for whoever asks later (`kubler policy explain JOB`).
                body.details
                    .insert("hint".into(), denial.hint.clone().into());
                Err(BrokerError::Denied(denial))
            }
        }
    }

    /// Stops a job that asks too often, or was refused too often, before anything is written for it. What ends
    /// something is never stopped.
    fn asks_too_often(
        &self,
        call: &Call,
        action: LedgerAction,
        id: Option<EnvironmentId>,
    ) -> Result<()> {
        let Some(error) = self
            .jobs
            .fault(call, durability(action) == Durability::Disk)
        else {
            return Ok(());
        };
        if action == LedgerAction::EnvironmentRelease && self.may_release(call, id) {
            return Ok(());
        }
        let reason = match error {
            BrokerError::AskedTooOften => "job_asks_too_often",
            _ => "job_refused_too_often",
        };
        let refusal = RefusalBeforeVerification {
            peer: call.peer,
            reason,
        };
        self.ledger.refuse_request(call.request_id, refusal);
        Err(error)
    }

    fn may_release(&self, call: &Call, id: Option<EnvironmentId>) -> bool {
        let own = id.and_then(|id| self.own_or_dead(call, id).ok());
        own.is_some_and(|environment| {
            if self.directory.tombstone(&environment, call.now).is_some() {
                return false;
            }
            let target = Target::Environment(Box::new(environment));
            let policies = self.policies.current();
            policies
                .decide(&call.caller(), Action::ReleaseEnvironment, target)
                .is_ok()
        })
    }

    async fn phase_changed(
        &self,
        request_id: Option<RequestId>,
        from: Option<Phase>,
        environment: &Environment,
    ) {
        let details = serde_json::Map::new();
        self.ledger
            .phase_changed(request_id, from, environment, details)
            .await;
    }

    /// Runs an operation between its two ledger records. Changing ones are on disk before they begin, but an end
    /// always wins: with a ledger that takes nothing more, it goes on without its records.
    async fn recorded<T>(
        &self,
        call: &Call,
        action: LedgerAction,
        id: Option<EnvironmentId>,
        operation: impl AsyncFnOnce(&mut Body) -> Result<T>,
    ) -> Result<T> {
        self.asks_too_often(call, action, id)?;
        let mut body = call.body(Kind::Start, action);
        body.environment_id = id;
        let entry = match self.ledger.start(body.clone(), durability(action)).await {
            Ok(entry) => entry,
            Err(error) if action == LedgerAction::EnvironmentRelease => {
                tracing::error!(%error, request_id = %call.request_id, "a release could not be recorded; it goes on all the same");
                // Whoever may not end it learns nothing without a record.
                return operation(&mut body).await.map_err(|_| error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let points = Point::of(action);
        if let Some((begun, _)) = points {
            crash::at(begun);
        }
        let outcome = operation(&mut body).await;
        if let Err(error) = &outcome {
            self.jobs.refused(call, error);
        }
        let told = BrokerError::outcome(outcome.as_ref().err(), call.now, self.clock.now());
        // What happened is already durable or refused: a ledger that fails now must not turn it into an error.
        entry
            .end_with(told, |end| {
                end.environment_id = body.environment_id;
                end.session_id = body.session_id;
                end.decision = body.decision;
                end.details = body.details;
            })
            .await;
        if let Some((_, ended)) = points {
            crash::at(ended);
        }
        outcome
    }
}

const fn durability(action: LedgerAction) -> Durability {
    match action {
        LedgerAction::EnvironmentRead
        | LedgerAction::TraceRead
        | LedgerAction::ApprovalRead
        | LedgerAction::LedgerRead
        | LedgerAction::MetricsRead => Durability::Process,
        _ => Durability::Disk,
    }
}
