//! Rows and what they mean.

use jiff::Timestamp;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use kubler_core::invariants;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, Sqlite, Transaction};

use super::{Store, StoreError};

impl Store {
    pub(super) async fn select(
        &self,
        sql: &str,
        values: &[&str],
    ) -> Result<Vec<Environment>, StoreError> {
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

/// The environment of this id.
pub(super) async fn by_id(
    transaction: &mut Transaction<'_, Sqlite>,
    id: EnvironmentId,
) -> Result<Environment, StoreError> {
    select_one(
        transaction,
        "SELECT document FROM environments WHERE id = ?",
        &id.to_string(),
    )
    .await?
    .ok_or(StoreError::NotFound(id))
}

/// Writes a changed environment over the one that was read. Never over one that somebody changed since.
pub(super) async fn update(
    transaction: &mut Transaction<'_, Sqlite>,
    before: &Environment,
    after: &Environment,
) -> Result<(), StoreError> {
    invariants::check_environment(after)?;
    let written = sqlx::query("UPDATE environments SET phase = ?, gone_at = ?, version = ?, document = ? WHERE id = ? AND version = ?")
        .bind(after.phase.as_str())
        .bind(after.gone_at.map(Timestamp::as_microsecond))
        .bind(i64::try_from(after.version).unwrap_or(i64::MAX))
        .bind(document(after)?)
        .bind(before.id.to_string())
        .bind(i64::try_from(before.version).unwrap_or(i64::MAX))
        .execute(&mut **transaction)
        .await?;
    if written.rows_affected() != 1 {
        return Err(StoreError::Unreadable {
            id: before.id.to_string(),
            message: "its version is not what its record says".into(),
        });
    }
    Ok(())
}

pub(super) async fn select_one(
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

pub(super) async fn count(
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

pub(super) fn read_environment(row: &SqliteRow) -> Result<Environment, StoreError> {
    let text: String = row.try_get("document")?;
    serde_json::from_str(&text).map_err(|error| StoreError::Unreadable {
        id: text.chars().take(60).collect(),
        message: error.to_string(),
    })
}

pub(super) fn document(environment: &Environment) -> Result<String, StoreError> {
    serde_json::to_string(environment).map_err(|error| StoreError::Unreadable {
        id: environment.id.to_string(),
        message: error.to_string(),
    })
}
