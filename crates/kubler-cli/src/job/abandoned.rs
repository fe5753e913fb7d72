//! Private folders of jobs that were killed together with everything that would have cleared up after them. The next
//! job on the same machine removes them. A folder of which it cannot be told whether its job lives is never touched.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::exit::Outcome;
use crate::job::folder::PrivateFolder;
use crate::process::watched::{self, Process};
use crate::variables;

/// The file that says whose a folder is.
pub const OWNER: &str = "owner";
/// Folders that are looked at for one job; the rest is left to the next.
const FOLDERS_MAX: usize = 256;

/// The process that a folder's job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    process: Process,
    numbering: Numbering,
}

/// Where ids of processes mean the same: containers and other machines may share the folder, and count otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Numbering {
    boot: String,
    namespace: String,
}

impl Numbering {
    fn here() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        Some(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.to_str()?.to_owned(),
        })
    }
}

/// Says that `folder` is good for as long as the process `id` lives. Where processes cannot be read, nobody will
/// ever be told that it is gone.
pub fn belongs_to(folder: &PrivateFolder, id: i32) -> Outcome<()> {
    let (Ok(process), Some(numbering)) = (Process::of(id), Numbering::here()) else {
        return Ok(());
    };
    folder
        .write_json(OWNER, &Owner { process, numbering })
        .map(drop)
}

/// The same for the Buildkite job that this process runs in, unless the folder has an owner. Whoever runs elsewhere gives
/// it none.
pub fn belongs_to_this_job(folder: &PrivateFolder) {
    let bootstrap = variables::get(variables::BUILDKITE_AGENT_PID)
        .and_then(|agent| agent.parse().ok())
        .and_then(watched::ancestor_below);
    if let Some(bootstrap) = bootstrap.filter(|_| !folder.file(OWNER).exists()) {
        // Only for tidiness: without it the folder stays.
        let _ = belongs_to(folder, bootstrap);
    }
}

/// Removes the folders beside `folder` whose jobs are gone.
pub fn clear_beside(folder: &PrivateFolder) {
    let all = folder.path().parent().map(std::fs::read_dir);
    let (Some(Ok(all)), Some(here)) = (all, Numbering::here()) else {
        return;
    };
    // What is not a folder itself, such as a link to one, is none of ours.
    let folders = all
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let others = folders
        .map(|entry| entry.path())
        .filter(|path| path != folder.path());
    for path in others.take(FOLDERS_MAX) {
        clear(&path, &here);
    }
}

fn clear(path: &Path, here: &Numbering) {
    let folder = PrivateFolder::found(path);
    let owner: Option<Owner> = folder.read_json(OWNER);
    if owner.is_some_and(|owner| owner.numbering == *here && owner.process.is_gone()) {
        folder.remove_files("");
        folder.remove_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Place {
        parent: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self {
                parent: tempfile::tempdir().unwrap(),
            }
        }

        fn folder(&self, job: &str) -> PrivateFolder {
            let folder = PrivateFolder::below(self.parent.path(), job).unwrap();
            folder.write("main.kubeconfig", b"x").unwrap();
            folder
        }
    }

    fn dead() -> i32 {
        let mut child = Command::new("true").spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        id
    }

    fn owned(folder: &PrivateFolder, change: impl FnOnce(&mut Owner)) {
        belongs_to(folder, i32::try_from(std::process::id()).unwrap()).unwrap();
        let mut owner: Owner = folder.read_json(OWNER).unwrap();
        change(&mut owner);
        folder.write_json(OWNER, &owner).unwrap();
    }

    #[test]
    fn only_the_folder_of_a_job_that_is_gone_goes() {
        let place = Place::new();
        let folders = ["gone", "later", "lives", "elsewhere", "rebooted", "nobody"]
            .map(|job| place.folder(job));
        let [gone, later, lives, elsewhere, rebooted, nobody] = &folders;
        owned(gone, |owner| owner.process.id = dead());
        owned(later, |owner| owner.process.began += 1);
        owned(lives, |_| {});
        owned(elsewhere, |owner| {
            owner.process.id = dead();
            owner.numbering.namespace = "pid:[1]".into();
        });
        owned(rebooted, |owner| {
            owner.process.id = dead();
            owner.numbering.boot = "another".into();
        });
        clear_beside(&place.folder("this"));
        assert!(!gone.path().exists(), "its process is gone");
        assert!(
            !later.path().exists(),
            "its process is gone, another has its id"
        );
        for folder in [lives, elsewhere, rebooted, nobody] {
            assert!(folder.file("main.kubeconfig").exists(), "{folder:?}");
        }
    }

    #[test]
    fn a_dead_process_that_nobody_collected_is_gone() {
        let place = Place::new();
        let folder = place.folder("gone");
        let mut child = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        belongs_to(&folder, i32::try_from(child.id()).unwrap()).unwrap();
        clear_beside(&place.folder("this"));
        assert!(folder.path().exists(), "it lives");
        drop(child.stdin.take());
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let watch = process.watch().unwrap();
        let soon = crate::clock::Deadline::after(std::time::Duration::from_secs(10));
        assert!(crate::process::watched::ended_by(&watch, soon));
        clear_beside(&place.folder("this"));
        assert!(!folder.path().exists());
        child.wait().unwrap();
    }

    #[test]
    fn a_link_beside_it_is_left_alone() {
        let place = Place::new();
        let elsewhere = Place::new();
        let target = elsewhere.folder("gone");
        owned(&target, |owner| owner.process.id = dead());
        let this = place.folder("this");
        std::os::unix::fs::symlink(target.path(), this.path().with_file_name("link")).unwrap();
        clear_beside(&this);
        assert!(target.file("main.kubeconfig").exists());
    }

    #[test]
    fn whose_it_is_does_not_keep_an_empty_folder() {
        let place = Place::new();
        let folder = place.folder("this");
        owned(&folder, |_| {});
        folder.remove_if_empty();
        assert!(folder.file(OWNER).exists(), "something is in it");
        folder.remove_files("main.");
        folder.remove_if_empty();
        assert!(!folder.path().exists());
    }
}
