//! Puts a back-up into an empty data folder, after everything in it was checked.

use std::path::{Path, PathBuf};

use kubler_core::ledger::checkpoint::PublicKey;
use kubler_core::ledger::layout;

use super::backup::{
    BackupError, FORM, MANIFEST, Manifest, copy_private, list, make_empty, make_folder,
};
use crate::data_folder::DataFolder;
use crate::files::{folder_of, sync_folder};
use crate::{ledger, store};

/// Puts the back-up in `folder` into `data`, which must be empty or not exist. Nothing is there before all of it is.
///
/// # Errors
/// When the back-up is not what its manifest says, or cannot be copied.
pub async fn restore(folder: &Path, data: &DataFolder) -> Result<Manifest, BackupError> {
    let data = data.path();
    let manifest = check(folder).await?;
    make_empty(data)?;
    let unfinished = beside(data);
    make_empty(&unfinished)?;
    let mut folders = vec![unfinished.clone()];
    for below in [DataFolder::LEDGER, DataFolder::SESSIONS] {
        if manifest
            .files
            .iter()
            .any(|file| file.path.starts_with(below))
        {
            folders.push(unfinished.join(below));
        }
    }
    for made in &folders {
        make_folder(made)?;
    }
    for file in &manifest.files {
        copy_private(&folder.join(&file.path), &unfinished.join(&file.path))?;
    }
    // Its names before its own, so that no loss of power leaves a data folder with less than all of it.
    for made in &folders {
        sync_folder(made).map_err(BackupError::file(made))?;
    }
    std::fs::remove_dir(data).map_err(BackupError::file(data))?;
    std::fs::rename(&unfinished, data).map_err(BackupError::file(data))?;
    let above = folder_of(data);
    sync_folder(above).map_err(BackupError::file(above))?;
    Ok(manifest)
}

/// The folder in which it is put together.
fn beside(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".restoring");
    name.into()
}

/// Reads all of it.
async fn check(folder: &Path) -> Result<Manifest, BackupError> {
    let unsound = |message: String| BackupError::Unsound {
        folder: folder.to_owned(),
        message,
    };
    let path = folder.join(MANIFEST);
    let text = std::fs::read_to_string(&path).map_err(BackupError::file(&path))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| unsound(format!("its `{MANIFEST}` cannot be read: {error}")))?;
    if manifest.form != FORM {
        return Err(unsound(format!(
            "its form {} is not known here",
            manifest.form
        )));
    }
    let there = list(folder)?;
    for file in &manifest.files {
        if !there.contains(file) {
            return Err(unsound(format!(
                "`{}` is missing, or not what it was",
                file.path
            )));
        }
    }
    if let Some(other) = there.iter().find(|file| !manifest.files.contains(file)) {
        return Err(unsound(format!("`{}` does not belong to it", other.path)));
    }
    let key = PublicKey::parse(&manifest.key).map_err(|error| unsound(error.to_string()))?;
    let copy = DataFolder::at(folder).ledger();
    let public = copy.join(layout::PUBLIC_KEY);
    let stated = std::fs::read_to_string(&public).map_err(BackupError::file(&public))?;
    if stated.trim() != key.to_string() {
        return Err(unsound(format!(
            "`{}` is not the key that it names",
            layout::PUBLIC_KEY
        )));
    }
    ledger::check(&copy, &key, &manifest.checkpoint).map_err(|error| unsound(error.to_string()))?;
    store::check_file(&DataFolder::at(folder).store())
        .await
        .map_err(|error| unsound(error.to_string()))?;
    Ok(manifest)
}
