//! Which images ran in which environment, for whoever looks for one of them later. The ledger says the same, and more;
//! here it can be searched.

use std::collections::HashMap;

use jiff::Timestamp;
use kubler_core::artifact::Image;
use kubler_core::environment::Environment;
use kubler_core::ids::EnvironmentId;
use sqlx::{Row as _, Sqlite, Transaction};

use super::{Store, StoreError};

/// Most images of one environment that are kept; those that come later stand in the ledger only.
pub const IMAGES_PER_ENVIRONMENT_MAX: u32 = 256;

/// Most images that are told at once, of all environments that were found; of each at least [`IMAGES_TOLD_MIN`].
const IMAGES_TOLD_MAX: usize = 2048;
/// Images of each environment that are told, however many were found.
const IMAGES_TOLD_MIN: usize = 8;

/// The images of one environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images {
    /// As its jobs wrote them, in the order in which they came.
    pub named: Vec<String>,
    /// There are more, or may have been: as many are told, or kept, as may be.
    pub truncated: bool,
}

impl Store {
    /// Notes that a request with these images is about to go on. They are found from now on, also when nobody lives to
    /// note how it was answered. Repeats are harmless.
    ///
    /// # Errors
    /// When it cannot be written; `NoRoom` on a full disk.
    pub async fn images_named(
        &self,
        id: EnvironmentId,
        images: &[String],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_new().await?;
        for image in images {
            let wanted = Wanted { id, image, now };
            put(&mut transaction, wanted, false).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Notes how that request was answered. What was refused is forgotten, unless another request with it was accepted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn images_answered(
        &self,
        id: EnvironmentId,
        images: &[String],
        accepted: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        for image in images {
            if accepted {
                // Not only marked: a refusal of the same image may have taken the row away.
                put(&mut transaction, Wanted { id, image, now }, true).await?;
            } else {
                sqlx::query(
                    "DELETE FROM images WHERE environment_id = ? AND image = ? AND accepted = 0",
                )
                .bind(id.to_string())
                .bind(image)
                .execute(&mut *transaction)
                .await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The images of each of these environments: all that are kept of one, the first ones of many.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn images(
        &self,
        environments: &[Environment],
    ) -> Result<HashMap<EnvironmentId, Images>, StoreError> {
        let mut all = HashMap::new();
        let kept_max = usize::try_from(IMAGES_PER_ENVIRONMENT_MAX).unwrap_or(usize::MAX);
        let told_max = IMAGES_TOLD_MAX / environments.len().max(1);
        let told_max = told_max.clamp(IMAGES_TOLD_MIN, kept_max);
        let limit = i64::try_from(told_max + 1).unwrap_or(i64::MAX);
        for environment in environments {
            let rows = sqlx::query(
                "SELECT image FROM images WHERE environment_id = ? ORDER BY named_at, image LIMIT ?",
            )
            .bind(environment.id.to_string())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
            let named: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
            let mut named = named?;
            let truncated = named.len() > told_max || named.len() >= kept_max;
            named.truncate(told_max);
            if !named.is_empty() {
                all.insert(environment.id, Images { named, truncated });
            }
        }
        Ok(all)
    }
}

struct Wanted<'a> {
    id: EnvironmentId,
    image: &'a str,
    now: Timestamp,
}

async fn put(
    transaction: &mut Transaction<'_, Sqlite>,
    wanted: Wanted<'_>,
    accepted: bool,
) -> Result<(), StoreError> {
    let id = wanted.id.to_string();
    let image = Image::parse(wanted.image);
    let (repository, last) = match &image {
        Some(image) => (image.repository.as_str(), image.last()),
        None => (wanted.image, wanted.image),
    };
    sqlx::query(
        "INSERT INTO images (environment_id, image, repository, last, tag, digest, named_at, accepted)
         SELECT id, ?, ?, ?, ?, ?, ?, ? FROM environments WHERE id = ?
         AND (SELECT count(*) FROM images WHERE environment_id = ?) < ?
         ON CONFLICT (environment_id, image) DO UPDATE SET accepted = max(accepted, excluded.accepted)",
    )
    .bind(wanted.image)
    .bind(repository)
    .bind(last)
    .bind(image.as_ref().and_then(|image| image.tag.as_deref()))
    .bind(image.as_ref().and_then(|image| image.digest.as_deref()))
    .bind(wanted.now.as_microsecond())
    .bind(accepted)
    .bind(&id)
    .bind(&id)
    .bind(IMAGES_PER_ENVIRONMENT_MAX)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
