//! What should exist: environments and exchanges, durable before anything is done. The only place that speaks SQL.
//!
//! Every change is made known to the [`Directory`] after it is durable and before anybody else can make the next.

mod attached;
mod environments;
mod exchanges;
mod images;
mod rows;
mod search;
mod writer;

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
use kubler_core::ledger::checkpoint::PublicKey;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqlSafeStr as _};
use tokio::sync::Mutex;

pub use self::attached::{ATTACHED_JOBS_MAX, Attached};
pub use self::environments::Created;
pub use self::exchanges::{EXCHANGE_REPEAT_SECONDS, Exchange, Exchanged};
pub use self::images::{IMAGES_PER_ENVIRONMENT_MAX, Images};
pub use self::search::{Place, SEARCH_MAX, SEARCH_PAGE, Search};
use self::writer::Writer;
use crate::directory::Directory;
use crate::files;
use crate::ledger::Witness;

/// How long a tombstone is kept, in hours: a week.
pub const TOMBSTONE_HOURS: i64 = 168;
/// How often the file is really written to find out whether it can be, in microseconds; in between the last answer
/// holds, so that nobody makes the server write by asking.
const CHECK_EVERY_MICROSECONDS: i64 = 1_000_000;
/// How long to wait for another process's lock on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that read at once.
const READERS_MAX: u32 = 4;

/// Environments and exchanges in one SQLite file.
#[derive(Debug)]
pub struct Store {
    /// For reading, and for nothing else: SQLite refuses to write by it. However slow, it never holds up an end.
    pool: SqlitePool,
    /// SQLite has one writer, which has a connection of its own; waiting here is fair and cannot time out half-way.
    writer: Mutex<Writer>,
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
    /// The disk has no room for anything new: what is left is kept for ends.
    #[error("the store has no room for anything new")]
    NoRoom,
    /// The schema could not be brought up to date.
    #[error("the store could not be migrated: {0}")]
    Migration(#[from] MigrateError),
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

/// SQLite's word for a disk without room (`SQLITE_FULL`).
const SQLITE_FULL: &str = "13";
/// SQLite's words for a file that is damaged or no database (`SQLITE_CORRUPT`, `SQLITE_NOTADB`).
const SQLITE_DAMAGED: [&str; 2] = ["11", "26"];

impl StoreError {
    /// Whether the file does not hold what was once written into it.
    pub fn is_damage(&self) -> bool {
        let is_damaged = |error: &sqlx::Error| {
            let code = error.as_database_error().and_then(|error| error.code());
            code.is_some_and(|code| SQLITE_DAMAGED.contains(&code.as_ref()))
        };
        match self {
            Self::Unreadable { .. } => true,
            Self::Database(error) => is_damaged(error),
            Self::Migration(MigrateError::Execute(error)) => is_damaged(error),
            _ => false,
        }
    }

    /// Whether it is the disk that has no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoom => true,
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code == SQLITE_FULL)
            }
            _ => false,
        }
    }
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
        let mut connection = options.connect().await?;
        migrations().run(&mut connection).await?;
        let writer = Writer::connect(file, options.clone()).await?;
        connection.close().await?;
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.pragma("query_only", "on"))
            .await?;
        let store = Self {
            pool,
            writer: Mutex::new(writer),
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
        let mut writer = self.writer.lock().await;
        let since = now.saturating_sub(self.written_at.load(Ordering::Relaxed));
        if (0..CHECK_EVERY_MICROSECONDS).contains(&since) {
            return Ok(());
        }
        let mut transaction = writer.begin_new().await?;
        sqlx::query("INSERT INTO written (id, at) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at")
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.written_at.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// Remembers a checkpoint of the ledger: from now on the ledger must hold it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn saw_ledger(&self, key: &PublicKey, note: &str) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        sqlx::query("INSERT INTO ledger_seen (id, key, note) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET key = excluded.key, note = excluded.note")
            .bind(key.to_string())
            .bind(note)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// What this store saw of its ledger, if anything.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn witness(&self) -> Result<Option<Witness>, StoreError> {
        let row = sqlx::query("SELECT note FROM ledger_seen")
            .fetch_optional(&self.pool)
            .await?;
        row.map(witness).transpose()
    }

    /// Forgets what is of no use any more: tombstones past their week, exchanges of tokens that expired an hour ago.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn forget(&self, now: Timestamp) -> Result<(), StoreError> {
        let hour = |hours: i64| now.as_microsecond() - hours * 3_600_000_000;
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        let mut forgotten = Vec::new();
        let old = sqlx::query("SELECT id FROM environments WHERE phase = 'gone' AND gone_at < ?")
            .bind(hour(TOMBSTONE_HOURS))
            .fetch_all(&mut *transaction)
            .await?;
        for row in old {
            let id: String = row.try_get(0)?;
            sqlx::query("DELETE FROM environments WHERE id = ?")
                .bind(&id)
                .execute(&mut *transaction)
                .await?;
            forgotten.extend(id.parse::<EnvironmentId>());
        }
        sqlx::query("DELETE FROM exchanges WHERE token_expires_at < ?")
            .bind(hour(1))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        forgotten
            .into_iter()
            .for_each(|id| self.directory.remove(id));
        Ok(())
    }
}

/// Copies the store in the file `from` into the new file `to`, as it is at one moment; a server may be using it.
///
/// # Errors
/// When it cannot be read, or the copy cannot be written.
pub async fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(from)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT);
    // Made beforehand, so that nobody else can read it at any moment.
    let file = files::create_private(to).map_err(sqlx::Error::Io)?;
    let mut connection = options.connect().await?;
    sqlx::query("VACUUM INTO ?")
        .bind(to.to_string_lossy().into_owned())
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    file.sync_all().map_err(sqlx::Error::Io)?;
    Ok(())
}

/// What the store in `file` saw of its ledger, if there is one and it saw any. Changes nothing, also beside a server that
/// runs.
///
/// # Errors
/// When it cannot be read.
pub async fn seen_by(file: &Path) -> Result<Option<Witness>, StoreError> {
    if !file.exists() {
        return Ok(None);
    }
    let mut connection = beside(file).connect().await?;
    // A store of before knows no ledgers.
    let known = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = 'ledger_seen'")
        .fetch_optional(&mut connection)
        .await?;
    let row = match known {
        None => None,
        Some(_) => {
            sqlx::query("SELECT note FROM ledger_seen")
                .fetch_optional(&mut connection)
                .await?
        }
    };
    connection.close().await?;
    row.map(witness).transpose()
}

/// Whether the store in `file` can be read, if there is one; a server may be using it. Changes nothing.
///
/// # Errors
/// When it is no store, or damaged.
pub async fn look_at(file: &Path) -> Result<(), StoreError> {
    if !file.exists() {
        return Ok(());
    }
    let mut connection = beside(file).connect().await?;
    let row = sqlx::query("PRAGMA quick_check(1)")
        .fetch_one(&mut connection)
        .await?;
    let said: String = row.try_get(0)?;
    connection.close().await?;
    whole(file, said)
}

/// For reading only. A file without a log beside it is read as it lies there, so that none is made; one with a log may be
/// in use, or was left by a crash.
fn beside(file: &Path) -> SqliteConnectOptions {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT)
        .immutable(!Path::new(&log).exists())
}

fn witness(row: SqliteRow) -> Result<Witness, StoreError> {
    Ok(Witness {
        name: "the store".into(),
        note: row.try_get(0)?,
    })
}

fn whole(file: &Path, said: String) -> Result<(), StoreError> {
    if said == "ok" {
        Ok(())
    } else {
        Err(StoreError::Unreadable {
            id: file.display().to_string(),
            message: said,
        })
    }
}

/// Whether the file holds a store that is whole. Changes nothing.
///
/// # Errors
/// When it does not.
pub async fn check_file(file: &Path) -> Result<(), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .immutable(true);
    let mut connection = options.connect().await?;
    let row = sqlx::query("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await?;
    let said: String = row.try_get(0)?;
    connection.close().await?;
    whole(file, said)
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
        file(4, "ledger", include_str!("../migrations/0004_ledger.sql")),
        file(
            5,
            "attached",
            include_str!("../migrations/0005_attached.sql"),
        ),
        file(7, "images", include_str!("../migrations/0007_images.sql")),
    ])
}

#[cfg(test)]
pub(crate) mod tests;
