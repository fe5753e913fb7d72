//! The one connection that writes, and the room that is kept for it: on a full disk nothing new is written, and ends
//! still are.
//!
//! A commit goes to the log beside the database (`…-wal`), and from there into the database when enough has come
//! together. Both need blocks. Those behind the log's end are taken beforehand without changing its length, so nobody
//! else can have them; those of the database are pages that were written once and are free, so that it need not grow.
//! With both there, what has been committed can always be moved, and the log begins again at its start: ends find room
//! however many there are.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, Sqlite, SqliteConnection, Transaction};

use super::StoreError;
use crate::files;

/// Room behind the end of the log, in bytes: twice what comes together before it is moved into the database.
const LOG_BYTES_KEPT: u64 = 8 << 20;
/// Bytes of a page, SQLite's own choice.
const PAGE_BYTES: u64 = 4096;
/// Free pages of the database below which nothing new is written: two for each of a few hundred environments, which
/// become a little longer when they end.
const PAGES_KEPT: u64 = 512;
/// Pages by which the database grows when it has fewer free ones.
const PAGES_GROWN: u64 = 512;
/// Free space without which the database is not grown, in bytes: the pages twice, in the log and in the database.
const GROWTH_BYTES: u64 = 2 * PAGES_GROWN * PAGE_BYTES;

/// The connection, and the room behind it.
#[derive(Debug)]
pub(super) struct Writer {
    connection: SqliteConnection,
    log: File,
    /// Up to where blocks of the log are its own, in bytes.
    own: u64,
    folder: PathBuf,
}

impl Writer {
    /// Connects. The schema is there already.
    pub(super) async fn connect(
        file: &Path,
        options: SqliteConnectOptions,
    ) -> Result<Self, StoreError> {
        let mut connection = options.connect().await?;
        // The log is made by whoever opens the database first, and stays as long as this connection does.
        sqlx::query("SELECT count(*) FROM written")
            .fetch_one(&mut connection)
            .await?;
        let mut name = file.as_os_str().to_owned();
        name.push("-wal");
        let log = OpenOptions::new()
            .write(true)
            .open(name)
            .map_err(sqlx::Error::Io)?;
        let folder = file.parent().unwrap_or(Path::new(".")).to_owned();
        let mut writer = Self {
            connection,
            log,
            own: 0,
            folder,
        };
        // On a disk that was full before, what is there is what was kept.
        match writer.make_room().await {
            Err(StoreError::NoRoom) | Ok(()) => Ok(writer),
            Err(error) => Err(error),
        }
    }

    /// Begins something that ends, or helps to: it may use the room that is kept.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_, Sqlite>, StoreError> {
        Ok(self.connection.begin().await?)
    }

    /// Begins something new, when the room for ends is whole.
    ///
    /// # Errors
    /// `NoRoom` when it is not, and cannot be had.
    pub(super) async fn begin_new(&mut self) -> Result<Transaction<'_, Sqlite>, StoreError> {
        self.make_room().await?;
        self.begin().await
    }

    /// Makes the room for ends whole.
    ///
    /// # Errors
    /// `NoRoom` when it cannot be had.
    pub(super) async fn make_room(&mut self) -> Result<(), StoreError> {
        self.keep_log()?;
        if self.free_pages().await? < PAGES_KEPT {
            self.grow().await?;
        }
        Ok(())
    }

    fn keep_log(&mut self) -> Result<(), StoreError> {
        let kept = |log: &File, own: u64| -> io::Result<u64> {
            let wanted = log.metadata()?.len().saturating_add(LOG_BYTES_KEPT);
            if own < wanted {
                files::keep_blocks(log, 0, wanted)?;
            }
            Ok(wanted.max(own))
        };
        self.own = kept(&self.log, self.own).map_err(|error| {
            if error.kind() == io::ErrorKind::StorageFull {
                StoreError::NoRoom
            } else {
                StoreError::Database(sqlx::Error::Io(error))
            }
        })?;
        Ok(())
    }

    async fn free_pages(&mut self) -> Result<u64, StoreError> {
        let row = sqlx::query("PRAGMA freelist_count")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    /// Writes pages and frees them. They must have reached the database itself before that, or it would still have to
    /// grow for them later.
    async fn grow(&mut self) -> Result<(), StoreError> {
        if free_bytes(&self.folder)? < GROWTH_BYTES {
            return Err(StoreError::NoRoom);
        }
        let bytes = i64::try_from(PAGES_GROWN * PAGE_BYTES).unwrap_or(i64::MAX);
        sqlx::query("INSERT INTO kept (bytes) VALUES (zeroblob(?))")
            .bind(bytes)
            .execute(&mut self.connection)
            .await?;
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut self.connection)
            .await?;
        sqlx::query("DELETE FROM kept")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }
}

/// Bytes that this user may still write below `folder`.
fn free_bytes(folder: &Path) -> Result<u64, StoreError> {
    let of = rustix::fs::statvfs(folder).map_err(|error| sqlx::Error::Io(error.into()))?;
    Ok(of.f_bavail.saturating_mul(of.f_frsize))
}
