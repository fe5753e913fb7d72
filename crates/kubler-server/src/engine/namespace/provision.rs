//! Makes an environment: its namespace and the tenant's account first, then everything that stands around them at once,
//! and then it is asked as the tenant whether it can be used.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use kubler_core::environment::{Environment, Placement};
use kubler_core::host::mark::Mark;
use kubler_core::host::objects::{self, Object};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::client::{HostClient, succeeded};
use super::{Inner, Slot, joined, observe};
use crate::config;
use crate::crash::{self, Point};
use crate::engine::api::{Answer, Api};
use crate::engine::manifests::{self, Manifest, Trouble, Within};
use crate::engine::{Bearer, EngineError};

/// How long an environment may take to become usable.
const START_MAX: Duration = Duration::from_secs(60);
/// Wait between two questions whether the tenant may do what it should.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long the quota's controller may take, before the quota is asked for again.
const QUOTA_MAX: Duration = Duration::from_secs(10);
/// Wait between two tries of something that the host is not ready for yet.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// Makes the environment, or goes on where an earlier try stopped.
pub(super) async fn provision(
    inner: &Arc<Inner>,
    environment: &Environment,
) -> Result<(), EngineError> {
    let placement = environment.placement.clone();
    let placement = placement
        .ok_or_else(|| EngineError::permanent("no place on a host was written down for it"))?;
    let manifests = manifests::read_for_namespace(&environment.resolved.manifests)?;
    let secrets = secrets(inner, environment)?;
    let slot = inner.slot(environment.id);
    let guard = Arc::clone(&slot.work).lock_owned().await;
    let cancelled = slot.begin();
    let began = Instant::now();
    // A task of its own that keeps the environment to itself: if our caller goes away, what is under way still ends
    // before anybody else may begin to look or take away.
    let (inner, environment) = (Arc::clone(inner), environment.clone());
    joined(tokio::spawn(async move {
        let trouble = Trouble::default();
        let making = Making {
            inner: &inner,
            environment: &environment,
            placement: &placement,
            slot: &slot,
            cancelled: &cancelled,
            trouble: &trouble,
        };
        let made = tokio::time::timeout(START_MAX, making.make(&manifests, &secrets));
        let milliseconds = made.await.unwrap_or_else(|_| {
            Err(EngineError::transient(format!(
                "not usable within {} s; last: {}",
                START_MAX.as_secs(),
                trouble.last()
            )))
        })?;
        let total = began.elapsed().as_millis();
        tracing::info!(environment = %environment.id, host = inner.host.name, ?milliseconds, total, "an environment is usable");
        drop(guard);
        Ok(())
    }))
    .await
}

/// The contents of a profile's secrets in base64, by secret and key.
type Secrets = Vec<(String, BTreeMap<String, String>)>;

/// Reads the profile's secrets. They are kept nowhere.
fn secrets(inner: &Inner, environment: &Environment) -> Result<Secrets, EngineError> {
    use base64::Engine as _;
    let profile = environment.resolved.profile.namespace.as_ref();
    let mut all = Vec::new();
    for secret in profile.into_iter().flat_map(|profile| &profile.secrets) {
        let mut data = BTreeMap::new();
        for (key, file) in &secret.files {
            // Which file it is, is the operator's business and not the job's.
            let read = config::read(&inner.folder.join(file)).map_err(|error| {
                tracing::error!(%error, secret = secret.name, "a secret of a profile cannot be read");
                EngineError::transient(format!(
                    "the profile's secret `{}` cannot be read on the server",
                    secret.name
                ))
            })?;
            let read = zeroize::Zeroizing::new(read);
            data.insert(
                key.clone(),
                base64::engine::general_purpose::STANDARD.encode(&*read),
            );
        }
        all.push((secret.name.clone(), data));
    }
    Ok(all)
}

/// Milliseconds since the beginning, by what was done.
type Milliseconds = Vec<(&'static str, u128)>;

struct Making<'a> {
    inner: &'a Inner,
    environment: &'a Environment,
    placement: &'a Placement,
    slot: &'a Slot,
    cancelled: &'a CancellationToken,
    trouble: &'a Trouble,
}

impl Making<'_> {
    const fn own(&self) -> HostClient<'_> {
        HostClient::own(&self.inner.connection, &self.inner.calls)
    }

    async fn make(
        &self,
        manifests: &[Manifest],
        secrets: &Secrets,
    ) -> Result<Milliseconds, EngineError> {
        let began = Instant::now();
        let mut milliseconds = Vec::new();
        let (environment, placement) = (self.environment, self.placement);
        let account = objects::account(environment, placement);
        let (uid, _) = tokio::try_join!(self.namespace(), self.apply(&account))?;
        milliseconds.push(("namespace", began.elapsed().as_millis()));
        self.go_on()?;
        let mark = Mark {
            environment: environment.id,
            namespace_uid: uid,
            deadline: environment.deadline,
        };
        let mark = mark.sign(&self.inner.key);
        let marked = objects::namespace(environment, placement, Some(&mark));
        let (_, (), token) = tokio::try_join!(
            self.apply(&marked),
            self.walls(secrets),
            self.inner.mint(environment.id)
        )?;
        crash::at(Point::WallsMade);
        milliseconds.push(("walls", began.elapsed().as_millis()));
        self.go_on()?;
        let bearer = Bearer::new(&token.token).map_err(EngineError::transient)?;
        let tenant = HostClient::tenant(&self.inner.connection, &bearer, &self.inner.calls);
        self.is_allowed(&tenant).await?;
        milliseconds.push(("allowed", began.elapsed().as_millis()));
        // As the tenant: a manifest never needs a right that Kubler has and the job has not.
        let within = Within::Namespace(&placement.namespace);
        manifests::apply(&tenant, within, manifests, self.trouble).await?;
        crash::at(Point::ManifestsApplied);
        self.go_on()?;
        self.inner.employ(self.slot, &token)?;
        Ok(milliseconds)
    }

    /// Nothing new is begun for an environment that shall end.
    fn go_on(&self) -> Result<(), EngineError> {
        if self.cancelled.is_cancelled() {
            return Err(EngineError::transient(
                "its end was asked for while it was made",
            ));
        }
        Ok(())
    }

    /// Makes the namespace; gives its UID.
    async fn namespace(&self) -> Result<String, EngineError> {
        let object = objects::namespace(self.environment, self.placement, None);
        let answer = self.apply(&object).await?;
        crash::at(Point::NamespaceMade);
        let made = answer.json().unwrap_or_default();
        let metadata = made.get("metadata").unwrap_or(&Value::Null);
        if metadata.get("deletionTimestamp").is_some() {
            return Err(EngineError::transient(
                "a namespace of its name is still going on the host",
            ));
        }
        let uid = metadata.get("uid").and_then(Value::as_str);
        debug_assert_eq!(
            observe::label(metadata),
            Some(self.environment.id.to_string().as_str())
        );
        uid.map(str::to_owned)
            .ok_or_else(|| EngineError::transient("the host gave its namespace no UID"))
    }

    /// Everything around it, at once; but nothing that is counted before the counting has begun.
    async fn walls(&self, secrets: &Secrets) -> Result<(), EngineError> {
        let (environment, placement) = (self.environment, self.placement);
        let (quota, others): (Vec<_>, Vec<_>) = objects::walls(environment, placement)
            .into_iter()
            .partition(|object| {
                object.value.get("kind").and_then(Value::as_str) == Some("ResourceQuota")
            });
        let secrets = secrets
            .iter()
            .map(|(name, data)| objects::secret(environment, placement, name, data));
        let mut counted: Vec<_> = secrets.collect();
        counted.push(objects::facts(environment, placement));
        let counting = async {
            try_join_all(counted.iter().map(|object| self.apply(object))).await?;
            try_join_all(quota.iter().map(|object| self.apply(object))).await?;
            try_join_all(quota.iter().map(|object| self.counts(object))).await
        };
        let others = try_join_all(others.iter().map(|object| self.apply(object)));
        tokio::try_join!(counting, others)?;
        Ok(())
    }

    /// Applies an object of ours. Tries again what the host is not ready for.
    async fn apply(&self, object: &Object) -> Result<Answer, EngineError> {
        let own = self.own();
        loop {
            let answer = own.apply(&object.path(), &object.value).await;
            match answer {
                Ok(answer) if may_change(&answer) => {
                    self.trouble
                        .note(format!("{}: {}", object.title(), answer.message()));
                }
                answer => return succeeded(&object.title(), answer),
            }
            self.go_on()?;
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Waits until the quota is counted: before that it lets nothing be made.
    async fn counts(&self, quota: &Object) -> Result<(), EngineError> {
        let own = self.own();
        let path = format!(
            "{}?fieldSelector=metadata.name%3D{}",
            quota.collection, quota.name
        );
        let wanted = quota.value.pointer("/spec/hard").and_then(Value::as_object);
        let is_counted = |found: &Value| {
            let hard = found.pointer("/status/hard").and_then(Value::as_object);
            wanted.is_none_or(|wanted| {
                hard.is_some_and(|hard| wanted.keys().all(|key| hard.contains_key(key)))
            })
        };
        loop {
            let failed = |error: io::Error| EngineError::transient(format!("its quota: {error}"));
            let mut events = own.watch(&path, QUOTA_MAX).await.map_err(failed)?;
            while let Some(event) = events.next().await.map_err(failed)? {
                if event.get("object").is_some_and(is_counted) {
                    return Ok(());
                }
            }
            self.trouble.note("its quota is not counted".into());
            self.go_on()?;
        }
    }

    /// Waits until the tenant may do what its profile says, as the host itself sees it.
    async fn is_allowed(&self, tenant: &HostClient<'_>) -> Result<(), EngineError> {
        let review = objects::self_review(self.environment, self.placement);
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        loop {
            let answer = tenant.post(path, &review).await;
            match answer {
                // The token was made a moment ago.
                Ok(answer) if answer.status == 401 => self.trouble.note(answer.message()),
                answer => {
                    let answer = succeeded("the review of its rights", answer)?;
                    let answer = answer.json().unwrap_or_default();
                    if answer.pointer("/status/allowed") == Some(&Value::Bool(true)) {
                        return Ok(());
                    }
                    self.trouble.note(format!(
                        "the host does not let its tenant do what its profile says; is the role `{}` there, as `kubler-server host-rbac` prints it?",
                        kubler_core::host::names::role(&self.environment.resolved.profile)
                    ));
                }
            }
            self.go_on()?;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// Whether the host may say something else in a moment: a conflict, a flood, an admission that is not ready yet.
fn may_change(answer: &Answer) -> bool {
    matches!(answer.status, 409 | 429)
        || answer.status == 403
            && ["not yet ready", "status unknown for quota"]
                .iter()
                .any(|said| answer.message().contains(said))
}
