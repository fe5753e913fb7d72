use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use kubler_core::identity::{Job, Named, Run, Runner, Source};
use kubler_core::text::UntrustedText;
use secrecy::ExposeSecret as _;
use tempfile::TempDir;

use super::*;
use crate::clock::ManualClock;

const DAY: u64 = 24 * 3600;

struct Scene {
    folder: TempDir,
    clock: Arc<ManualClock>,
    sessions: Sessions,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(
            Timestamp::from_millisecond(1_800_000_000_700).unwrap(),
        ));
        let sessions = Sessions::open(&folder.path().join("sessions"), clock.clone()).unwrap();
        Self {
            folder,
            clock,
            sessions,
        }
    }

    fn reopened(&self) -> Sessions {
        Sessions::open(&self.folder.path().join("sessions"), self.clock.clone()).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("sessions/keys.json")
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn new_session(&self) -> NewSession {
        let now = self.clock.now();
        NewSession {
            id: SessionId::from_random([7; 16]),
            environment: EnvironmentId::from_random([8; 16]),
            identity: identity(),
            issued_at: now,
            expires_at: kubler_core::lease::after(now, Duration::from_secs(600)),
        }
    }

    fn issue(&self) -> String {
        self.sessions
            .issue(self.new_session())
            .unwrap()
            .expose_secret()
            .to_owned()
    }
}

fn identity() -> Identity {
    let id = |nth: u32| format!("01945ecf-0000-4000-8000-{nth:012}");
    Identity {
        issuer: "https://agent.buildkite.com".into(),
        organization: Named {
            id: id(1),
            slug: "acme".into(),
        },
        project: Named {
            id: id(2),
            slug: "web".into(),
        },
        run: Run {
            id: id(3),
            number: 5,
            url: "https://buildkite.com/acme/web/builds/5".into(),
        },
        job: Job {
            id: id(4),
            step_key: Some(UntrustedText::new("test")),
            url: format!("https://buildkite.com/acme/web/builds/5#{}", id(4)),
        },
        source: Source {
            branch: Some(UntrustedText::new("main")),
            tag: None,
            commit: UntrustedText::new("HEAD"),
            trigger: "ui".into(),
        },
        runner: Runner {
            environment: "self-hosted".into(),
            agent_id: id(5),
            ..Runner::default()
        },
    }
}

fn is_invalid(outcome: &Result<Arc<Session>, SessionError>) -> bool {
    matches!(outcome, Err(SessionError::Invalid))
}

#[test]
fn a_session_says_what_it_was_issued_for() {
    let scene = Scene::new();
    let new = scene.new_session();
    let session = scene.sessions.verify(&scene.issue()).unwrap();
    assert_eq!(
        (session.id, session.environment, &session.identity),
        (new.id, new.environment, &new.identity)
    );
    assert_eq!(session.issued_at.as_second(), new.issued_at.as_second());
    assert_eq!(
        session.expires_at,
        Timestamp::from_second(new.expires_at.as_second()).unwrap()
    );
    assert!(session.expires_at <= new.expires_at);
}

#[test]
fn expiry_is_no_error_because_a_dead_environment_explains_itself() {
    let scene = Scene::new();
    let token = scene.issue();
    let session = scene.sessions.verify(&token).unwrap();
    assert!(!session.has_expired(scene.clock.now()));
    scene.advance(600);
    assert!(
        scene
            .sessions
            .verify(&token)
            .unwrap()
            .has_expired(scene.clock.now())
    );
    assert!(
        scene
            .reopened()
            .verify(&token)
            .unwrap()
            .has_expired(scene.clock.now())
    );
}

#[test]
fn t5_the_same_session_is_the_same_token_and_is_stored_nowhere() {
    let scene = Scene::new();
    let new = scene.new_session();
    let token = scene.issue();
    scene.advance(10);
    assert_eq!(
        scene.sessions.issue(new.clone()).unwrap().expose_secret(),
        token
    );
    assert_eq!(
        scene.reopened().issue(new).unwrap().expose_secret(),
        token,
        "a restart changes nothing"
    );
    let kept = std::fs::read_to_string(scene.file()).unwrap();
    assert!(token.split('.').all(|part| !kept.contains(part)));
}

#[test]
fn t5_a_repetition_across_a_change_of_keys_is_the_same_token() {
    let scene = Scene::new();
    scene.advance(DAY - 5);
    let new = scene.new_session();
    let token = scene.issue();
    scene.advance(10);
    let later = scene.issue();
    assert_ne!(
        later.split('.').next(),
        token.split('.').next(),
        "the key has changed"
    );
    assert_eq!(scene.sessions.issue(new).unwrap().expose_secret(), token);
    assert!(scene.sessions.verify(&token).is_ok() && scene.sessions.verify(&later).is_ok());
}

#[test]
fn keys_change_by_themselves_and_are_believed_longer_than_any_tombstone() {
    let scene = Scene::new();
    let token = scene.issue();
    for _ in 0..8 {
        scene.advance(DAY);
        assert!(scene.sessions.verify(&scene.issue()).is_ok());
    }
    assert!(scene.reopened().verify(&token).is_ok());
    scene.advance(2 * DAY);
    scene.issue();
    assert!(is_invalid(&scene.reopened().verify(&token)));
    assert!(scene.reopened().keys.count() <= 10, "keys are forgotten");
}

#[test]
fn a_key_that_signs_no_more_loses_its_private_half() {
    let scene = Scene::new();
    let old = scene.new_session();
    scene.advance(DAY + 1);
    scene.issue();
    scene.advance(DAY + 1);
    scene.issue();
    let kept = std::fs::read_to_string(scene.file()).unwrap();
    assert_eq!(
        (
            kept.matches("\"public\"").count(),
            kept.matches("\"private\"").count()
        ),
        (3, 2)
    );
    assert!(matches!(
        scene.sessions.issue(old),
        Err(SessionError::TooOld)
    ));
}

#[test]
fn keys_are_for_the_server_alone() {
    let scene = Scene::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(
        (mode(&scene.file()), mode(scene.file().parent().unwrap())),
        (0o600, 0o700)
    );
    std::fs::set_permissions(scene.file(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let error =
        Sessions::open(&scene.folder.path().join("sessions"), scene.clock.clone()).unwrap_err();
    assert!(matches!(error, SessionError::Keys { .. }), "{error}");
}

#[test]
fn damaged_keys_are_not_replaced_in_silence() {
    let scene = Scene::new();
    let honest = std::fs::read_to_string(scene.file()).unwrap();
    for damaged in [
        "",
        "{}",
        "{\"keys\":[{}]}",
        &honest.replace("\"public\": \"", "\"public\": \"00"),
        &honest.replace("made_at", "when"),
    ] {
        std::fs::write(scene.file(), damaged).unwrap();
        let error =
            Sessions::open(&scene.folder.path().join("sessions"), scene.clock.clone()).unwrap_err();
        assert!(matches!(error, SessionError::Keys { .. }), "{error}");
    }
}

#[test]
fn a_disk_that_cannot_be_written_keeps_the_old_key_in_use() {
    let scene = Scene::new();
    // A folder in the place of the next file: also a superuser cannot write there.
    std::fs::create_dir(scene.file().with_extension("json.new")).unwrap();
    scene.advance(2 * DAY);
    let token = scene.issue();
    assert!(scene.sessions.verify(&token).is_ok());
    std::fs::remove_dir(scene.file().with_extension("json.new")).unwrap();
    assert_ne!(scene.issue().split('.').next(), token.split('.').next());
}

#[test]
fn t1_every_change_of_a_session_is_noticed() {
    let scene = Scene::new();
    let token = scene.issue();
    for position in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[position] = if changed[position] == b'A' {
            b'B'
        } else {
            b'A'
        };
        let changed = String::from_utf8(changed).unwrap();
        assert!(
            is_invalid(&scene.sessions.verify(&changed)),
            "byte {position}"
        );
        assert!(
            is_invalid(&scene.sessions.verify(&token[..position])),
            "cut at {position}"
        );
    }
    for other in [
        format!("{token}="),
        format!("{token}.x"),
        format!(" {token}"),
        token.repeat(2),
        "x".repeat(1024 * 1024),
    ] {
        assert!(is_invalid(&scene.sessions.verify(&other)));
    }
    assert!(scene.sessions.verify(&token).is_ok());
}

#[test]
fn t1_the_header_of_a_session_is_compared_and_not_read() {
    let scene = Scene::new();
    let token = scene.issue();
    let (_, rest) = token.split_once('.').unwrap();
    let (claims, _) = rest.split_once('.').unwrap();
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"EdDSA"}"#,
        r#"{"alg":"HS256","typ":"kubler-session+jwt"}"#,
        "{}",
        "",
    ] {
        let header = URL_SAFE_NO_PAD.encode(header);
        for signature in ["", "AAAA", rest.rsplit('.').next().unwrap()] {
            assert!(is_invalid(
                &scene
                    .sessions
                    .verify(&format!("{header}.{claims}.{signature}"))
            ));
        }
    }
}

#[test]
fn a_session_of_another_server_is_foreign() {
    let (scene, other) = (Scene::new(), Scene::new());
    assert!(is_invalid(&scene.sessions.verify(&other.issue())));
}

#[test]
fn t3_a_token_with_another_audience_is_no_session_though_signed() {
    let scene = Scene::new();
    let said = Said {
        aud: "somebody-else".into(),
        sid: SessionId::from_random([7; 16]),
        env: EnvironmentId::from_random([8; 16]),
        iat: 1_800_000_000,
        exp: 1_800_000_600,
        identity: identity(),
    };
    let sign = |claims: Vec<u8>| {
        let token = scene
            .sessions
            .keys
            .sign(scene.clock.now(), &URL_SAFE_NO_PAD.encode(claims))
            .unwrap();
        token.expose_secret().to_owned()
    };
    assert!(is_invalid(
        &scene
            .sessions
            .verify(&sign(serde_json::to_vec(&said).unwrap()))
    ));
    let ours = serde_json::to_string(&Said {
        aud: AUDIENCE.into(),
        ..said
    })
    .unwrap();
    assert!(
        scene
            .sessions
            .verify(&sign(ours.clone().into_bytes()))
            .is_ok()
    );
    let twice = ours.replacen('{', "{\"aud\":\"x\",", 1);
    assert!(is_invalid(
        &scene.sessions.verify(&sign(twice.into_bytes()))
    ));
    let more = ours.replacen('{', "{\"admin\":true,", 1);
    assert!(is_invalid(&scene.sessions.verify(&sign(more.into_bytes()))));
}

#[test]
fn t1_a_session_is_no_identity_token() {
    let scene = Scene::new();
    let refused = kubler_core::identity::token::UnverifiedToken::parse(&scene.issue()).unwrap_err();
    assert_eq!(
        refused,
        kubler_core::identity::refusal::RefusalReason::Header
    );
}

#[test]
fn a_session_with_the_longest_texts_fits_its_bound() {
    let scene = Scene::new();
    let long = UntrustedText::new(&"\u{10ffff}".repeat(256));
    let mut new = scene.new_session();
    new.identity.job.step_key = Some(long.clone());
    new.identity.source = Source {
        branch: Some(long.clone()),
        tag: Some(long.clone()),
        commit: long.clone(),
        trigger: "t".repeat(256),
    };
    new.identity.runner.queue_key = Some(long);
    let token = scene.sessions.issue(new).unwrap();
    assert!(scene.sessions.verify(token.expose_secret()).is_ok());
}

#[test]
fn a_session_that_is_longer_than_its_bound_is_not_looked_at() {
    let scene = Scene::new();
    let mut new = scene.new_session();
    // Its claims alone would not be too long.
    new.identity.source.trigger = "t".repeat(SESSION_TOKEN_BYTES_MAX * 3 / 4);
    let token = scene.sessions.issue(new).unwrap();
    let length = token.expose_secret().len();
    assert!((SESSION_TOKEN_BYTES_MAX..SESSION_TOKEN_BYTES_MAX * 4 / 3).contains(&length));
    assert!(is_invalid(&scene.sessions.verify(token.expose_secret())));
}

#[test]
fn l1_nothing_that_can_be_printed_shows_a_session() {
    let scene = Scene::new();
    let token = scene.sessions.issue(scene.new_session()).unwrap();
    let session = scene.sessions.verify(token.expose_secret()).unwrap();
    let error = scene
        .sessions
        .verify(&format!("{}x", token.expose_secret()))
        .unwrap_err();
    let printed = format!(
        "{token:?} {:?} {session:?} {error:?} {error} {:?}",
        scene.sessions,
        scene.new_session()
    );
    assert!(
        token
            .expose_secret()
            .split('.')
            .all(|part| !printed.contains(part))
    );
    let secret = std::fs::read_to_string(scene.file()).unwrap();
    let secret = secret
        .split("\"private\": \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    assert!(secret.len() == 64 && !printed.contains(&secret));
}
