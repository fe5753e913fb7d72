//! What a start would find in the data folder. Changes nothing, so that it may be asked beside a server that runs.

use std::io;
use std::path::Path;

use rustix::fs::Access;

use crate::config::Loaded;
use crate::data_folder::DataFolder;
use crate::ledger::sinks::Sinks;
use crate::ledger::{self, Look};
use crate::opening::seen_before;
use crate::session;
use crate::start_error::StartError;
use crate::store;

/// What `sysfs` is known by (`SYSFS_MAGIC`).
const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Looks at the data folder, the store, the ledger with its witnesses, the session keys and the sinks. Gives what is no
/// fault and should be known.
///
/// # Errors
/// The first thing that a start would stop at.
pub async fn inspect(loaded: &Loaded, sinks: &Sinks) -> Result<Vec<String>, StartError> {
    let data = DataFolder::of(loaded);
    check_folder(data.path()).map_err(|source| StartError::Folder {
        path: data.path().to_owned(),
        source,
    })?;
    store::look_at(&data.store()).await?;
    session::check(&data.sessions())?;
    let witnesses = seen_before(&data, sinks).await?;
    let mut notes = sinks.obstacles();
    match ledger::look(&data.ledger(), &loaded.configuration.ledger, &witnesses)? {
        Look::InUse => notes.push(
            "a server runs on the ledger: what is in it was not read (`kubler ledger verify` does)"
                .into(),
        ),
        Look::Absent | Look::Sound => {}
    }
    Ok(notes)
}

/// Whether the folder can be used, or made, by this user.
fn check_folder(folder: &Path) -> io::Result<()> {
    let there = folder.ancestors().find(|above| {
        let found = std::fs::symlink_metadata(above);
        found.is_ok()
    });
    let there = there
        .filter(|there| !there.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)?;
    let kind = u64::try_from(rustix::fs::statfs(there)?.f_type).unwrap_or_default();
    if kind == SYSFS_MAGIC
        || kind == u64::try_from(rustix::fs::PROC_SUPER_MAGIC).unwrap_or_default()
    {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(())
}
