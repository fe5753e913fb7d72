//! The real agent takes the stand-in for the service, through every way in which a job can end.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use kubler_testkit::agent::{GitRepository, RealAgent, agent_program};
use kubler_testkit::buildkite::{
    AnnotationScope, Buildkite, Job, JobState, OidcAnswer, OidcRequest,
};
use kubler_testkit::leaks::{files_in, listening_sockets};
use serde_json::json;

use crate::issuer::part;

const BOUND: Duration = Duration::from_mins(1);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);
const AUDIENCE: &str = "https://kubler.test";

fn job(buildkite: &Buildkite, command: &str) -> Job {
    buildkite
        .build("app")
        .start()
        .job("test")
        .command(command)
        .create()
}

fn mint(job: &Job) -> Result<String, u16> {
    job.oidc_token(&OidcRequest::for_kubler(AUDIENCE))
        .map_err(|refusal| refusal.status)
}

#[tokio::test]
async fn a_job_passes() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = job(
        &buildkite,
        "echo hello from $BUILDKITE_PIPELINE_SLUG; seq 1 20000",
    );
    let mut agent = RealAgent::of(&buildkite).acquires(&job).start();
    let status = agent.wait(BOUND).await?;
    assert!(status.success(), "{status}: {}", agent.output());
    let record = job.record();
    assert_eq!(
        (record.state, record.exit_status, &record.signal),
        (JobState::Finished, Some(0), &None)
    );
    let times = record.timeline;
    assert!(
        times.created <= times.accepted.unwrap()
            && times.accepted <= times.started
            && times.started < times.ended
    );
    let log = job.log();
    assert!(
        log.contains("hello from app") && log.contains("\n20000"),
        "{log}"
    );
    assert!(!log.contains("_bk;t="));
    assert_eq!(mint(&job), Err(401), "an ended job has no token");
    agent.wait_until_nothing_lives(BOUND).await?;
    Ok(())
}

#[tokio::test]
async fn a_job_fails_with_its_own_status() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = job(&buildkite, "exit 3");
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .without_pty()
        .start();
    assert_eq!(agent.wait(BOUND).await?.code(), Some(3));
    assert_eq!(
        (job.state(), job.exit_status()),
        (JobState::Finished, Some(3))
    );
    Ok(())
}

#[tokio::test]
async fn a_cancelled_job_runs_pre_exit_and_says_cancel() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = job(&buildkite, "echo begun; sleep 100");
    let hook =
        "echo pre-exit cancelled=$BUILDKITE_JOB_CANCELLED timed_out=$BUILDKITE_JOB_TIMED_OUT";
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .hook("pre-exit", hook)
        .start();
    job.wait_for_log("begun", BOUND).await?;
    job.cancel();
    let record = job.wait_until_over(BOUND).await?;
    assert_eq!(
        (record.state, record.exit_status),
        (JobState::Canceled, Some(-1))
    );
    assert_eq!(
        (record.signal.as_deref(), record.signal_reason.as_deref()),
        (Some("SIGTERM"), Some("cancel"))
    );
    assert!(
        record
            .log()
            .contains("pre-exit cancelled=true timed_out=\n"),
        "{}",
        record.log()
    );
    agent.wait(BOUND).await?;
    Ok(())
}

#[tokio::test]
async fn a_timed_out_job_knows_it() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = job(&buildkite, "echo begun; sleep 100");
    let hook = "echo pre-exit timed_out=$BUILDKITE_JOB_TIMED_OUT";
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .without_pty()
        .hook("pre-exit", hook)
        .start();
    job.wait_for_log("begun", BOUND).await?;
    job.time_out();
    let record = job.wait_until_over(BOUND).await?;
    assert_eq!(
        (record.state, record.exit_status),
        (JobState::TimedOut, Some(-1))
    );
    assert!(
        record.log().contains("pre-exit timed_out=true"),
        "{}",
        record.log()
    );
    agent.wait(BOUND).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_killed_alone_with_a_terminal_runs_pre_exit_and_never_finishes() -> Result<()> {
    let buildkite = Buildkite::builder()
        .heartbeat_timeout(HEARTBEAT_TIMEOUT)
        .start();
    let job = job(&buildkite, "echo begun; sleep 100");
    let hook = "buildkite-agent meta-data set seen-cancelled \"$BUILDKITE_JOB_CANCELLED\"";
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .hook("pre-exit", hook)
        .start();
    job.wait_for_log("begun", BOUND).await?;
    agent.kill();
    agent.wait_until_nothing_lives(BOUND).await?;
    assert_eq!(
        job.build().metadata("seen-cancelled").as_deref(),
        Some("true"),
        "the job token still worked"
    );
    assert_eq!(job.state(), JobState::Running, "nobody calls finish");
    assert!(mint(&job).is_ok());
    assert_lost(&job).await
}

#[tokio::test]
async fn an_agent_killed_alone_without_a_terminal_leaves_its_command_running() -> Result<()> {
    let buildkite = Buildkite::builder()
        .heartbeat_timeout(HEARTBEAT_TIMEOUT)
        .start();
    let job = job(&buildkite, "echo begun; sleep 100");
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .without_pty()
        .start();
    job.wait_for_log("begun", BOUND).await?;
    agent.kill();
    assert_lost(&job).await?;
    assert!(
        agent
            .processes()
            .iter()
            .any(|process| process.command == "sleep 100"),
        "{:?}",
        agent.processes()
    );
    let mark = agent.mark().clone();
    drop(agent);
    assert_eq!(mark.processes(), []);
    Ok(())
}

#[tokio::test]
async fn an_agent_killed_with_all_its_children_is_lost_and_mints_no_more() -> Result<()> {
    let buildkite = Buildkite::builder()
        .heartbeat_timeout(HEARTBEAT_TIMEOUT)
        .start();
    let job = job(
        &buildkite,
        "setsid sleep 100 </dev/null >/dev/null 2>&1 & echo begun; sleep 100",
    );
    let hook = "buildkite-agent meta-data set pre-exit ran";
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .hook("pre-exit", hook)
        .start();
    job.wait_for_log("begun", BOUND).await?;
    assert!(
        !listening_sockets(&agent.processes()).is_empty(),
        "the Job API listens"
    );
    agent.kill_with_children();
    assert_eq!(agent.processes(), []);
    assert_eq!(job.state(), JobState::Running);
    assert!(mint(&job).is_ok(), "nobody knows yet");
    assert_lost(&job).await?;
    assert_eq!(job.build().metadata("pre-exit"), None);
    Ok(())
}

async fn assert_lost(job: &Job) -> Result<()> {
    let record = job
        .wait_until_over(HEARTBEAT_TIMEOUT + Duration::from_secs(2))
        .await?;
    assert_eq!(
        (record.state, record.exit_status),
        (JobState::Finished, Some(-1))
    );
    assert!(record.timeline.agent_lost.is_some());
    assert_eq!(mint(job), Err(401));
    Ok(())
}

#[tokio::test]
async fn a_job_asks_for_its_own_token_and_notes_things_down() -> Result<()> {
    let buildkite = Buildkite::start();
    let command = "set -e
        token=$(buildkite-agent oidc request-token --audience https://kubler.test --lifetime 120 \
            --claim organization_id,pipeline_id --claim agent_tag:size)
        echo \"token is $token\"
        buildkite-agent meta-data set token \"$token\"
        buildkite-agent meta-data set colour blue
        test \"$(buildkite-agent meta-data get colour)\" = blue
        buildkite-agent meta-data exists colour
        ! buildkite-agent meta-data exists shape
        buildkite-agent meta-data keys
        buildkite-agent annotate one --context note --style info --scope job
        buildkite-agent annotate two --context note --append --scope job
        buildkite-agent annotate build-wide";
    let job = job(&buildkite, command);
    let mut agent = RealAgent::of(&buildkite)
        .acquires(&job)
        .tag("size=big")
        .start();
    let status = agent.wait(BOUND).await?;
    assert!(status.success(), "{}\n{}", job.log(), agent.output());

    let token = job.build().metadata("token").unwrap();
    let claims = part(&token, 1);
    assert_eq!(claims["aud"], AUDIENCE);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        120
    );
    assert_eq!(
        claims["organization_id"],
        buildkite.organization("acme").id.to_string()
    );
    assert_eq!(claims["agent_tag:size"], "big");
    assert_eq!(claims.get("build_id"), None, "only what was asked for");
    assert!(
        !job.log().contains(&token) && job.log().contains("token is [REDACTED]"),
        "{}",
        job.log()
    );

    let annotations = job.build().annotations();
    let seen: Vec<_> = annotations
        .iter()
        .map(|one| (one.body.as_str(), one.style.as_str(), one.scope))
        .collect();
    let of_job = AnnotationScope::Job(job.id());
    assert_eq!(
        seen,
        [
            ("build-wide", "default", AnnotationScope::Build),
            ("onetwo", "info", of_job)
        ]
    );
    Ok(())
}

#[tokio::test]
async fn plugins_are_cloned_and_their_hooks_run_around_the_command() -> Result<()> {
    let buildkite = Buildkite::start();
    let plugin = GitRepository::from_files(
        "kubler-buildkite-plugin",
        &[
            (
                "plugin.yml",
                "name: Kubler\ndescription: d\nauthor: a\nrequirements: []\n",
            ),
            (
                "hooks/pre-command",
                "#!/bin/sh\nexport FROM_PLUGIN=$BUILDKITE_PLUGIN_KUBLER_SERVER\n",
            ),
            ("hooks/pre-exit", "#!/bin/sh\necho plugin pre-exit\n"),
        ],
    );
    let source = GitRepository::from_files("source", &[("greeting", "checked out\n")]);
    let build = buildkite.build("app").start();
    let job = build
        .job("test")
        .command("cat greeting; echo from plugin: $FROM_PLUGIN")
        .checkout(&source.url(), &source.commit())
        .plugin(
            &plugin.plugin_reference(),
            json!({"server": "https://kubler.test"}),
        )
        .create();
    let mut agent = RealAgent::of(&buildkite).acquires(&job).start();
    assert!(agent.wait(BOUND).await?.success(), "{}", job.log());
    let log = job.log();
    for line in [
        "checked out",
        "from plugin: https://kubler.test",
        "plugin pre-exit",
    ] {
        assert!(log.contains(line), "`{line}` is not in\n{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pinging_agent_takes_one_job_after_the_other_until_told_to_stop() -> Result<()> {
    let buildkite = Buildkite::start();
    let first = job(&buildkite, "echo one");
    let second = job(&buildkite, "echo two");
    let mut agent = RealAgent::of(&buildkite).pings().start();
    first.wait_until_over(BOUND).await?;
    second.wait_until_over(BOUND).await?;
    assert_eq!(
        (first.exit_status(), second.exit_status()),
        (Some(0), Some(0))
    );
    assert!(first.timeline().ended <= second.timeline().accepted);
    agent.terminate();
    assert!(agent.wait(BOUND).await?.success());
    assert_eq!(
        files_in(&agent.folder().join("s")),
        [] as [std::path::PathBuf; 0]
    );
    Ok(())
}

/// `buildkite-agent oidc request-token` outside of any job: its exit status and what it printed.
fn request_token(
    buildkite: &Buildkite,
    job_id: &str,
    token: &str,
    arguments: &[&str],
) -> (Option<i32>, String) {
    let output = Command::new(agent_program())
        .args([
            "oidc",
            "request-token",
            "--skip-redaction",
            "--audience",
            AUDIENCE,
        ])
        .args(arguments)
        .env_clear()
        .env("BUILDKITE_AGENT_ENDPOINT", buildkite.agent_endpoint())
        .env("BUILDKITE_AGENT_ACCESS_TOKEN", token)
        .env("BUILDKITE_JOB_ID", job_id)
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&printed).into_owned(),
    )
}

#[test]
fn request_token_speaks_with_the_stand_in() {
    let buildkite = Buildkite::start();
    let build = buildkite.build("app").start();
    let (job, other) = (build.job("a").run(), build.job("b").run());
    let (own, id) = (job.access_token().unwrap(), job.id().to_string());

    let (status, printed) = request_token(&buildkite, &id, &own, &[]);
    assert_eq!(status, Some(0), "{printed}");
    assert_eq!(part(printed.trim(), 1)["job_id"], id);

    let refused = |job_id: &str, token: &str, arguments: &[&str], expected: &str| {
        let (status, printed) = request_token(&buildkite, job_id, token, arguments);
        assert_eq!(status, Some(1), "{printed}");
        assert!(
            printed.contains(expected),
            "`{expected}` is not in {printed}"
        );
    };
    refused(&id, "nonsense", &[], "401");
    refused(&other.id().to_string(), &own, &[], "403");
    refused("0190aaaa-0000-7000-8000-000000000000", &own, &[], "404");
    refused(
        &id,
        &own,
        &["--claim", "nonsense"],
        "unknown claim `nonsense`",
    );
    refused(&id, &own, &["--lifetime", "7201"], "422");
    refused(&id, &own, &["--subject-claim", "step_key"], "422");
    job.finish(0);
    refused(&id, &own, &[], "401");
}

#[test]
fn request_token_is_answered_as_told_and_tries_again() {
    let buildkite = Buildkite::start();
    let job = buildkite.build("app").start().job("a").run();
    buildkite.answer_oidc(
        AUDIENCE,
        [
            OidcAnswer::Status(503),
            OidcAnswer::Honest,
            OidcAnswer::Empty,
            OidcAnswer::Garbage,
        ],
    );
    let (token, id) = (job.access_token().unwrap(), job.id().to_string());
    let (status, printed) = request_token(&buildkite, &id, &token, &[]);
    assert_eq!(status, Some(0), "{printed}");
    assert_eq!(job.mints().len(), 1, "the first try was answered 503");
    assert_eq!(
        request_token(&buildkite, &id, &token, &[]),
        (Some(0), "\n".into()),
        "200 without a token"
    );
    assert_eq!(
        request_token(&buildkite, &id, &token, &[]).0,
        Some(1),
        "200 without JSON"
    );
}
