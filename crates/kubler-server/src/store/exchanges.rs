//! Exchanges of identity tokens for sessions: one a token.

use jiff::Timestamp;
use kubler_core::identity::VerifiedToken;
use kubler_core::ids::{EnvironmentId, SessionId};
use kubler_core::policy::{Action, Permit};
use kubler_core::tombstone::Tombstone;
use kubler_core::{invariants, session};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::environments::renewed;
use super::{Store, StoreError, attached, rows};
use crate::crash::{self, Point};

/// How long the same job may repeat an exchange and get the same session, in seconds.
pub const EXCHANGE_REPEAT_SECONDS: i64 = 10;

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

/// What came of asking for an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchanged {
    /// It took place: now, or earlier with the same token.
    Session(Exchange),
    /// The token was minted longer ago than a session or lease lasts.
    TokenTooOld,
    /// The environment is not usable any more.
    Ended(Box<Tombstone>),
}

impl Store {
    /// Notes the one exchange of a token, or gives the earlier one. A token that is good for a session is proof of life
    /// as well: the lease it proves is stored with the exchange, so that no session is promised past a stored lease.
    ///
    /// # Errors
    /// When it cannot be written; nothing is changed then.
    pub async fn exchange(
        &self,
        permit: Permit,
        token: &VerifiedToken,
        session_id: SessionId,
        now: Timestamp,
    ) -> Result<Exchanged, StoreError> {
        let id = permit.spend_on_environment(Action::IssueSession)?;
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_new().await?;
        let known = sqlx::query("SELECT environment_id, session_id, exchanged_at, session_end FROM exchanges WHERE token_sha256 = ?")
            .bind(token.digest.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(row) = known {
            return read_exchange(&row).map(Exchanged::Session);
        }
        let before = rows::by_id(&mut transaction, id).await?;
        // Somebody may have ended it since the caller was let in.
        if let Some(tombstone) = self.directory.tombstone(&before, now) {
            return Ok(Exchanged::Ended(Box::new(tombstone)));
        }
        let renewed = renewed(&before, token.issued_at, now);
        let environment = renewed.as_ref().unwrap_or(&before);
        let Some(session_end) = session::end(environment, token, now) else {
            return Ok(Exchanged::TokenTooOld);
        };
        invariants::check_session(environment, session_end)?;
        if let Some(after) = &renewed {
            rows::update(&mut transaction, &before, after).await?;
        }
        // Whoever knows the id may attach without asking by name.
        attached::note(&mut transaction, &before, &token.identity, now).await?;
        let new = Exchange {
            environment_id: id,
            session_id,
            exchanged_at: now,
            session_end,
        };
        sqlx::query("INSERT INTO exchanges (token_sha256, environment_id, session_id, exchanged_at, session_end, token_expires_at) VALUES (?,?,?,?,?,?)")
            .bind(token.digest.to_string())
            .bind(new.environment_id.to_string())
            .bind(new.session_id.to_string())
            .bind(new.exchanged_at.as_microsecond())
            .bind(new.session_end.as_microsecond())
            .bind(token.expires_at.as_microsecond())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        crash::at(Point::SessionStored);
        if let Some(after) = renewed {
            self.directory.put(after);
        }
        Ok(Exchanged::Session(new))
    }
}

fn read_exchange(row: &SqliteRow) -> Result<Exchange, StoreError> {
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
