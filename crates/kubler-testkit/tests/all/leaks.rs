//! The leak checks see what they are for.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Result;
use kubler_testkit::leaks::{
    Mark, Process, files_in, listening_sockets, port_is_open, wait_until_none,
};

const BOUND: Duration = Duration::from_secs(5);

/// A child that is ended with this value.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_mark_finds_processes_by_environment_argument_and_descent() -> Result<()> {
    let mark = Mark::new();
    let by_environment = Started(
        Command::new("sleep")
            .arg("100")
            .env(Mark::VARIABLE, mark.as_str())
            .spawn()?,
    );
    let by_argument = Started(
        Command::new("sh")
            .args(["-c", "sleep 101; :", mark.as_str()])
            .spawn()?,
    );
    let stranger = Started(Command::new("sleep").arg("102").spawn()?);
    let by_descent = || {
        mark.processes()
            .into_iter()
            .find(|process| process.command == "sleep 101")
    };
    wait_until_none("a child not yet there", BOUND, || {
        by_descent().map_or(vec!["none"], |_| vec![])
    })
    .await?;
    let pids: Vec<u32> = mark
        .processes()
        .iter()
        .map(|process| process.pid.unsigned_abs())
        .collect();
    assert!(
        pids.contains(&by_environment.0.id()) && pids.contains(&by_argument.0.id()),
        "{pids:?}"
    );
    assert!(!pids.contains(&stranger.0.id()));

    let grandchild = by_descent().unwrap();
    mark.wait_until_no_process(Duration::from_millis(50))
        .await
        .expect_err("they live");
    assert_eq!(mark.kill_processes(BOUND), []);
    assert!(!grandchild.lives());
    assert!(Process::find(stranger.0.id().cast_signed()).is_some());
    Ok(())
}

#[test]
fn sockets_and_files_are_found_while_they_are_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let own = Process::find(std::process::id().cast_signed()).unwrap();
    let path = folder.path().join("deep.sock");
    let unix = UnixListener::bind(&path)?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let port = tcp.local_addr()?.port();
    assert!(port_is_open(port));
    let listening = listening_sockets(std::slice::from_ref(&own));
    assert!(
        listening.contains(&path.to_string_lossy().into_owned()),
        "{listening:?}"
    );
    assert_eq!(files_in(folder.path()), std::slice::from_ref(&path));
    drop((unix, tcp));
    std::fs::remove_file(&path)?;
    assert!(!listening_sockets(&[own]).contains(&path.to_string_lossy().into_owned()));
    assert_eq!(files_in(folder.path()), [] as [std::path::PathBuf; 0]);
    Ok(())
}
