//! Files and folders that only their owner may enter, files that are there whole or not at all, and blocks that are a
//! file's own before they are written.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// The mode of what only its owner may read.
pub(crate) const PRIVATE: u32 = 0o600;
/// The mode of a folder that only its owner may enter.
const PRIVATE_FOLDER: u32 = 0o700;

/// Puts a file with `mode` in the place of the one at `path`: whatever happens, also a loss of power, the old one is
/// there or the new one, whole.
pub(crate) fn replace_whole(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(path, mode, bytes, File::sync_all)?;
    sync_folder(folder_of(path))
}

/// The same for what is of no use after a loss of power: readers see the old file or the new one, and the disk is not
/// waited for.
pub(crate) fn replace_for_readers(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(path, mode, bytes, |_| Ok(()))
}

fn put(
    path: &Path,
    mode: u32,
    bytes: &[u8],
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let unfinished = unfinished(path);
    // What a crash left there, with the mode it had.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = create(&unfinished, mode)?;
    let put = file
        .write_all(bytes)
        .and_then(|()| settle(&file))
        .and_then(|()| std::fs::rename(&unfinished, path));
    if put.is_err() {
        // On a full disk half a file has blocks that others need.
        let _ = std::fs::remove_file(unfinished);
    }
    put
}

/// Where a file is written before it takes its place.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Makes a file that must not exist, and that only its owner may read.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    create(path, PRIVATE)
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

/// Writes a file that only its owner may read, over what is there.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE)
        .open(path)?;
    file.write_all(bytes)
}

/// Makes a folder that only its owner may enter, with those above it. One that is there stays as it is.
pub(crate) fn make_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_FOLDER)
        .create(path)
}

/// The same for a folder that must not exist.
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(PRIVATE_FOLDER).create(path)
}

/// The same for one that may exist, when it is ours and closed to others.
///
/// # Errors
/// Besides, when it belongs to another user or others may enter it.
pub(crate) fn make_closed_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    make_private_folder(path)?;
    let found = std::fs::metadata(path)?;
    let refused = |why: &str| {
        let message = format!("`{}` {why}", path.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    };
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refused("belongs to another user");
    }
    if found.mode() & 0o077 != 0 {
        return refused("is open to others; chmod it to 0700");
    }
    Ok(())
}

/// The folder that holds the name of `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    }
}

/// Makes the names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes blocks for `bytes` from `from` on the file's own, so that whoever else fills the disk cannot take them. Its
/// length stays as it is, so readers never see them.
pub(crate) fn keep_blocks(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::KEEP_SIZE;
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, from, bytes))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_whatever_was_left_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.json");
        std::fs::write(&path, "old").unwrap();
        // Left by a crash, open to all; or planted, to have something else overwritten.
        for leave in [
            |beside: &Path, _: &Path| std::fs::write(beside, "half of it, and longer").unwrap(),
            |beside: &Path, other: &Path| std::os::unix::fs::symlink(other, beside).unwrap(),
        ] {
            let other = place.path().join("other");
            std::fs::write(&other, "another's").unwrap();
            leave(&place.path().join("a.json.new"), &other);
            replace_whole(&path, PRIVATE, b"new").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
            assert_eq!(mode(&path), PRIVATE);
            assert_eq!(std::fs::read_to_string(other).unwrap(), "another's");
        }
        replace_for_readers(&path, PRIVATE, b"newer").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "newer");
        assert!(!place.path().join("a.json.new").exists());
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("folder");
        std::fs::create_dir_all(path.join("full")).unwrap();
        replace_whole(&path, PRIVATE, b"new").unwrap_err();
        assert!(path.join("full").exists());
        assert!(!place.path().join("folder.new").exists());
    }

    #[test]
    fn the_folder_of_a_bare_name_is_this_one() {
        assert_eq!(folder_of(Path::new("name")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/name")), Path::new("a"));
    }
}
