//! The honest token: as recorded from the real service, and verifiable with the published keys.

use anyhow::Result;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use kubler_testkit::buildkite::{Buildkite, IssuerFault, Job, OidcRequest};
use serde_json::{Value, json};
use std::time::Duration;

const AUDIENCE: &str = "https://kubler.test";

/// Verifies a token with keys fetched over HTTPS, as a broker does.
async fn verify(buildkite: &Buildkite, token: &str, audience: &str) -> Result<Value> {
    let jwks: JwkSet = serde_json::from_value(fetch(buildkite, "/.well-known/jwks").await?)?;
    let kid = decode_header(token)?.kid.unwrap();
    let key = jwks
        .find(&kid)
        .ok_or_else(|| anyhow::anyhow!("key `{kid}` is not published"))?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[audience]);
    validation.set_issuer(&[buildkite.issuer_url()]);
    Ok(decode::<Value>(token, &DecodingKey::from_jwk(key)?, &validation)?.claims)
}

async fn fetch(buildkite: &Buildkite, path: &str) -> Result<Value> {
    let authority = reqwest::Certificate::from_pem(buildkite.ca_pem().as_bytes())?;
    let client = reqwest::Client::builder()
        .tls_certs_only([authority])
        .timeout(Duration::from_secs(5))
        .build()?;
    let answer = client
        .get(format!("{}{path}", buildkite.issuer_url()))
        .send()
        .await?
        .error_for_status()?;
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}

fn running_job(buildkite: &Buildkite) -> Job {
    buildkite.build("app").start().job("test").run()
}

#[tokio::test]
async fn discovery_names_the_issuer_and_where_its_keys_are() -> Result<()> {
    let buildkite = Buildkite::start();
    let document = fetch(&buildkite, "/.well-known/openid-configuration").await?;
    assert_eq!(document["issuer"], buildkite.issuer_url());
    assert_eq!(
        document["jwks_uri"],
        format!("{}/.well-known/jwks", buildkite.issuer_url())
    );
    assert_eq!(
        document["id_token_signing_alg_values_supported"],
        json!(["RS256"])
    );
    Ok(())
}

#[tokio::test]
async fn a_token_without_wishes_has_the_default_claims_with_their_types() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = running_job(&buildkite);
    let token = job.oidc_token(&OidcRequest::default())?;

    let header: Value = part(&token, 0);
    let kid = header["kid"].as_str().unwrap();
    assert_eq!(
        header.as_object().unwrap().len(),
        2,
        "only kid and alg: {header}"
    );
    assert_eq!(header["alg"], "RS256");
    assert!(
        kid.len() == 64 && kid.chars().all(|digit| digit.is_ascii_hexdigit()),
        "{kid}"
    );

    let mut claims = verify(&buildkite, &token, "https://buildkite.com/acme").await?;
    let claims = claims.as_object_mut().unwrap();
    let issued = claims["iat"].as_i64().unwrap();
    assert_eq!(claims["nbf"], issued);
    assert_eq!(claims["exp"], issued + 300);
    let jti: uuid::Uuid = claims["jti"].as_str().unwrap().parse()?;
    assert_eq!(jti.get_version_num(), 7);
    for name in ["iat", "nbf", "exp", "jti"] {
        claims.remove(name);
    }
    let commit = "b5ffe3aeea51cec6c41aef16e45ee6bce47d8810";
    assert_eq!(
        Value::Object(claims.clone()),
        json!({
            "iss": buildkite.issuer_url(),
            "sub": format!("organization:acme:pipeline:app:ref:refs/heads/main:commit:{commit}:step:test"),
            "aud": "https://buildkite.com/acme",
            "organization_slug": "acme", "pipeline_slug": "app", "build_number": 1, "build_branch": "main",
            "build_tag": null, "build_commit": commit, "step_key": "test",
            "job_id": job.id().to_string(), "agent_id": job.record().agent_id.unwrap().to_string(),
            "build_source": "ui", "runner_environment": "self-hosted",
        })
    );
    Ok(())
}

#[tokio::test]
async fn a_step_without_key_is_null_and_its_subject_ends_in_nothing() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = buildkite
        .build("app")
        .branch("someone:main")
        .tag("v1")
        .start()
        .job_without_key()
        .run();
    let claims: Value = part(&job.oidc_token(&OidcRequest::for_kubler(AUDIENCE))?, 1);
    assert_eq!(claims["step_key"], Value::Null);
    assert_eq!(claims["build_tag"], "v1");
    assert_eq!(claims["build_branch"], "someone:main");
    let subject = claims["sub"].as_str().unwrap();
    assert!(
        subject.contains(":ref:refs/tags/v1:") && subject.ends_with(":step:"),
        "{subject}"
    );
    let organization = buildkite.organization("acme");
    assert_eq!(claims["organization_id"], organization.id.to_string());
    assert_eq!(
        claims["pipeline_id"],
        buildkite.pipeline("app").id.to_string()
    );
    assert_eq!(claims["build_id"], job.build().id().to_string());
    assert_eq!(claims["cluster_id"], organization.cluster_id.to_string());
    assert_eq!(claims["queue_id"], organization.queue_id.to_string());
    Ok(())
}

#[tokio::test]
async fn cluster_and_queue_have_names_for_who_asks() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = running_job(&buildkite);
    let asked = OidcRequest::for_audience(AUDIENCE).claims(&["cluster_name", "queue_key"]);
    let claims: Value = part(&job.oidc_token(&asked)?, 1);
    assert_eq!(claims["cluster_name"], "Default cluster");
    assert_eq!(claims["queue_key"], "default");
    for absent in ["cluster_id", "queue_id"] {
        assert_eq!(claims.get(absent), None, "nobody asked for `{absent}`");
    }
    let claims: Value = part(&job.oidc_token(&OidcRequest::for_kubler(AUDIENCE))?, 1);
    for absent in ["cluster_name", "queue_key"] {
        assert_eq!(claims.get(absent), None, "nobody asked for `{absent}`");
    }
    Ok(())
}

#[tokio::test]
async fn a_subject_claim_becomes_the_subject_and_is_added() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = running_job(&buildkite);
    let request = OidcRequest::for_audience(AUDIENCE).subject_claim("pipeline_id");
    let claims: Value = part(&job.oidc_token(&request)?, 1);
    assert_eq!(claims["sub"], buildkite.pipeline("app").id.to_string());
    assert_eq!(claims["pipeline_id"], claims["sub"]);
    Ok(())
}

#[tokio::test]
async fn session_tags_are_lists_of_text() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = running_job(&buildkite);
    let request = OidcRequest::for_audience(AUDIENCE).aws_session_tags(&[
        "organization_slug",
        "build_number",
        "build_tag",
    ]);
    let claims: Value = part(&job.oidc_token(&request)?, 1);
    let expected = json!({"principal_tags": {"organization_slug": ["acme"], "build_number": ["1"], "build_tag": [""]}});
    assert_eq!(claims["https://aws.amazon.com/tags"], expected);
    Ok(())
}

#[tokio::test]
async fn former_keys_stay_published_until_they_are_retired() -> Result<()> {
    let buildkite = Buildkite::start();
    let job = running_job(&buildkite);
    let before = job.oidc_token(&OidcRequest::for_kubler(AUDIENCE))?;
    buildkite.rotate_keys();
    let after = job.oidc_token(&OidcRequest::for_kubler(AUDIENCE))?;
    assert_ne!(part(&before, 0)["kid"], part(&after, 0)["kid"]);
    verify(&buildkite, &before, AUDIENCE).await?;
    verify(&buildkite, &after, AUDIENCE).await?;
    buildkite.retire_previous_keys();
    verify(&buildkite, &before, AUDIENCE)
        .await
        .expect_err("its key is gone");
    verify(&buildkite, &after, AUDIENCE).await?;
    assert_eq!(buildkite.jwks_requests(), 4);
    Ok(())
}

#[tokio::test]
async fn the_issuer_fails_as_told_and_recovers() -> Result<()> {
    let buildkite = Buildkite::start();
    for fault in [
        IssuerFault::Down,
        IssuerFault::Status(503),
        IssuerFault::Jwks("{".into()),
        IssuerFault::Hold,
    ] {
        buildkite.issuer_fault(fault.clone());
        let answer = tokio::time::timeout(
            Duration::from_millis(300),
            fetch(&buildkite, "/.well-known/jwks"),
        )
        .await;
        assert!(!matches!(answer, Ok(Ok(_))), "{fault:?} answered");
        buildkite.issuer_fault(IssuerFault::None);
        fetch(&buildkite, "/.well-known/jwks").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_kept_connection_does_not_outlive_the_issuer_going_down() -> Result<()> {
    let buildkite = Buildkite::start();
    let authority = reqwest::Certificate::from_pem(buildkite.ca_pem().as_bytes())?;
    let client = reqwest::Client::builder()
        .tls_certs_only([authority])
        .timeout(Duration::from_secs(5))
        .build()?;
    let url = format!("{}/.well-known/jwks", buildkite.issuer_url());
    client.get(&url).send().await?.bytes().await?;
    buildkite.issuer_fault(IssuerFault::Down);
    // A request that was under way when the issuer went down may still be answered; not the ones after it.
    let bound = std::time::Instant::now() + Duration::from_secs(5);
    while client.get(&url).send().await.is_ok() {
        assert!(
            std::time::Instant::now() < bound,
            "it still answers while down"
        );
    }
    let requests = buildkite.jwks_requests();
    client
        .get(&url)
        .send()
        .await
        .expect_err("no answer while down");
    assert_eq!(buildkite.jwks_requests(), requests);
    Ok(())
}

pub(crate) fn part(token: &str, index: usize) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(part)
            .unwrap(),
    )
    .unwrap()
}
