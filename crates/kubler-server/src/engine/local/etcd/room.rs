//! Room for etcd's database on a full disk: what ends is deleted there, and a deletion is written like anything else.
//! etcd takes its own log's blocks beforehand; its database grows as it goes, and one that cannot grow ends the process.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files;

/// Blocks behind the end of the database, in bytes: etcd's own step of growth.
const ROOM_BYTES: u64 = 16 << 20;
/// Time between two looks at how long it is.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Keeps the room for ever.
pub(super) async fn keep(folder: PathBuf) {
    let path = folder.join("data/member/snap/db");
    let mut kept = None;
    loop {
        match keep_once(&path, kept) {
            Ok(now) => kept = Some(now),
            // On a full disk there is what was kept before.
            Err(error) => tracing::debug!(%error, "no room could be kept for etcd; trying again"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Which file, and how long it was, when its room was last made whole.
type Kept = (u64, u64);

fn keep_once(path: &Path, kept: Option<Kept>) -> io::Result<Kept> {
    let file = OpenOptions::new().write(true).open(path)?;
    let found = file.metadata()?;
    let now = (found.ino(), found.len());
    if kept != Some(now) {
        // Also what was never written below its end: it is made longer before it is filled.
        let bytes = found.len().saturating_add(ROOM_BYTES);
        files::keep_blocks(&file, 0, bytes)?;
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_behind_the_end_and_within_and_the_length_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let kept = keep_once(&path, None).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 1 << 20);
        assert!(found.blocks() * 512 >= ROOM_BYTES + (1 << 20));
        assert_eq!(keep_once(&path, Some(kept)).unwrap(), kept);
    }
}
