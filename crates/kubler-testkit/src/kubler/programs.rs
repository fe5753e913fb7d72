//! The programs under test.

use std::path::{Path, PathBuf};

/// The programs under test: beside the running test, or in `KUBLER_PROGRAMS`.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Finds them.
    ///
    /// # Panics
    /// When they have not been built.
    pub fn find() -> Self {
        let folder = std::env::var_os("KUBLER_PROGRAMS").map_or_else(
            || {
                let test = std::env::current_exe().expect("this program's path");
                let folders = test.ancestors().skip(1).take(2);
                let found = folders.filter(|folder| folder.join("kubler-server").is_file());
                let nearest = found.last().map(Path::to_owned);
                nearest.unwrap_or_else(|| {
                    panic!(
                        "kubler-server is not beside `{}`: run `cargo build --workspace --bins`",
                        test.display()
                    )
                })
            },
            PathBuf::from,
        );
        assert!(
            folder.join("kubler").is_file(),
            "`kubler` is not in `{}`: run `cargo build --workspace --bins`",
            folder.display()
        );
        Self { folder }
    }

    /// The folder, for a PATH.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `kubler-server`.
    pub fn server(&self) -> PathBuf {
        self.folder.join("kubler-server")
    }

    /// `kubler`.
    pub fn cli(&self) -> PathBuf {
        self.folder.join("kubler")
    }
}
