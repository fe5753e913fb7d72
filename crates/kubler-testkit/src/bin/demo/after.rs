//! What remains of ended environments: their trace, their ledger, and an explanation for whoever comes late.

use std::path::Path;
use std::process::{Command, Output};

use kubler_testkit::agent::kube_folder;
use kubler_testkit::kubler::Server;

use crate::jobs::{Running, Way};
use crate::{Faults, say};

/// Shows it, and notes what does not hold.
pub(crate) fn look(server: &Server, running: &[Running], saved: &Path, faults: &mut Faults) {
    let Some(passed) = running.iter().find(|one| one.way == Way::Passes) else {
        return;
    };
    let build = passed.build.record();
    let job = passed.job.id().to_string();
    for (what, word) in [
        ("pipeline", "web".to_owned()),
        ("build number", format!("web/{}", build.number)),
        ("job", job.clone()),
        ("commit", build.commit.clone()),
    ] {
        let found = server.cli(&["trace", &word]);
        show(&format!("kubler trace {word}   # by {what}"), &found, 4);
        let found = server.cli(&["trace", &word, "--output", "json"]);
        if !found.status.success() || !String::from_utf8_lossy(&found.stdout).contains(&job) {
            faults.push(format!(
                "kubler trace does not find the environment by its {what}: {}",
                text(&found)
            ));
        }
    }

    let folder = server.folder().join("data/ledger");
    let verified = server.cli(&["ledger", "verify", &folder.to_string_lossy()]);
    show("kubler ledger verify data/ledger", &verified, 6);
    if !verified.status.success() {
        faults.push(format!("the ledger does not verify: {}", text(&verified)));
    }

    say(
        "\nA saved kubeconfig after the end: the job is over, nobody can mint a token for it any more.",
    );
    let late = late_kubectl(server, saved);
    show("kubectl --kubeconfig saved get namespaces", &late, 8);
    let told = text(&late);
    let explained =
        told.contains("ended") && told.contains(&job) && !told.to_lowercase().contains("forbidden");
    if late.status.success() || !explained {
        faults.push(format!("a late kubectl is not told what happened: {told}"));
    }
}

fn late_kubectl(server: &Server, saved: &Path) -> Output {
    let path = std::env::join_paths([
        server.programs().folder().to_owned(),
        "/usr/bin".into(),
        "/bin".into(),
    ]);
    let mut command = Command::new(kube_folder().join("kubectl"));
    command
        .args(["get", "namespaces", "--kubeconfig"])
        .arg(saved.join("kubeconfig"))
        .env_clear()
        .env("HOME", saved)
        .env("PATH", path.unwrap_or_default());
    command.output().expect("kubectl")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn show(command: &str, output: &Output, lines_max: usize) {
    say(&format!("\n$ {command}"));
    for line in text(output).lines().take(lines_max) {
        say(&format!("  {line}"));
    }
}
