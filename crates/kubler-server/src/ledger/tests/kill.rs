//! SIGKILL in the middle of appends and signatures, many times: what was acknowledged is there, nothing is damaged.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;

use super::*;

/// Times that the child is killed.
const KILLS: u64 = 25;
/// Longest wait for the next word of the child, in seconds.
const CHILD_SECONDS_MAX: u64 = 60;
const FOLDER: &str = "KUBLER_TEST_LEDGER";

fn say(what: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "said {what}").unwrap();
    stdout.flush().unwrap();
}

/// The child: appends and signs as fast as it can, and says what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "appends until it is killed: `l4_what_was_acknowledged…` runs it"]
async fn child_that_appends() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let ledger = World::open_in(Path::new(&folder)).unwrap();
    for worker in 0..8 {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            for nth in 0_u64.. {
                let mark = format!("{}-{worker}-{nth}", std::process::id());
                let mut body = start();
                body.details.insert("mark".into(), mark.clone().into());
                let durability = if nth.is_multiple_of(2) {
                    Durability::Disk
                } else {
                    Durability::Process
                };
                let entry = ledger.start(body, durability).await.unwrap();
                say(&format!("{} {mark}", entry.sequence()));
                entry.end(Outcome::default()).await;
            }
        });
    }
    loop {
        let signed = ledger.checkpoint().unwrap();
        say(&format!("{} signed", signed.size));
        tokio::task::yield_now().await;
    }
}

fn child(folder: &Path) -> (Child, Receiver<(u64, String)>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "ledger::tests::kill::child_that_appends",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (heard, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.lines() {
            // The last line may be torn as well.
            let Ok(line) = line else { return };
            let said = line
                .strip_prefix("said ")
                .and_then(|said| said.split_once(' '));
            if let Some((number, what)) = said {
                let _ = heard.send((number.parse().unwrap(), what.to_owned()));
            }
        }
    });
    (child, hear)
}

#[test]
fn l4_what_was_acknowledged_survives_sigkill_at_any_moment() {
    let world = World::new();
    drop(world.open().unwrap());
    let mut acknowledged = HashMap::new();
    let mut chance = 0x2545_F491_4F6C_DD1D_u64;
    for kill in 0..KILLS {
        // xorshift: the same moments each time, as far as the machine lets them be the same.
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let (mut child, hear) = child(&world.folder());
        let mut signed = 0;
        let mut note = |(number, what): (u64, String)| {
            if what == "signed" {
                signed = number;
            } else {
                acknowledged.insert(number, what);
            }
        };
        for _ in 0..=chance % 400 {
            note(
                hear.recv_timeout(Duration::from_secs(CHILD_SECONDS_MAX))
                    .unwrap(),
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        hear.iter().for_each(&mut note);

        let before = world.verify();
        assert!(
            before.is_intact(),
            "kill {kill}, before it is opened: {before}"
        );
        assert!(
            before.last_checkpoint.unwrap().size >= signed,
            "kill {kill}"
        );
        let ledger = world
            .open()
            .unwrap_or_else(|error| panic!("kill {kill}: {error}"));
        ledger.checkpoint().unwrap();
        drop(ledger);
        let report = world.verify();
        assert!(
            report.is_intact() && report.unsigned() == 0,
            "kill {kill}: {report}"
        );
        let lines: Vec<_> = world.lines();
        for (sequence, mark) in &acknowledged {
            let line = &lines[usize::try_from(*sequence).unwrap()];
            assert!(
                line.contains(&format!("\"{mark}\"")),
                "kill {kill}: {mark}: {line}"
            );
        }
        let count = |what| lines.iter().filter(|line| line.contains(what)).count();
        assert_eq!(
            count("\"kind\":\"start\""),
            count("\"kind\":\"end\""),
            "kill {kill}"
        );
    }
    assert!(!acknowledged.is_empty());
}
