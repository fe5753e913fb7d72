//! What the demo starts and writes, and the proof that nothing of it is there any more.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use kubler_testkit::leaks::Mark;

use crate::Faults;

/// Folders that must be gone at the end. Every process that the demo starts carries one of their names.
#[derive(Default)]
pub(crate) struct Traces(RefCell<Vec<PathBuf>>);

impl Traces {
    /// From here on it must be gone at the end.
    pub(crate) fn note(&self, folder: &Path) {
        self.0.borrow_mut().push(folder.to_owned());
    }

    /// Looks for all of them.
    pub(crate) fn left(&self) -> Faults {
        let mut faults = Faults::new();
        for folder in self.0.borrow().iter() {
            if folder.symlink_metadata().is_ok() {
                faults.push(format!("`{}` is left", folder.display()));
            }
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            for process in Mark::of(&name).processes() {
                faults.push(format!(
                    "process {} is left: {}",
                    process.pid, process.command
                ));
            }
        }
        faults
    }
}
