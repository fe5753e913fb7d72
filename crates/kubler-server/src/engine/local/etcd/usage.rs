//! How much is stored: by all, and by one environment.

use kubler_core::ids::EnvironmentId;

use super::client::{Client, EtcdError};
use super::keyspace::{call, range};
use super::wire::{self, prefix_end};

/// Keys of the first page of a count: so few that their values fit into an answer whatever their size.
const PAGE_KEYS_MIN: i64 = 4;
/// Most keys of a page.
const PAGE_KEYS_MAX: i64 = 64;
/// Pages smaller than this grow, larger ones shrink, in bytes.
const PAGE_BYTES: u64 = 256 << 10;

/// Bytes that all of it takes, history included, and the last revision.
pub(in super::super) async fn in_use(client: &Client) -> Result<(u64, i64), EtcdError> {
    let status = call(client, wire::Status {}).await?;
    let revision = status.header.unwrap_or_default().revision;
    Ok((
        u64::try_from(status.bytes_in_use).unwrap_or_default(),
        revision,
    ))
}

/// Bytes of an environment's live keys and values. Stops counting past `bytes_max`.
pub(in super::super) async fn stored_bytes(
    client: &Client,
    id: EnvironmentId,
    bytes_max: u64,
) -> Result<u64, EtcdError> {
    let range = range(id);
    let range_end = prefix_end(&range);
    let mut from = range.into_bytes();
    let mut limit = PAGE_KEYS_MIN;
    let mut bytes = 0;
    loop {
        let page = wire::Range {
            key: from.clone(),
            range_end: range_end.clone(),
            limit,
            ..wire::Range::default()
        };
        let page = match call(client, page).await {
            // Small values can be followed by large ones.
            Err(EtcdError::TooLong) if limit > PAGE_KEYS_MIN => {
                limit = PAGE_KEYS_MIN;
                continue;
            }
            page => page?,
        };
        let page_bytes: usize = page
            .kvs
            .iter()
            .map(|found| found.key.len() + found.value.len())
            .sum();
        let page_bytes = u64::try_from(page_bytes).unwrap_or(u64::MAX);
        bytes += page_bytes;
        let Some(last) = page
            .kvs
            .into_iter()
            .next_back()
            .filter(|_| page.more && bytes <= bytes_max)
        else {
            return Ok(bytes);
        };
        from = last.key;
        from.push(0);
        limit = if page_bytes < PAGE_BYTES {
            (limit * 2).min(PAGE_KEYS_MAX)
        } else {
            (limit / 2).max(PAGE_KEYS_MIN)
        };
    }
}

/// Forgets what was overwritten or deleted before `revision`. Succeeds when that was forgotten before.
pub(in super::super) async fn compact(client: &Client, revision: i64) -> Result<(), EtcdError> {
    match call(client, wire::Compact { revision }).await {
        Err(EtcdError::Refused(why)) => {
            tracing::debug!(why, revision, "nothing to compact");
            Ok(())
        }
        answer => answer.map(drop),
    }
}
