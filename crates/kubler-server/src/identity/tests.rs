//! Tokens of a stand-in Buildkite against a real verifier. What is refused must be refused for its own reason.

mod issuer;
mod refused;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubler_core::configuration::{Configuration, Issuer, Organization};
use kubler_testkit::buildkite::{Buildkite, Job, OidcRequest, TokenDraft};
use tempfile::TempDir;

use super::*;
use crate::clock::{ManualClock, SystemClock};

pub(super) const AUDIENCE: &str = "https://kubler.test";

/// A verifier that trusts the issuers of `configuration`; files named there count from `folder`.
pub(super) fn verifier(
    configuration: &Configuration,
    folder: &Path,
    clock: Arc<dyn Clock>,
) -> Result<Verifier, IdentityError> {
    let verifier = Verifier::new(clock);
    verifier.install(verifier.prepare(configuration, folder)?);
    Ok(verifier)
}

/// A stand-in Buildkite with one running job, and a verifier that knows it.
pub(super) struct Scene {
    pub(super) buildkite: Buildkite,
    pub(super) job: Job,
    pub(super) clock: Arc<ManualClock>,
    pub(super) verifier: Verifier,
    pub(super) folder: TempDir,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    /// `change` edits the issuer's entry in the configuration.
    pub(super) fn with(change: impl FnOnce(&mut Issuer)) -> Self {
        let buildkite = Buildkite::start();
        let job = buildkite
            .build("app")
            .branch("main")
            .start()
            .job("test")
            .run();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("issuer-ca.pem"), buildkite.ca_pem()).unwrap();
        let clock = Arc::new(ManualClock::new(SystemClock.now()));
        let mut settings = settings(&buildkite);
        change(&mut settings);
        let verifier = verifier(&configuration(settings), folder.path(), clock.clone()).unwrap();
        Self {
            buildkite,
            job,
            clock,
            verifier,
            folder,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// The token of the job that the service would sign, minted now by our clock.
    pub(super) fn draft(&self) -> TokenDraft {
        self.job
            .forge(&OidcRequest::for_kubler(AUDIENCE))
            .minted_at(self.now(), 300)
    }

    pub(super) async fn verify(
        &self,
        token: impl Into<SecretString>,
    ) -> Result<VerifiedToken, Refusal> {
        self.verifier.verify(&token.into()).await
    }

    pub(super) async fn refusal(&self, token: String) -> Refusal {
        self.verify(token)
            .await
            .expect_err("a token that is refused")
    }
}

pub(super) fn settings(buildkite: &Buildkite) -> Issuer {
    let organization = buildkite.organization("acme");
    Issuer {
        kind: IssuerKind::Buildkite,
        url: buildkite.issuer_url().into(),
        audience: AUDIENCE.into(),
        organizations: vec![Organization {
            id: organization.id.to_string(),
            slug: organization.slug,
            fork_branches_are_prefixed: false,
            webhook_secret: None,
        }],
        ca: Some("issuer-ca.pem".into()),
        allow_private_addresses: true,
        token_seconds_max: 300,
        clock_skew_seconds: 30,
    }
}

pub(super) fn configuration(issuer: Issuer) -> Configuration {
    let text =
        serde_json::json!({"url": "https://kubler.test", "issuers": [issuer], "profiles": []});
    serde_json::from_value(text).unwrap()
}

#[tokio::test]
async fn a_fresh_token_of_a_running_job_becomes_its_identity() {
    let scene = Scene::new();
    let token = scene
        .job
        .oidc_token(&OidcRequest::for_kubler(AUDIENCE))
        .unwrap();
    let verified = scene.verify(token.as_str()).await.unwrap();
    assert_eq!(verified.identity.job.id, scene.job.id().to_string());
    assert_eq!(
        verified.identity.project.id,
        scene.buildkite.pipeline("app").id.to_string()
    );
    assert_eq!(verified.identity.issuer, scene.buildkite.issuer_url());
    assert_eq!(verified.digest, TokenDigest::of(&token));
    assert_eq!(
        verified.expires_at.as_second() - verified.issued_at.as_second(),
        300
    );
    assert_eq!(
        (
            scene.buildkite.discovery_requests(),
            scene.buildkite.jwks_requests()
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn the_first_job_does_not_pay_for_discovery() {
    let scene = Scene::new();
    assert!(
        scene
            .verifier
            .health()
            .iter()
            .all(|health| health.state == "missing")
    );
    scene.verifier.prefetch().await;
    assert!(
        scene
            .verifier
            .health()
            .iter()
            .all(|health| health.state == "fresh")
    );
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    assert_eq!(scene.buildkite.jwks_requests(), 1);
}

#[tokio::test]
async fn t3_a_verifier_without_an_audience_does_not_start() {
    let scene = Scene::new();
    let issuer = Issuer {
        audience: " ".into(),
        ..settings(&scene.buildkite)
    };
    let error = verifier(
        &configuration(issuer),
        scene.folder.path(),
        scene.clock.clone(),
    )
    .unwrap_err();
    assert!(matches!(error, IdentityError::Audience { .. }), "{error}");
}

#[tokio::test]
async fn t8_an_issuer_is_a_plain_https_url() {
    let scene = Scene::new();
    for url in [
        "http://agent.buildkite.com",
        "https://user@agent.buildkite.com",
        "https://agent.buildkite.com@evil.test:x",
        "https://agent.buildkite.com?x=y",
        "https://agent.buildkite.com#x",
        "agent.buildkite.com",
        "file:///etc/passwd",
    ] {
        let issuer = Issuer {
            url: url.into(),
            ..settings(&scene.buildkite)
        };
        let error = verifier(
            &configuration(issuer),
            scene.folder.path(),
            scene.clock.clone(),
        )
        .unwrap_err();
        assert!(matches!(error, IdentityError::Url { .. }), "{url}: {error}");
    }
}

#[tokio::test]
async fn l1_nothing_that_can_be_printed_shows_a_token() {
    let scene = Scene::new();
    let good = scene.draft().sign();
    let expired = scene
        .draft()
        .minted_at(scene.now() - jiff::SignedDuration::from_secs(4000), 300)
        .sign();
    let agent_token = scene.job.access_token().unwrap();
    let verified = scene.verify(good.as_str()).await.unwrap();
    let printed = [
        format!(
            "{verified:?} {:?} {:?}",
            scene.verifier,
            scene.verifier.health()
        ),
        format!("{:?}", SecretString::from(good.as_str())),
        format!("{:?}", scene.refusal(expired.clone()).await),
        format!("{0:?} {0}", scene.refusal(format!("{good}x")).await),
        format!("{0:?} {0}", scene.refusal(agent_token.clone()).await),
    ]
    .join("\n");
    for token in [&good, &expired, &agent_token] {
        for part in token.split('.').filter(|part| part.len() > 20) {
            assert!(!printed.contains(part), "a part of a token is in {printed}");
        }
    }
}

#[tokio::test]
async fn c2_a_name_that_moves_to_another_id_is_noticed() {
    let scene = Scene::new();
    let first = scene.verify(scene.draft().sign()).await.unwrap();
    assert!(scene.verifier.names.seen(&first.identity).is_empty());
    let mut other = first.identity.clone();
    other.project.id = "01945ecf-0000-7000-8000-0000000000ee".into();
    let moved = scene.verifier.names.seen(&other);
    assert_eq!(moved.len(), 1);
    assert!(
        moved[0].to_string().contains(&first.identity.project.id),
        "{}",
        moved[0]
    );
    assert!(scene.verifier.names.seen(&other).is_empty());
}
