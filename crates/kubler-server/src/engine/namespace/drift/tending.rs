//! What is done about an object that is not as it was made.

use std::io;

use kubler_core::environment::{Environment, Placement};
use kubler_core::host::drift::{Author, Change, author, changes};
use kubler_core::host::names::FIELD_MANAGER;
use kubler_core::host::objects::Object;
use kubler_core::ledger::record::{Body, Kind as RecordKind, LedgerAction};
use kubler_core::profile::OnDrift;
use serde_json::{Value, json};

use super::super::EngineError;
use super::super::client::succeeded;
use super::sight::text;
use super::{Answered, Drift, Keeper, Suspicion, comparable, title};
use crate::engine::api::{Answer, Api as _};
use crate::ledger::Durability;

/// An object as it is, and as it should be.
struct Case<'a> {
    suspicion: &'a Suspicion,
    environment: &'a Environment,
    object: &'a Object,
    /// As it is; absent when it is not there.
    live: Option<&'a Value>,
    changes: Vec<Change>,
}

impl Keeper {
    /// Looks at the object, and puts it right. Whether there is nothing left to do.
    pub(super) async fn tend(&self, suspicion: &Suspicion) -> Result<bool, EngineError> {
        let namespace = self.inner.namespace(suspicion.environment);
        let Some((environment, placement)) = self.environment(&namespace) else {
            self.tended().remove(&suspicion.path);
            return Ok(true);
        };
        let live = match self.own().get(&suspicion.path).await {
            Ok(answer) if answer.status == 404 => None,
            answer => succeeded(&suspicion.path, answer)?.json(),
        };
        if live
            .as_ref()
            .is_some_and(|live| live.pointer("/metadata/deletionTimestamp").is_some())
        {
            // Its end is told by the watch.
            return Ok(true);
        }
        self.judge(suspicion, &environment, &placement, live.as_ref())
            .await
    }

    async fn judge(
        &self,
        suspicion: &Suspicion,
        environment: &Environment,
        placement: &Placement,
        live: Option<&Value>,
    ) -> Result<bool, EngineError> {
        let kind = suspicion.kind;
        let wanted = self.wanted(kind, environment, placement, live.unwrap_or(&Value::Null));
        let object = wanted.iter().find(|object| object.path() == suspicion.path);
        let (object, live) = match (object, live) {
            (None, None) => return Ok(true),
            (None, Some(live)) => {
                self.report_foreign(suspicion, live).await?;
                return Ok(true);
            }
            // An environment without its namespace is broken, and ends.
            (Some(_), None) if kind.plural == "namespaces" => return Ok(true),
            (Some(object), live) => (object, live),
        };
        let changes = live.map_or_else(Vec::new, |live| changes(&comparable(object), live));
        if live.is_some() && changes.is_empty() {
            return Ok(true);
        }
        let case = Case {
            suspicion,
            environment,
            object,
            live,
            changes,
        };
        if self.is_harmless(&case) {
            return Ok(true);
        }
        self.answer(&case).await
    }

    /// Whether this very difference is known to be none.
    fn is_harmless(&self, case: &Case<'_>) -> bool {
        let all = self.tended();
        let tended = all.get(&case.suspicion.path);
        tended.is_some_and(|it| it.harmless.as_ref() == Some(&case.changes))
    }

    /// Whether this very difference is written down already.
    fn has_told(&self, case: &Case<'_>) -> bool {
        let all = self.tended();
        let tended = all.get(&case.suspicion.path);
        tended.is_some_and(|it| it.told.as_ref() == Some(&case.changes))
    }

    async fn answer(&self, case: &Case<'_>) -> Result<bool, EngineError> {
        let profile = case.environment.resolved.profile.namespace.as_ref();
        let on_drift = profile.map_or(OnDrift::default(), |profile| profile.on_drift);
        if case.live.is_some()
            && let Ok(answer) = self.apply(case, "&dryRun=All").await
            && answer.is_success()
            && same_after(case, &answer)
        {
            self.settle(case, |tended, changes| tended.harmless = Some(changes));
            return Ok(true);
        }
        let by = case
            .live
            .and_then(|live| author(live, &case.changes, FIELD_MANAGER));
        // What resists, or is left so, is written down once.
        let was_told = self.has_told(case);
        if !was_told {
            self.record(case, by.as_ref(), on_drift).await?;
        }
        let answer = match on_drift {
            OnDrift::Report => Answered::Reported,
            OnDrift::Repair => match self.repair(case).await {
                Ok(()) => Answered::Repaired,
                Err(error) => Answered::Failed(error.message),
            },
        };
        let is_repaired = answer == Answered::Repaired;
        self.settle(case, |tended, changes| {
            tended.told = (!is_repaired).then_some(changes);
            if is_repaired {
                tended.tried();
            }
        });
        let is_done = !matches!(answer, Answered::Failed(_));
        if was_told {
            return Ok(is_done);
        }
        let object = title(case.suspicion.kind, &case.object.name);
        tracing::warn!(environment = %case.environment.id, object, ?answer, ?by, "a wall was not as it was made");
        self.show(
            case.environment.id,
            Drift {
                object,
                found_at: self.inner.clock.now(),
                changes: case.changes.clone(),
                by,
                answer,
            },
        );
        Ok(is_done)
    }

    fn settle(&self, case: &Case<'_>, how: impl FnOnce(&mut super::Tended, Vec<Change>)) {
        let mut all = self.tended();
        let tended = all.entry(case.suspicion.path.clone()).or_default();
        how(tended, case.changes.clone());
    }

    async fn apply(&self, case: &Case<'_>, more: &str) -> io::Result<Answer> {
        let object = case.object;
        self.own()
            .apply_with(&object.path(), &object.value, more)
            .await
    }

    /// Applies it; what cannot be changed is made anew.
    async fn repair(&self, case: &Case<'_>) -> Result<(), EngineError> {
        let title = case.object.title();
        let mut answer = self.apply(case, "").await;
        if let (Ok(refused), Some(live)) = (&answer, case.live)
            && refused.status == 422
            && case.suspicion.kind.plural == "rolebindings"
        {
            // Which role a binding gives cannot be changed in it.
            let uid = text(live, "/metadata/uid");
            let options = json!({"preconditions": {"uid": uid}});
            let deleted = self.own().delete(&case.suspicion.path, &options).await;
            succeeded(&title, deleted)?;
            answer = self.apply(case, "").await;
        }
        let after = succeeded(&title, answer)?.json().unwrap_or_default();
        let left = changes(&comparable(case.object), &after);
        let Some(first) = left.first() else {
            return Ok(());
        };
        // What another try would leave so is only written in another way.
        let tried = succeeded(&title, self.apply(case, "&dryRun=All").await)?;
        if changes(&comparable(case.object), &tried.json().unwrap_or_default()) != left {
            return Err(EngineError::transient(format!(
                "{title}: `{}` is changed again and again",
                first.path
            )));
        }
        let mut all = self.tended();
        let tended = all.entry(case.suspicion.path.clone()).or_default();
        tended.harmless = Some(left);
        Ok(())
    }

    /// Before anything is done about it: what is put right leaves no trace on the host.
    async fn record(
        &self,
        case: &Case<'_>,
        by: Option<&Author>,
        on_drift: OnDrift,
    ) -> Result<(), EngineError> {
        let what = if case.live.is_some() {
            "changed"
        } else {
            "removed"
        };
        self.write(case.suspicion, what, &case.changes, by, on_drift)
            .await
    }

    async fn write(
        &self,
        suspicion: &Suspicion,
        what: &str,
        changes: &[Change],
        by: Option<&Author>,
        on_drift: OnDrift,
    ) -> Result<(), EngineError> {
        let mut body = Body::new(RecordKind::Event, LedgerAction::EnvironmentDrift);
        body.environment_id = Some(suspicion.environment);
        for (name, value) in [
            ("host", json!(self.inner.host.name)),
            ("object", json!(suspicion.path)),
            ("what", json!(what)),
            ("changes", json!(changes)),
            ("by", json!(by)),
            ("answer", json!(on_drift)),
        ] {
            body.details.insert(name.into(), value);
        }
        let recorded = self.inner.ledger.event(body, Durability::Process).await;
        recorded.map(drop).map_err(EngineError::transient)
    }

    /// Somebody else's binding or policy in an environment: it is theirs, and somebody should know.
    async fn report_foreign(&self, suspicion: &Suspicion, live: &Value) -> Result<(), EngineError> {
        {
            let mut all = self.tended();
            let tended = all.entry(suspicion.path.clone()).or_default();
            if tended.told.replace(Vec::new()).is_some() {
                return Ok(());
            }
        }
        let by = author(live, &[], FIELD_MANAGER);
        self.write(suspicion, "added", &[], by.as_ref(), OnDrift::Report)
            .await?;
        let object = title(suspicion.kind, text(live, "/metadata/name"));
        tracing::warn!(environment = %suspicion.environment, object, ?by, "somebody else put an object into an environment that opens its walls, or shuts it off");
        self.show(
            suspicion.environment,
            Drift {
                object,
                found_at: self.inner.clock.now(),
                changes: Vec::new(),
                by,
                answer: Answered::Reported,
            },
        );
        Ok(())
    }
}

/// Whether applying the object left every difference: then the host only writes it in another way.
fn same_after(case: &Case<'_>, answer: &Answer) -> bool {
    let after = answer.json().unwrap_or_default();
    changes(&comparable(case.object), &after) == case.changes
}
