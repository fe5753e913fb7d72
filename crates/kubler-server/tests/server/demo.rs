//! The demo ends with everything it started, also when somebody else ends it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kubler_testkit::kubler::Programs;
use kubler_testkit::leaks::{Mark, Process, wait_until_none};
use rustix::process::Signal;

use crate::SOON;

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_ended_half_way_leaves_nothing_and_fails() {
    let before = folders_in_tmp();
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::HUP, "SIGHUP")] {
        let mark = Mark::new();
        let mut demo = Command::new(Programs::find().folder().join("demo"))
            .env(Mark::VARIABLE, mark.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the demo is built");
        let mut output = BufReader::new(demo.stdout.take().unwrap());
        let mut told = String::new();
        while !told.contains("cluster ready") {
            let read = output.read_line(&mut told).unwrap();
            assert!(read > 0, "it ended too early:\n{told}");
        }
        let started = mark.processes();
        let mut folders = folders(&started);
        folders.retain(|folder| !before.contains(folder));
        assert!(
            started.len() > 10 && folders.len() > 5,
            "a server with etcd, five agents and clusters: {started:#?}"
        );
        Process::find(i32::try_from(demo.id()).unwrap())
            .unwrap()
            .signal(signal);
        output.read_to_string(&mut told).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(1), "{told}");
        assert!(told.contains(&format!("ended by {name}")), "{told}");
        wait_until_none("processes", SOON, || {
            started
                .iter()
                .filter(|process| process.lives())
                .collect::<Vec<_>>()
        })
        .await
        .unwrap();
        let left: Vec<_> = folders.iter().filter(|folder| folder.exists()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(told.contains("Nothing is left"), "{told}");
    }
}

fn folders_in_tmp() -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/tmp").unwrap().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The folders in `/tmp` that the processes were told of in their arguments.
fn folders(processes: &[Process]) -> BTreeSet<PathBuf> {
    let words = processes
        .iter()
        .flat_map(|process| process.command.split([' ', '=']));
    words
        .filter_map(|word| Path::new(word).strip_prefix("/tmp").ok())
        .filter_map(|below| below.components().next())
        .map(|first| Path::new("/tmp").join(first))
        .collect()
}
