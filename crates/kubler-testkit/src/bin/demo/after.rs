//! What remains of ended environments: their trace, their ledger, and an explanation for whoever comes late.

use std::process::Output;

use kubler_testkit::kubler::Server;

use crate::jobs::{Running, Way};
use crate::saved::{Keeps, Saved};
use crate::{Faults, say};

/// Shows it, and notes what does not hold.
pub(crate) fn look(
    server: &Server,
    running: &[Running],
    saved: &Saved,
    late: Option<&Output>,
    faults: &mut Faults,
) {
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

    say("\nA saved kubeconfig right after the end, with the session that the job had.");
    show_late(late, &job, "Error from server", faults);
    say("\nThe same later: there is no session any more, and nobody can mint a token for the job.");
    let later = saved.late_kubectl(server, passed.way, &passed.job, Keeps::Nothing);
    show_late(later.as_ref(), &job, "error: environment", faults);
}

/// Shows what a late kubectl printed; `who` is what only the one who shall explain begins its words with.
fn show_late(late: Option<&Output>, job: &str, who: &str, faults: &mut Faults) {
    let Some(late) = late else {
        faults.push("no kubeconfig was saved for a late kubectl".into());
        return;
    };
    show("kubectl --kubeconfig saved get namespaces", late, 8);
    let told = text(late);
    let is_explained = told.contains(who)
        && told.contains("ended at")
        && told.contains("its job released it")
        && told.contains(job)
        && !told.to_lowercase().contains("forbidden");
    if late.status.success() || !is_explained {
        faults.push(format!("a late kubectl is not told what happened: {told}"));
    }
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
