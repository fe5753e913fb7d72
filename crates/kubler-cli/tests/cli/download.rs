//! The plugin on an agent that has no `kubler`: it takes the one whose digest is configured, and no other.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kubler_testkit::agent::RealAgent;
use kubler_testkit::buildkite::Job;
use serde_json::json;

use crate::hooks::Scene;

const BOUND: Duration = Duration::from_secs(120);

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A job with the plugin on an agent whose PATH has no `kubler`.
fn job(scene: &Scene, sha256: &str) -> Job {
    let configuration = json!({
        "server": scene.desk.url(), "ca": scene.desk.ca(), "profile": "ci-small",
        "download": format!("{}/download/kubler", scene.desk.url()), "sha256": sha256,
    });
    let build = scene.buildkite.build("app").start();
    let job = build
        .job("test")
        .command("kubler env show; command -v kubler");
    job.plugin(&scene.plugin.plugin_reference(), configuration)
        .create()
}

fn agent(scene: &Scene, job: &Job, tools: &Path) -> RealAgent {
    RealAgent::of(&scene.buildkite)
        .acquires(job)
        .variable("KUBLER_JOBS_FOLDER", scene.jobs.path().to_str().unwrap())
        .variable("KUBLER_TOOLS_FOLDER", tools.to_str().unwrap())
        // The stand-in's certificate is nobody's; both downloaders look here.
        .variable("SSL_CERT_FILE", scene.desk.ca().to_str().unwrap())
        .start()
}

/// A program that would leave a trace if it were ever executed.
fn canary(folder: &Path) -> (Vec<u8>, PathBuf) {
    let trace = folder.join("was-executed");
    let script = format!("#!/bin/sh\ntouch '{}'\n", trace.display());
    (script.into_bytes(), trace)
}

#[tokio::test]
async fn a_job_uses_the_kubler_whose_digest_is_configured() {
    let program = Path::new(env!("CARGO_BIN_EXE_kubler"));
    let digest = sha256(program);
    let folder = tempfile::tempdir().unwrap();
    let (trap, trace) = canary(folder.path());
    let tools = folder.path().join("tools");
    let kept = tools.join(&digest).join("kubler");
    let scene = Scene::new();
    scene.desk.offer(std::fs::read(program).unwrap());

    for (run, downloads) in [("first", 1), ("second", 1), ("changed", 2)] {
        if run == "changed" {
            std::fs::remove_file(&kept).unwrap();
            std::fs::write(&kept, &trap).unwrap();
            std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let job = job(&scene, &digest);
        let mut agent = agent(&scene, &job, &tools);
        let status = agent.wait(BOUND).await.unwrap();
        let log = job.log();
        assert!(status.success(), "{run}: {log}");
        assert!(log.contains(kept.to_str().unwrap()), "{run}: {log}");
        assert_eq!(run == "changed", log.contains("was changed since"), "{log}");
        assert_eq!(scene.desk.count("GET /download"), downloads, "{run}");
        assert_eq!(sha256(&kept), digest);
        assert_eq!(
            (mode(&tools), mode(kept.parent().unwrap()), mode(&kept)),
            (0o700, 0o700, 0o500)
        );
        scene.is_over(&job, &mut agent).await;
    }
    assert!(!trace.exists(), "a changed file was executed");
}

#[tokio::test]
async fn what_has_another_digest_is_refused_and_never_executed() {
    let folder = tempfile::tempdir().unwrap();
    let (trap, trace) = canary(folder.path());
    let tools = folder.path().join("tools");
    let scene = Scene::new();
    scene.desk.offer(trap);
    let expected = "0".repeat(64);
    let job = job(&scene, &expected);
    let mut agent = agent(&scene, &job, &tools);
    let status = agent.wait(BOUND).await.unwrap();
    let log = job.log();
    assert!(!status.success(), "{log}");
    assert!(
        log.contains("it was not executed") && log.contains("hint: "),
        "{log}"
    );
    assert!(!trace.exists(), "{log}");
    let left: Vec<_> = std::fs::read_dir(tools.join(&expected)).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(scene.desk.count("POST"), 0, "nothing was asked for");
    agent.wait_until_nothing_lives(BOUND).await.unwrap();
}

/// `pre-command` by itself, with these variables and nothing else.
fn pre_command(variables: &[(&str, &str)]) -> Output {
    let hook =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite/hooks/pre-command");
    Command::new("/bin/sh")
        .arg(hook)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("BUILDKITE_PLUGIN_NAME", "KUBLER")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn only_https_a_whole_digest_and_a_folder_of_our_own_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join("tools");
    let digest = "0".repeat(64);
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let refused = |url: &str, sha256: &str, tools: &Path, why: &str| {
        let output = pre_command(&[
            ("BUILDKITE_PLUGIN_KUBLER_DOWNLOAD", url),
            ("BUILDKITE_PLUGIN_KUBLER_SHA256", sha256),
            ("KUBLER_TOOLS_FOLDER", tools.to_str().unwrap()),
        ]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{told}");
        assert!(told.contains(why) && told.contains("hint: "), "{told}");
    };
    let url = "https://127.0.0.1:1/kubler";
    refused(
        "http://127.0.0.1:1/kubler",
        &digest,
        &tools,
        "is not a place",
    );
    refused("", &digest, &tools, "is not a place");
    refused(url, "", &tools, "is not a SHA-256 digest");
    refused(url, &"0".repeat(63), &tools, "is not a SHA-256 digest");
    refused(
        url,
        &format!("{}\n0", "0".repeat(62)),
        &tools,
        "is not a SHA-256 digest",
    );
    refused(url, &"A".repeat(64), &tools, "is not a SHA-256 digest");
    assert!(!tools.exists());
    refused(url, &digest, &tools, "cannot be downloaded");
    // A folder that somebody else may write to, and one that is not where it seems to be.
    std::fs::set_permissions(&tools, std::fs::Permissions::from_mode(0o777)).unwrap();
    refused(url, &digest, &tools, "is not a folder of this user alone");
    let link = folder.path().join("link");
    symlink(&elsewhere, &link).unwrap();
    refused(url, &digest, &link, "is not a folder of this user alone");
    assert!(std::fs::read_dir(&elsewhere).unwrap().next().is_none());
}

#[test]
fn an_operator_may_say_it_for_all_pipelines() {
    let folder = tempfile::tempdir().unwrap();
    let output = pre_command(&[
        ("KUBLER_DOWNLOAD", "http://kubler.example/kubler"),
        ("KUBLER_SHA256", &"0".repeat(64)),
        ("KUBLER_TOOLS_FOLDER", folder.path().to_str().unwrap()),
    ]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("`http://kubler.example/kubler` is not a place"),
        "{told}"
    );
}
