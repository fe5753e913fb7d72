//! What should exist: environments and exchanges, durable before anything is done. The only place that speaks SQL.
//!
//! Every change is made known to the [`Directory`] after it is durable and before anybody else can make the next.

mod attached;
mod environments;
mod exchanges;
mod rows;
mod search;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use kubler_core::configuration::Limits;
use kubler_core::environment::TransitionError;
use kubler_core::ids::EnvironmentId;
use kubler_core::invariants;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row as _, SqlSafeStr as _};
use tokio::sync::Mutex;

pub use self::attached::{ATTACHED_JOBS_MAX, Attached};
pub use self::environments::Created;
pub use self::exchanges::{EXCHANGE_REPEAT_SECONDS, Exchange, Exchanged};
pub use self::search::{Place, SEARCH_MAX, SEARCH_PAGE, Search};
use crate::directory::Directory;

/// How long a tombstone is kept, in hours: a week.
pub const TOMBSTONE_HOURS: i64 = 168;
/// How often the file is really written to find out whether it can be, in microseconds; in between the last answer
/// holds, so that nobody makes the server write by asking.
const CHECK_EVERY_MICROSECONDS: i64 = 1_000_000;
/// How long to wait for another process's lock on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Environments and exchanges in one SQLite file.
#[derive(Debug)]
pub struct Store {
    pool: SqlitePool,
    /// SQLite has one writer; waiting here is fair and cannot time out half-way.
    writer: Mutex<()>,
    directory: Arc<Directory>,
    limits: ArcSwap<Limits>,
    /// When the file was last found writable.
    written_at: AtomicI64,
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
    /// It is not what was permitted.
    #[error(transparent)]
    Permit(#[from] kubler_core::policy::WrongPermit),
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
            limits: ArcSwap::from_pointee(limits),
            written_at: AtomicI64::new(i64::MIN),
        };
        for environment in store
            .select("SELECT document FROM environments", &[])
            .await?
        {
            store.directory.put(environment);
        }
        Ok(store)
    }

    /// The limits in force.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// Puts other limits in force. What lives lives on; they hold for what comes.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }

    /// Whether the file can be written, found out by writing to it; at most once a second.
    ///
    /// # Errors
    /// When it cannot: the disk is full, the file is read-only, or somebody else holds its lock.
    pub async fn check(&self, now: Timestamp) -> Result<(), StoreError> {
        let now = now.as_microsecond();
        let _writer = self.writer.lock().await;
        let since = now.saturating_sub(self.written_at.load(Ordering::Relaxed));
        if (0..CHECK_EVERY_MICROSECONDS).contains(&since) {
            return Ok(());
        }
        sqlx::query("INSERT INTO written (id, at) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at")
            .bind(now)
            .execute(&self.pool)
            .await?;
        self.written_at.store(now, Ordering::Relaxed);
        Ok(())
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
    Migrator::with_migrations(vec![
        file(
            1,
            "environments",
            include_str!("../migrations/0001_environments.sql"),
        ),
        file(2, "search", include_str!("../migrations/0002_search.sql")),
        file(3, "written", include_str!("../migrations/0003_written.sql")),
        file(
            4,
            "attached",
            include_str!("../migrations/0004_attached.sql"),
        ),
    ])
}

#[cfg(test)]
pub(crate) mod tests;
