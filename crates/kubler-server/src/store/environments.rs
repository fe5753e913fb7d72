//! Environments: made, changed and read one at a time.

use jiff::Timestamp;
use kubler_core::environment::{EndReason, Environment, Event, Phase};
use kubler_core::ids::EnvironmentId;
use kubler_core::policy::{Action, Permit};
use kubler_core::{invariants, lease};
use sqlx::{Sqlite, Transaction};

use super::rows::{self, count, document, select_one};
use super::{Own, Store, StoreError};
use crate::crash::{self, Point};

/// Result of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It was new.
    New(Environment),
    /// The same job (or build) had asked for this name before.
    Existing(Environment),
}

impl Store {
    /// Writes down an environment that policy permitted; from here on it will be made, or ended. Repeats by the same
    /// job (or build, by scope) and name return the first.
    ///
    /// # Errors
    /// `Full` when a limit is reached, `Permit` when it is not what was permitted: nothing is written then.
    pub async fn create_environment(
        &self,
        permit: Permit,
        environment: Environment,
    ) -> Result<Created, StoreError> {
        permit.spend_on_profile(&environment.resolved)?;
        invariants::check_environment(&environment)?;
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_new().await?;
        let key =
            Environment::unique_key(&environment.owner(), environment.scope, &environment.name);
        if let Some(existing) = select_one(
            &mut transaction,
            "SELECT document FROM environments WHERE unique_key = ?",
            &key,
        )
        .await?
        {
            self.directory.put(existing.clone());
            return Ok(Created::Existing(existing));
        }
        self.check_limits(&mut transaction, &environment).await?;
        let owner = environment.owner();
        sqlx::query(
            "INSERT INTO environments (id, unique_key, phase, organization_id, project_id, project_slug, run_id, run_number, \
             job_id, source_commit, profile, created_at, gone_at, version, document) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,NULL,?,?)",
        )
        .bind(environment.id.to_string())
        .bind(&key)
        .bind(environment.phase.as_str())
        .bind(&owner.organization_id)
        .bind(&owner.project_id)
        .bind(&environment.identity.project.slug)
        .bind(&owner.run_id)
        .bind(i64::try_from(environment.identity.run.number).unwrap_or(i64::MAX))
        .bind(&owner.job_id)
        .bind(environment.identity.source.commit.as_str())
        .bind(&environment.resolved.profile.name)
        .bind(environment.created_at.as_microsecond())
        .bind(i64::try_from(environment.version).unwrap_or(i64::MAX))
        .bind(document(&environment)?)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        crash::at(Point::stored(environment.phase));
        self.directory.put(environment.clone());
        Ok(Created::New(environment))
    }

    async fn check_limits(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        new: &Environment,
    ) -> Result<(), StoreError> {
        let limits = self.limits();
        let live = "phase NOT IN ('gone')";
        let all = count(
            transaction,
            &format!("SELECT count(*) FROM environments WHERE {live}"),
            &[],
        )
        .await?;
        let waiting = count(
            transaction,
            "SELECT count(*) FROM environments WHERE phase = 'requested'",
            &[],
        )
        .await?;
        let of_job = count(
            transaction,
            &format!("SELECT count(*) FROM environments WHERE {live} AND job_id = ?"),
            &[&new.identity.job.id],
        )
        .await?;
        let profile = &new.resolved.profile;
        let of_profile = count(
            transaction,
            &format!("SELECT count(*) FROM environments WHERE {live} AND profile = ?"),
            &[&profile.name],
        )
        .await?;
        let full = |message: String, own| Err(StoreError::Full { message, own });
        if of_job >= limits.environments_per_job_max {
            return full(
                format!("this job already has {of_job} environments, its limit"),
                Own::Caller,
            );
        }
        if all >= limits.environments_max {
            return full(
                format!("{all} environments exist, the server's limit"),
                Own::Server,
            );
        }
        if waiting >= limits.queue_max {
            return full(
                format!("{waiting} environments wait to be made, the queue's limit"),
                Own::Server,
            );
        }
        match profile.environments_max {
            Some(most) if of_profile >= most => full(
                format!(
                    "{of_profile} environments of profile `{}` exist, its limit",
                    profile.name
                ),
                Own::Server,
            ),
            _ => Ok(()),
        }
    }

    /// Takes something that happened by itself, with no caller and so no permit: what the reconciler did or saw, what
    /// the CI said, the end of the server. `None` when it had been taken before.
    ///
    /// # Errors
    /// When the phase does not allow it.
    pub async fn apply(
        &self,
        id: EnvironmentId,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<(Phase, Environment)>, StoreError> {
        self.change(id, Point::stored, |before| {
            Ok(before
                .transition(event.clone(), now)?
                .map(|after| (before.phase, after)))
        })
        .await
    }

    /// Ends the environment that policy permitted to end. `None` when it was ending before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn release_environment(
        &self,
        permit: Permit,
        reason: EndReason,
        now: Timestamp,
    ) -> Result<Option<(Phase, Environment)>, StoreError> {
        let id = permit.spend_on_environment(Action::ReleaseEnvironment)?;
        self.apply(id, Event::ReleaseRequested(reason), now).await
    }

    /// Renews the lease of the permitted environment by a token minted at `issued_at`. Gives the environment as it is
    /// afterwards, changed or not.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn renew_environment(
        &self,
        permit: Permit,
        issued_at: Timestamp,
        now: Timestamp,
    ) -> Result<Environment, StoreError> {
        let id = permit.spend_on_environment(Action::RenewEnvironment)?;
        let lease_stored = |_| Point::LeaseStored;
        let changed = self
            .change(id, lease_stored, |before| {
                Ok(renewed(before, issued_at, now).map(|after| (before.phase, after)))
            })
            .await?;
        match changed {
            Some((_, environment)) => Ok(environment),
            None => self.get(id).await?.ok_or(StoreError::NotFound(id)),
        }
    }

    /// Reads, changes and writes one environment in one transaction, then makes it known.
    async fn change(
        &self,
        id: EnvironmentId,
        point: impl Fn(Phase) -> Point,
        change: impl Fn(&Environment) -> Result<Option<(Phase, Environment)>, StoreError>,
    ) -> Result<Option<(Phase, Environment)>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        let before = rows::by_id(&mut transaction, id).await?;
        let Some((phase, after)) = change(&before)? else {
            // What is stored and what is known are one, also when whoever wrote it last was cut off before saying so.
            self.directory.put(before);
            return Ok(None);
        };
        rows::update(&mut transaction, &before, &after).await?;
        transaction.commit().await?;
        crash::at(point(after.phase));
        self.directory.put(after.clone());
        Ok(Some((phase, after)))
    }

    /// One environment, dead ones included until they are forgotten.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get(&self, id: EnvironmentId) -> Result<Option<Environment>, StoreError> {
        Ok(self
            .select(
                "SELECT document FROM environments WHERE id = ?",
                &[&id.to_string()],
            )
            .await?
            .pop())
    }
}

/// The environment with the lease that a token minted at `issued_at` proves; `None` when it proves nothing new.
pub(super) fn renewed(
    before: &Environment,
    issued_at: Timestamp,
    now: Timestamp,
) -> Option<Environment> {
    let lease_end = lease::renewed(before, issued_at, now);
    (before.phase.is_live() && lease_end > before.lease_end).then(|| Environment {
        lease_end,
        version: before.version + 1,
        ..before.clone()
    })
}
