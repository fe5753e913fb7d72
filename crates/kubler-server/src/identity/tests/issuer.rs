//! An issuer that rotates, fails, lies or leads elsewhere: what is fetched, how often, and what goes on working.

use kubler_testkit::buildkite::{IssuerFault, Signature};
use rstest::rstest;
use serde_json::json;

use super::*;

#[tokio::test]
async fn t7_a_new_key_is_fetched_when_a_token_names_it() {
    let scene = Scene::new();
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    let before = scene.draft().sign();
    scene.buildkite.rotate_keys();
    scene.advance(30);
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    assert!(
        scene.verify(before).await.is_ok(),
        "the former key is still published"
    );
    assert_eq!(scene.buildkite.jwks_requests(), 2);
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_who_is_still_trusted_and_forgets_all_others() {
    let scene = Scene::new();
    scene.verifier.prefetch().await;
    let token = scene.draft().sign();
    let reload = |change: fn(&mut Issuer)| {
        let mut settings = settings(&scene.buildkite);
        change(&mut settings);
        let configuration = configuration(settings);
        let issuers = scene.verifier.prepare(&configuration, scene.folder.path());
        scene.verifier.install(issuers.unwrap());
    };
    // Nobody waits for an issuer that is down just now.
    scene.buildkite.issuer_fault(IssuerFault::Down);
    reload(|it| it.clock_skew_seconds = 10);
    assert!(scene.verify(token.as_str()).await.is_ok());
    // Another organization, another trust, another issuer: what was believed is believed no more.
    reload(|it| it.organizations[0].id = "01945ecf-0000-4000-8000-0000000000ff".into());
    let reason = scene.refusal(token.clone()).await.reason;
    assert_eq!(reason, RefusalReason::Organization);
    reload(|it| it.ca = None);
    let reason = scene.refusal(token.clone()).await.reason;
    assert_eq!(reason, RefusalReason::KeysUnavailable);
    reload(|it| it.url.push_str("/other"));
    assert_eq!(scene.refusal(token).await.reason, RefusalReason::Issuer);
}

#[tokio::test]
async fn t7_a_withdrawn_key_is_not_believed_any_longer() {
    let scene = Scene::new();
    let before = scene.draft().sign();
    assert!(scene.verify(before.as_str()).await.is_ok());
    scene.buildkite.rotate_keys();
    scene.buildkite.retire_previous_keys();
    scene.advance(30);
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    assert_eq!(
        scene.refusal(before).await.reason,
        RefusalReason::KeyUnknown
    );
}

#[tokio::test]
async fn t7_a_flood_of_unknown_keys_makes_one_fetch_a_cooldown_and_evicts_nothing() {
    let scene = Scene::new();
    scene.verifier.prefetch().await;
    for round in 0..3 {
        assert_eq!(scene.buildkite.jwks_requests(), 1 + round);
        scene.advance(31);
        let flood = (0..100).map(|nth| {
            let token = scene
                .draft()
                .header("kid", format!("unknown-{nth}"))
                .sign_with(Signature::WrongKey);
            scene.refusal(token)
        });
        let refusals = futures_util::future::join_all(flood).await;
        assert!(
            refusals
                .iter()
                .all(|refusal| refusal.reason == RefusalReason::KeyUnknown)
        );
        for nth in 0..5 {
            let token = scene
                .draft()
                .header("kid", format!("later-{nth}"))
                .sign_with(Signature::WrongKey);
            assert_eq!(scene.refusal(token).await.reason, RefusalReason::KeyUnknown);
        }
        assert!(scene.verify(scene.draft().sign()).await.is_ok());
    }
    assert_eq!(scene.buildkite.jwks_requests(), 4);
}

#[tokio::test]
async fn t7_all_who_need_the_first_keys_share_one_fetch() {
    let scene = Scene::new();
    let tokens: Vec<_> = (0..50)
        .map(|nth: u64| scene.draft().claim("jti", nth.to_string()).sign())
        .collect();
    let verified =
        futures_util::future::join_all(tokens.into_iter().map(|token| scene.verify(token))).await;
    assert!(verified.iter().all(Result::is_ok));
    assert_eq!(scene.buildkite.jwks_requests(), 1);
}

#[tokio::test]
async fn t7_too_many_who_wait_are_refused_and_known_keys_do_not_wait() {
    let scene = Scene::new();
    scene.verifier.prefetch().await;
    scene.advance(31);
    scene.buildkite.issuer_fault(IssuerFault::Hold);
    let unknown = |nth: usize| {
        SecretString::from(
            scene
                .draft()
                .header("kid", format!("u{nth}"))
                .sign_with(Signature::Corrupted),
        )
    };
    let waiting: Vec<_> = (0..256)
        .map(|nth| {
            let (verifier, token) = (scene.verifier.clone(), unknown(nth));
            tokio::spawn(async move { verifier.verify(&token).await.unwrap_err().reason })
        })
        .collect();
    while scene.buildkite.discovery_requests() < 2 {
        tokio::task::yield_now().await;
    }
    let one_more = tokio::time::timeout(Duration::from_secs(1), scene.verify(unknown(256)))
        .await
        .expect("an answer at once");
    assert_eq!(one_more.unwrap_err().reason, RefusalReason::Busy);
    assert!(
        scene.verify(scene.draft().sign()).await.is_ok(),
        "known keys do not wait"
    );

    scene.buildkite.issuer_fault(IssuerFault::None);
    let reasons = futures_util::future::join_all(waiting).await;
    assert!(
        reasons
            .into_iter()
            .all(|reason| reason.unwrap() == RefusalReason::KeyUnknown)
    );
    assert_eq!(scene.buildkite.jwks_requests(), 2);
}

#[tokio::test]
async fn t7_a_caller_that_gives_up_does_not_stop_the_fetch() {
    let scene = Scene::new();
    scene.buildkite.issuer_fault(IssuerFault::Hold);
    let verifier = scene.verifier.clone();
    let token = SecretString::from(scene.draft().sign());
    let caller = tokio::spawn(async move { verifier.verify(&token).await });
    while scene.buildkite.discovery_requests() == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    scene.buildkite.issuer_fault(IssuerFault::None);
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    assert_eq!(scene.buildkite.jwks_requests(), 1);
}

#[tokio::test]
async fn t7_while_the_issuer_is_down_known_keys_are_used_for_a_day() {
    let scene = Scene::new();
    scene.verifier.prefetch().await;
    scene.buildkite.issuer_fault(IssuerFault::Down);
    scene.advance(24 * 3600);
    scene.verifier.prefetch().await;
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
    let health = scene.verifier.health().into_iter().next().unwrap();
    assert!(
        health.state == "stale" && health.detail.contains("the last fetch failed"),
        "{health:?}"
    );

    scene.advance(1);
    assert_eq!(
        scene.refusal(scene.draft().sign()).await,
        RefusalReason::KeysUnavailable.into()
    );
    assert!(
        scene
            .verifier
            .health()
            .into_iter()
            .all(|health| health.state == "missing")
    );

    scene.buildkite.issuer_fault(IssuerFault::None);
    scene.advance(2);
    assert!(
        scene.verify(scene.draft().sign()).await.is_ok(),
        "it heals by itself"
    );
}

#[tokio::test]
async fn t7_without_keys_a_token_is_refused_for_a_reason_that_is_ours() {
    let scene = Scene::new();
    scene.buildkite.issuer_fault(IssuerFault::Down);
    let refusal = scene.refusal(scene.draft().sign()).await;
    assert!(refusal.reason.is_temporary() && refusal == RefusalReason::KeysUnavailable.into());
}

#[rstest]
#[case::an_error(IssuerFault::Status(500))]
#[case::not_found(IssuerFault::Status(404))]
#[case::no_json(IssuerFault::Jwks("<html>".into()))]
#[case::no_keys(IssuerFault::Jwks(r#"{"keys":[]}"#.into()))]
#[case::keys_of_another_kind(IssuerFault::Jwks(r#"{"keys":[{"kty":"oct","k":"AAAA","alg":"HS256"}]}"#.into()))]
#[case::duplicate_keys(IssuerFault::Jwks(r#"{"keys":[],"keys":[]}"#.into()))]
#[case::oversized(IssuerFault::Padded(101 * 1024))]
#[case::redirect(IssuerFault::Redirect("https://127.0.0.1:1/".into()))]
#[case::no_discovery(IssuerFault::Discovery("{}".into()))]
#[tokio::test]
async fn t7_t8_a_bad_answer_is_refused_and_evicts_no_good_key(#[case] fault: IssuerFault) {
    let scene = Scene::new();
    scene.verifier.prefetch().await;
    scene.buildkite.issuer_fault(fault);
    scene.verifier.prefetch().await;
    let health = scene.verifier.health().into_iter().next().unwrap();
    assert!(
        health.detail.contains("the last fetch failed"),
        "{health:?}"
    );
    assert!(scene.verify(scene.draft().sign()).await.is_ok());
}

#[tokio::test]
async fn t7_old_keys_are_fetched_anew_while_they_go_on_being_used() {
    let scene = Scene::new();
    scene.verifier.prefetch().await;
    scene.buildkite.issuer_fault(IssuerFault::Hold);
    scene.advance(300);
    assert!(
        scene.verify(scene.draft().sign()).await.is_ok(),
        "nobody waits for a refresh"
    );
    scene.buildkite.issuer_fault(IssuerFault::None);
    tokio::time::timeout(Duration::from_secs(10), async {
        while scene.buildkite.jwks_requests() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a fetch in the background");
}

async fn failure(scene: &Scene) -> String {
    scene.verifier.prefetch().await;
    let health = scene.verifier.health().into_iter().next().unwrap();
    assert!(health.state == "missing", "{health:?}");
    health.detail
}

#[tokio::test]
async fn t8_a_redirect_is_not_followed() {
    let (scene, victim) = (Scene::new(), Buildkite::start());
    let elsewhere = format!("{}/.well-known/openid-configuration", victim.issuer_url());
    scene
        .buildkite
        .issuer_fault(IssuerFault::Redirect(elsewhere));
    assert!(failure(&scene).await.contains("status 307"));
    assert_eq!(victim.discovery_requests(), 0);
}

#[tokio::test]
async fn t8_a_long_answer_is_not_read_to_its_end() {
    let scene = Scene::new();
    scene
        .buildkite
        .issuer_fault(IssuerFault::Padded(10 * 1024 * 1024));
    assert!(failure(&scene).await.contains("longer than 102400 bytes"));
}

#[tokio::test]
async fn t8_keys_come_from_the_issuers_own_origin() {
    let (scene, victim) = (Scene::new(), Buildkite::start());
    let url = scene.buildkite.issuer_url().to_owned();
    let port = url.rsplit(':').next().unwrap();
    for keys in [
        format!("{}/.well-known/jwks", victim.issuer_url()),
        format!("https://localhost:{port}/.well-known/jwks"),
        format!("http://127.0.0.1:{port}/.well-known/jwks"),
        format!("https://user@127.0.0.1:{port}/.well-known/jwks"),
        "https://169.254.169.254/latest/meta-data".into(),
    ] {
        let document = json!({"issuer": url, "jwks_uri": keys}).to_string();
        scene
            .buildkite
            .issuer_fault(IssuerFault::Discovery(document));
        assert!(failure(&scene).await.contains("another origin"), "{keys}");
    }
    assert_eq!(
        (victim.jwks_requests(), scene.buildkite.jwks_requests()),
        (0, 0)
    );
}

#[tokio::test]
async fn t8_a_discovery_document_of_another_issuer_is_refused() {
    let scene = Scene::new();
    let url = scene.buildkite.issuer_url().to_owned();
    let document = json!({"issuer": "https://agent.buildkite.com", "jwks_uri": format!("{url}/.well-known/jwks")});
    scene
        .buildkite
        .issuer_fault(IssuerFault::Discovery(document.to_string()));
    assert!(failure(&scene).await.contains("another issuer"));
}

#[tokio::test]
async fn t8_private_addresses_are_not_asked_unless_the_operator_says_so() {
    let scene = Scene::with(|issuer| issuer.allow_private_addresses = false);
    assert!(failure(&scene).await.contains("address is private"));
    let port = scene
        .buildkite
        .issuer_url()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    for host in [
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0x7f.1",
        "2130706433",
    ] {
        let named = Scene::with(|issuer| {
            issuer.allow_private_addresses = false;
            issuer.url = format!("https://{host}:{port}");
        });
        assert!(
            failure(&named).await.contains("address is private"),
            "{host}"
        );
    }
    assert_eq!(scene.buildkite.discovery_requests(), 0);
}

#[tokio::test]
async fn t8_another_authority_is_not_trusted() {
    let scene = Scene::new();
    let other = Buildkite::start();
    std::fs::write(scene.folder.path().join("issuer-ca.pem"), other.ca_pem()).unwrap();
    let verifier = verifier(
        &configuration(settings(&scene.buildkite)),
        scene.folder.path(),
        scene.clock.clone(),
    )
    .unwrap();
    verifier.prefetch().await;
    assert!(
        verifier
            .health()
            .into_iter()
            .all(|health| health.detail.contains("cannot be reached"))
    );
    assert_eq!(scene.buildkite.discovery_requests(), 0);
}

#[tokio::test]
async fn t8_an_unreadable_authority_is_a_fault_at_the_start() {
    let scene = Scene::new();
    for (file, text) in [
        ("absent.pem", None),
        ("empty.pem", Some("")),
        ("junk.pem", Some("junk")),
    ] {
        if let Some(text) = text {
            std::fs::write(scene.folder.path().join(file), text).unwrap();
        }
        let issuer = Issuer {
            ca: Some(file.into()),
            ..settings(&scene.buildkite)
        };
        let error = verifier(
            &configuration(issuer),
            scene.folder.path(),
            scene.clock.clone(),
        )
        .unwrap_err();
        assert!(matches!(error, IdentityError::Ca { .. }), "{file}: {error}");
    }
}

#[tokio::test]
async fn t8_an_issuer_that_does_not_answer_is_given_up() {
    let scene = Scene::new();
    scene.buildkite.issuer_fault(IssuerFault::Hold);
    let quick = Fetcher::with_timeout(
        &settings(&scene.buildkite),
        scene.folder.path(),
        Duration::from_millis(200),
    )
    .unwrap();
    let outcome = quick.keys(&["RS256"]).await;
    assert!(matches!(outcome, Err(fetch::FetchError::TooSlow)));
}
