//! What should exist: environments and exchanges, durable before anything is done. The only place that speaks SQL.
//!
//! Every change is made known to the [`Directory`] after it is durable and before anybody else can make the next.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubler_core::configuration::Limits;
use kubler_core::environment::{Environment, Event, Phase, TransitionError};
use kubler_core::ids::{EnvironmentId, SessionId, TokenDigest};
use kubler_core::invariants;
use kubler_core::lease;
use kubler_core::policy::Permit;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row as _, SqlSafeStr as _, Sqlite, Transaction};
use tokio::sync::Mutex;

use crate::directory::Directory;

/// How long a tombstone is kept, in hours: a week.
pub const TOMBSTONE_HOURS: i64 = 168;
/// Most environments one search returns.
pub const SEARCH_MAX: usize = 200;
/// How long the same job may repeat an exchange and get the same session, in seconds.
pub const EXCHANGE_REPEAT_SECONDS: i64 = 10;
/// How long to wait for another process's lock on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Environments and exchanges in one SQLite file.
#[derive(Debug)]
pub struct Store {
    pool: SqlitePool,
    /// SQLite has one writer; waiting here is fair and cannot time out half-way.
    writer: Mutex<()>,
    directory: Arc<Directory>,
    limits: Limits,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or could not be reached.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the store could not be migrated: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A stored record cannot be read.
    #[error("the stored environment `{id}` cannot be read: {message}")]
    Unreadable {
        /// Which.
        id: String,
        /// Why.
        message: String,
    },
    /// There is no such environment.
    #[error("there is no environment `{0}`")]
    NotFound(EnvironmentId),
    /// Life does not allow the change.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// A promise would be broken.
    #[error(transparent)]
    Violation(#[from] invariants::Violation),
    /// A limit is reached.
    #[error("{message}")]
    Full {
        /// Which limit, for people.
        message: String,
        /// Whether it is a limit of this caller's own.
        own: Own,
    },
}

/// Whose limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// The caller's.
    Caller,
    /// The server's.
    Server,
}

/// Result of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It was new.
    New(Environment),
    /// The same job (or build) had asked for this name before.
    Existing(Environment),
}

/// What to search for. All given parts must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Organization id.
    pub organization_id: Option<String>,
    /// Pipeline id or slug.
    pub pipeline: Option<String>,
    /// Build number.
    pub build_number: Option<u64>,
    /// Build id.
    pub build_id: Option<String>,
    /// Job id.
    pub job_id: Option<String>,
    /// Commit, or its beginning (at least 7 digits).
    pub commit: Option<String>,
    /// Phase.
    pub phase: Option<Phase>,
}

/// An exchange that took place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// For which environment.
    pub environment_id: EnvironmentId,
    /// The session it bought.
    pub session_id: SessionId,
    /// When.
    pub exchanged_at: Timestamp,
    /// When the session ends.
    pub session_end: Timestamp,
}

impl Store {
    /// Opens (and brings up to date) the file, and fills `directory` with everything that is not forgotten.
    ///
    /// # Errors
    /// When the file cannot be opened or read; nothing is served then.
    pub async fn open(
        file: &Path,
        directory: Arc<Directory>,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Intent is durable before any side effect, also through a loss of power.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await?;
        migrations().run(&pool).await?;
        let store = Self {
            pool,
            writer: Mutex::new(()),
            directory,
            limits,
        };
        for environment in store
            .select("SELECT document FROM environments", &[])
            .await?
        {
            store.directory.put(environment);
        }
        Ok(store)
    }

    /// Whether the file can be written.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Writes down an environment that policy permitted; from here on it will be made, or ended. Repeats by the same
    /// job (or build, by scope) and name return the first.
    ///
    /// # Errors
    /// `Full` when a limit is reached: nothing is written then.
    pub async fn create_environment(
        &self,
        permit: Permit,
        environment: Environment,
    ) -> Result<Created, StoreError> {
        // The permit is spent: what it allowed is about to be durable.
        drop(permit);
        invariants::check_environment(&environment)?;
        let _writer = self.writer.lock().await;
        let mut transaction = self.pool.begin().await?;
        let key =
            Environment::unique_key(&environment.owner(), environment.scope, &environment.name);
        if let Some(existing) = select_one(
            &mut transaction,
            "SELECT document FROM environments WHERE unique_key = ?",
            &key,
        )
        .await?
        {
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
        self.directory.put(environment.clone());
        Ok(Created::New(environment))
    }

    async fn check_limits(
        &self,
        transaction: &mut Transaction<'_, Sqlite>,
        new: &Environment,
    ) -> Result<(), StoreError> {
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
        if of_job >= self.limits.environments_per_job_max {
            return full(
                format!("this job already has {of_job} environments, its limit"),
                Own::Caller,
            );
        }
        if all >= self.limits.environments_max {
            return full(
                format!("{all} environments exist, the server's limit"),
                Own::Server,
            );
        }
        if waiting >= self.limits.queue_max {
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

    /// Takes an event to an environment's life. `None` when it had been taken before.
    ///
    /// # Errors
    /// When the phase does not allow it.
    pub async fn apply(
        &self,
        id: EnvironmentId,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<(Phase, Environment)>, StoreError> {
        self.change(id, |before| {
            Ok(before
                .transition(event.clone(), now)?
                .map(|after| (before.phase, after)))
        })
        .await
    }

    /// Ends an environment that policy permitted to end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn release_environment(
        &self,
        permit: Permit,
        id: EnvironmentId,
        event: Event,
        now: Timestamp,
    ) -> Result<Option<(Phase, Environment)>, StoreError> {
        drop(permit);
        self.apply(id, event, now).await
    }

    /// Renews a lease by a token minted at `issued_at`. Gives the environment as it is afterwards, changed or not.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn renew_environment(
        &self,
        permit: Permit,
        id: EnvironmentId,
        issued_at: Timestamp,
        now: Timestamp,
    ) -> Result<Environment, StoreError> {
        drop(permit);
        let changed = self
            .change(id, |before| {
                let lease_end = lease::renewed(before, issued_at, now);
                let is_new = before.phase.is_live() && lease_end > before.lease_end;
                Ok(is_new.then(|| {
                    (
                        before.phase,
                        Environment {
                            lease_end,
                            version: before.version + 1,
                            ..before.clone()
                        },
                    )
                }))
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
        change: impl Fn(&Environment) -> Result<Option<(Phase, Environment)>, StoreError>,
    ) -> Result<Option<(Phase, Environment)>, StoreError> {
        let _writer = self.writer.lock().await;
        let mut transaction = self.pool.begin().await?;
        let before = select_one(
            &mut transaction,
            "SELECT document FROM environments WHERE id = ?",
            &id.to_string(),
        )
        .await?
        .ok_or(StoreError::NotFound(id))?;
        let Some((phase, after)) = change(&before)? else {
            return Ok(None);
        };
        invariants::check_environment(&after)?;
        let written = sqlx::query("UPDATE environments SET phase = ?, gone_at = ?, version = ?, document = ? WHERE id = ? AND version = ?")
            .bind(after.phase.as_str())
            .bind(after.gone_at.map(Timestamp::as_microsecond))
            .bind(i64::try_from(after.version).unwrap_or(i64::MAX))
            .bind(document(&after)?)
            .bind(id.to_string())
            .bind(i64::try_from(before.version).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
        if written.rows_affected() != 1 {
            return Err(StoreError::Unreadable {
                id: id.to_string(),
                message: "its version is not what its record says".into(),
            });
        }
        transaction.commit().await?;
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

    /// Newest first, at most [`SEARCH_MAX`] + 1, so that the caller can tell whether there are more.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn search(&self, search: &Search) -> Result<Vec<Environment>, StoreError> {
        let mut conditions = vec!["1=1".to_owned()];
        let mut values: Vec<String> = Vec::new();
        let mut add = |condition: &str, value: Option<String>| {
            if let Some(value) = value {
                values.extend(std::iter::repeat_n(value, condition.matches('?').count()));
                conditions.push(condition.to_owned());
            }
        };
        add("organization_id = ?", search.organization_id.clone());
        add(
            "(project_slug = ? OR project_id = ?)",
            search.pipeline.clone(),
        );
        add(
            "run_number = CAST(? AS INTEGER)",
            search.build_number.map(|number| number.to_string()),
        );
        add("run_id = ?", search.build_id.clone());
        add("job_id = ?", search.job_id.clone());
        add(
            "substr(source_commit, 1, length(?)) = ?",
            search.commit.clone(),
        );
        add(
            "phase = ?",
            search.phase.map(|phase| phase.as_str().to_owned()),
        );
        let sql = format!(
            "SELECT document FROM environments WHERE {} ORDER BY created_at DESC, id LIMIT {}",
            conditions.join(" AND "),
            SEARCH_MAX + 1
        );
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        self.select(&sql, &values).await
    }

    /// Notes the one exchange of a token, or gives the earlier one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn exchange(
        &self,
        permit: Permit,
        token: TokenDigest,
        token_expires_at: Timestamp,
        new: Exchange,
    ) -> Result<Exchange, StoreError> {
        drop(permit);
        let _writer = self.writer.lock().await;
        let mut transaction = self.pool.begin().await?;
        let known = sqlx::query("SELECT environment_id, session_id, exchanged_at, session_end FROM exchanges WHERE token_sha256 = ?")
            .bind(token.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(row) = known {
            return read_exchange(&row);
        }
        sqlx::query("INSERT INTO exchanges (token_sha256, environment_id, session_id, exchanged_at, session_end, token_expires_at) VALUES (?,?,?,?,?,?)")
            .bind(token.to_string())
            .bind(new.environment_id.to_string())
            .bind(new.session_id.to_string())
            .bind(new.exchanged_at.as_microsecond())
            .bind(new.session_end.as_microsecond())
            .bind(token_expires_at.as_microsecond())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(new)
    }

    /// Forgets what is of no use any more: tombstones past their week, exchanges of tokens that expired an hour ago.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn forget(&self, now: Timestamp) -> Result<(), StoreError> {
        let hour = |hours: i64| now.as_microsecond() - hours * 3_600_000_000;
        let _writer = self.writer.lock().await;
        let old = sqlx::query("SELECT id FROM environments WHERE phase = 'gone' AND gone_at < ?")
            .bind(hour(TOMBSTONE_HOURS))
            .fetch_all(&self.pool)
            .await?;
        for row in old {
            let id: String = row.try_get(0)?;
            sqlx::query("DELETE FROM environments WHERE id = ?")
                .bind(&id)
                .execute(&self.pool)
                .await?;
            if let Ok(id) = id.parse() {
                self.directory.remove(id);
            }
        }
        sqlx::query("DELETE FROM exchanges WHERE token_expires_at < ?")
            .bind(hour(1))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn select(&self, sql: &str, values: &[&str]) -> Result<Vec<Environment>, StoreError> {
        // The text is ours in every call; what callers bring is bound.
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
        for value in values {
            query = query.bind(*value);
        }
        query
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read_environment)
            .collect()
    }
}

/// Plain SQL files, applied in order, once each.
fn migrations() -> Migrator {
    let file = |version, name: &'static str, sql: &'static str| {
        Migration::new(
            version,
            name.into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations(vec![file(
        1,
        "environments",
        include_str!("../migrations/0001_environments.sql"),
    )])
}

async fn select_one(
    transaction: &mut Transaction<'_, Sqlite>,
    sql: &'static str,
    value: &str,
) -> Result<Option<Environment>, StoreError> {
    sqlx::query(sql)
        .bind(value)
        .fetch_optional(&mut **transaction)
        .await?
        .as_ref()
        .map(read_environment)
        .transpose()
}

async fn count(
    transaction: &mut Transaction<'_, Sqlite>,
    sql: &str,
    values: &[&str],
) -> Result<u32, StoreError> {
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for value in values {
        query = query.bind(*value);
    }
    let counted: i64 = query.fetch_one(&mut **transaction).await?.try_get(0)?;
    Ok(u32::try_from(counted).unwrap_or(u32::MAX))
}

fn read_environment(row: &sqlx::sqlite::SqliteRow) -> Result<Environment, StoreError> {
    let text: String = row.try_get("document")?;
    serde_json::from_str(&text).map_err(|error| StoreError::Unreadable {
        id: text.chars().take(60).collect(),
        message: error.to_string(),
    })
}

fn document(environment: &Environment) -> Result<String, StoreError> {
    serde_json::to_string(environment).map_err(|error| StoreError::Unreadable {
        id: environment.id.to_string(),
        message: error.to_string(),
    })
}

fn read_exchange(row: &sqlx::sqlite::SqliteRow) -> Result<Exchange, StoreError> {
    let unreadable = |message: String| StoreError::Unreadable {
        id: "exchange".into(),
        message,
    };
    let moment = |column: &str| -> Result<Timestamp, StoreError> {
        Timestamp::from_microsecond(row.try_get(column)?)
            .map_err(|error| unreadable(error.to_string()))
    };
    Ok(Exchange {
        environment_id: row
            .try_get::<String, _>("environment_id")?
            .parse()
            .map_err(|_| unreadable("environment id".into()))?,
        session_id: row
            .try_get::<String, _>("session_id")?
            .parse()
            .map_err(|_| unreadable("session id".into()))?,
        exchanged_at: moment("exchanged_at")?,
        session_end: moment("session_end")?,
    })
}
