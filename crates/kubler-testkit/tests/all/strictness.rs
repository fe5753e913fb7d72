//! What the service refuses, the stand-in refuses: by route, by token, by state.

use std::time::Duration;

use anyhow::Result;
use kubler_testkit::buildkite::{Buildkite, Job, JobState, OidcRequest};
use rstest::rstest;

const AUDIENCE: &str = "https://kubler.test";

fn running_job(buildkite: &Buildkite) -> Job {
    buildkite.build("app").start().job("test").run()
}

#[rstest]
#[case::unknown_claim(OidcRequest::for_audience(AUDIENCE).claims(&["pull_request"]))]
#[case::empty_tag(OidcRequest::for_audience(AUDIENCE).claims(&["agent_tag:"]))]
#[case::too_long(OidcRequest::for_audience(AUDIENCE).lifetime(7201))]
#[case::negative(OidcRequest::for_audience(AUDIENCE).lifetime(-1))]
#[case::subject(OidcRequest::for_audience(AUDIENCE).subject_claim("build_branch"))]
#[case::session_tag(OidcRequest::for_audience(AUDIENCE).aws_session_tags(&["nonsense"]))]
fn a_wish_the_service_does_not_know_is_refused(#[case] request: OidcRequest) {
    let buildkite = Buildkite::start();
    let refusal = running_job(&buildkite)
        .oidc_token(&request)
        .expect_err("no token");
    assert_eq!(refusal.status, 422, "{refusal}");
}

#[test]
fn the_longest_life_is_two_hours() -> Result<()> {
    let buildkite = Buildkite::start();
    let token =
        running_job(&buildkite).oidc_token(&OidcRequest::for_audience(AUDIENCE).lifetime(7200))?;
    let claims = crate::issuer::part(&token, 1);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        7200
    );
    Ok(())
}

#[test]
fn a_job_mints_while_it_is_asked_to_end_and_not_after_it_ended() -> Result<()> {
    let buildkite = Buildkite::start();
    let waiting = buildkite.build("app").start().job("test").create();
    assert_eq!(
        waiting
            .oidc_token(&OidcRequest::for_audience(AUDIENCE))
            .unwrap_err()
            .status,
        401
    );
    let job = running_job(&buildkite);
    job.cancel();
    assert_eq!(job.state(), JobState::Canceling);
    job.oidc_token(&OidcRequest::for_audience(AUDIENCE))?;
    job.finish(-1);
    assert_eq!(job.state(), JobState::Canceled);
    assert_eq!(
        job.oidc_token(&OidcRequest::for_audience(AUDIENCE))
            .unwrap_err()
            .status,
        401
    );
    let outcomes: Vec<bool> = job
        .mints()
        .iter()
        .map(|mint| mint.outcome.is_ok())
        .collect();
    assert_eq!(outcomes, [true]);
    Ok(())
}

#[tokio::test]
async fn a_job_whose_agent_vanished_mints_until_the_heartbeat_timeout() -> Result<()> {
    let timeout = Duration::from_secs(2);
    let buildkite = Buildkite::builder().heartbeat_timeout(timeout).start();
    let job = running_job(&buildkite);
    job.vanish_agent();
    let vanished = jiff::Timestamp::now();
    job.oidc_token(&OidcRequest::for_audience(AUDIENCE))?;
    assert_eq!(job.state(), JobState::Running);
    let record = job.wait_until_over(Duration::from_secs(20)).await?;
    assert_eq!(
        job.oidc_token(&OidcRequest::for_audience(AUDIENCE))
            .unwrap_err()
            .status,
        401
    );
    assert_eq!(
        (record.state, record.exit_status),
        (JobState::Finished, Some(-1))
    );
    let ended = record.timeline.agent_lost.unwrap();
    assert!(
        ended >= vanished + timeout - Duration::from_millis(500),
        "{ended} is too early after {vanished}"
    );
    Ok(())
}
