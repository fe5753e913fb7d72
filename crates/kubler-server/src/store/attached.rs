//! The jobs that use an environment which another job of their build has made: who they were, for whoever looks later.

use std::collections::HashMap;

use jiff::Timestamp;
use kubler_core::environment::{Environment, Scope};
use kubler_core::identity::{Identity, Owner};
use kubler_core::ids::EnvironmentId;
use kubler_core::policy::Permit;
use sqlx::{Row as _, Sqlite, Transaction};

use super::rows::{count, select_one};
use super::{Own, Store, StoreError};
use crate::crash::{self, Point};

/// Most jobs that may attach to one environment: more than a build has steps, and a bound for its record.
pub const ATTACHED_JOBS_MAX: u32 = 1_000;

/// A job that attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Job id.
    pub job_id: String,
    /// The step's key.
    pub step_key: Option<String>,
    /// The agent it runs on.
    pub agent_id: String,
    /// The job's page.
    pub url: String,
    /// When.
    pub attached_at: Timestamp,
}

impl Store {
    /// The environment that this job, or its build by scope, has by this name, alive or dead.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn named(
        &self,
        owner: &Owner,
        scope: Scope,
        name: &str,
    ) -> Result<Option<Environment>, StoreError> {
        let key = Environment::unique_key(owner, scope, name);
        let mut transaction = self.pool.begin().await?;
        let sql = "SELECT document FROM environments WHERE unique_key = ?";
        select_one(&mut transaction, sql, &key).await
    }

    /// Notes that the job uses an environment of its build, which policy permitted. Repeats are harmless.
    ///
    /// # Errors
    /// `Full` when too many jobs have attached, `Permit` when it is not what was permitted.
    pub async fn attach(
        &self,
        permit: Permit,
        environment: &Environment,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        permit.spend_on_profile(&environment.resolved)?;
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_new().await?;
        note(&mut transaction, environment, identity, now).await?;
        transaction.commit().await?;
        crash::at(Point::AttachedStored);
        Ok(())
    }

    /// Who attached to each of these environments, in the order in which they came.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn attached(
        &self,
        environments: &[Environment],
    ) -> Result<HashMap<EnvironmentId, Vec<Attached>>, StoreError> {
        let mut all = HashMap::new();
        let shared = environments.iter().filter(|it| it.scope == Scope::Build);
        for environment in shared {
            let rows = sqlx::query("SELECT job_id, step_key, agent_id, url, attached_at FROM attached WHERE environment_id = ? ORDER BY attached_at, job_id")
                .bind(environment.id.to_string())
                .fetch_all(&self.pool)
                .await?;
            let jobs: Result<Vec<_>, StoreError> = rows.iter().map(read).collect();
            all.insert(environment.id, jobs?);
        }
        Ok(all)
    }
}

fn read(row: &sqlx::sqlite::SqliteRow) -> Result<Attached, StoreError> {
    Ok(Attached {
        job_id: row.try_get("job_id")?,
        step_key: row.try_get("step_key")?,
        agent_id: row.try_get("agent_id")?,
        url: row.try_get("url")?,
        attached_at: Timestamp::from_microsecond(row.try_get("attached_at")?).unwrap_or_default(),
    })
}

/// Notes a job that is not the maker, once.
pub(super) async fn note(
    transaction: &mut Transaction<'_, Sqlite>,
    environment: &Environment,
    identity: &Identity,
    now: Timestamp,
) -> Result<(), StoreError> {
    if environment.owner() == identity.owner() {
        return Ok(());
    }
    let id = environment.id.to_string();
    let known = "SELECT count(*) FROM attached WHERE environment_id = ? AND job_id = ?";
    if count(transaction, known, &[&id, &identity.job.id]).await? > 0 {
        return Ok(());
    }
    let all = "SELECT count(*) FROM attached WHERE environment_id = ?";
    if count(transaction, all, &[&id]).await? >= ATTACHED_JOBS_MAX {
        return Err(StoreError::Full {
            message: format!("{ATTACHED_JOBS_MAX} jobs have attached to {id}, the most that may"),
            own: Own::Caller,
        });
    }
    sqlx::query("INSERT INTO attached (environment_id, job_id, step_key, agent_id, url, attached_at) VALUES (?,?,?,?,?,?)")
        .bind(&id)
        .bind(&identity.job.id)
        .bind(identity.job.step_key.as_ref().map(ToString::to_string))
        .bind(&identity.runner.agent_id)
        .bind(&identity.job.url)
        .bind(now.as_microsecond())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
