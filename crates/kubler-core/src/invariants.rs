//! What must always hold, written once: tests, simulation and `debug_assert!` share these.

use jiff::Timestamp;

use crate::environment::{Environment, Phase};
use crate::profile::EngineKind;

/// A promise that a state breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id}: {broken}")]
pub struct Violation {
    /// The environment, as text.
    pub id: String,
    /// Which promise.
    pub broken: &'static str,
}

/// Checks one environment by itself.
///
/// # Errors
/// The first promise it breaks.
pub fn check_environment(environment: &Environment) -> Result<(), Violation> {
    let violated = |broken| {
        Err(Violation {
            id: environment.id.to_string(),
            broken,
        })
    };
    if environment.lease_end > environment.deadline {
        return violated("no lease ends after its deadline");
    }
    if environment.digest != environment.resolved.digest() {
        return violated("the digest is the digest of what it is made of");
    }
    let has_ended = matches!(
        environment.phase,
        Phase::Failed | Phase::Releasing | Phase::Gone
    );
    if has_ended != environment.dead_at.is_some() || has_ended != environment.reason.is_some() {
        return violated("an end has a moment and a reason, and nothing else has");
    }
    if (environment.phase == Phase::Gone) != environment.gone_at.is_some() {
        return violated("gone is said only after looking");
    }
    if environment.phase == Phase::Ready && environment.ready_at.is_none() {
        return violated("what is ready became ready at some moment");
    }
    let is_placed = environment.placement.is_some();
    let is_made = matches!(environment.phase, Phase::Provisioning | Phase::Ready);
    match environment.resolved.profile.engine {
        EngineKind::Local if is_placed => {
            return violated("what lives on this machine has no place on a host");
        }
        EngineKind::Namespace if is_made && !is_placed => {
            return violated("what is made on a host has its place written down before");
        }
        EngineKind::Local | EngineKind::Namespace => {}
    }
    Ok(())
}

/// Checks that a session with this end may exist for this environment.
///
/// # Errors
/// When it would outlive lease or deadline.
pub fn check_session(environment: &Environment, session_end: Timestamp) -> Result<(), Violation> {
    if session_end > environment.lease_end || session_end > environment.deadline {
        return Err(Violation {
            id: environment.id.to_string(),
            broken: "no session outlives its environment's lease or deadline",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::fixtures::{self, environment, timestamp};
    use super::*;
    use crate::environment::{EndReason, Event};

    #[test]
    fn a_record_that_breaks_a_promise_is_found() {
        assert_eq!(check_environment(&environment()), Ok(()));
        let released = environment()
            .transition(Event::ReleaseRequested(EndReason::Released), timestamp(9))
            .unwrap()
            .unwrap();
        assert_eq!(check_environment(&released), Ok(()));
        type Change = fn(&mut Environment);
        fn place(it: &mut Environment) {
            it.placement = Some(fixtures::placement());
        }
        fn on_a_host(it: &mut Environment) {
            it.resolved.profile.engine = EngineKind::Namespace;
            it.digest = it.resolved.digest();
            it.phase = Phase::Provisioning;
        }
        let mut placed = environment();
        on_a_host(&mut placed);
        place(&mut placed);
        assert_eq!(check_environment(&placed), Ok(()));
        let cases: [(&str, Change); 9] = [
            ("made on a host", on_a_host),
            ("on this machine", place),
            ("lease", |it| it.lease_end = timestamp(7201)),
            ("digest", |it| {
                it.resolved.kubernetes_version = "v1.34.5".into()
            }),
            ("an end", |it| it.dead_at = Some(timestamp(9))),
            ("an end", |it| it.reason = Some(EndReason::Released)),
            ("an end", |it| it.phase = Phase::Failed),
            ("looking", |it| it.gone_at = Some(timestamp(9))),
            ("ready", |it| it.phase = Phase::Ready),
        ];
        for (words, change) in cases {
            let mut broken = environment();
            change(&mut broken);
            let violation = check_environment(&broken).unwrap_err();
            assert!(violation.broken.contains(words), "{words}: {violation}");
        }
    }

    #[test]
    fn a_session_may_last_as_long_as_lease_and_deadline_and_no_longer() {
        let mut environment = environment();
        assert_eq!(check_session(&environment, timestamp(300)), Ok(()));
        assert!(check_session(&environment, timestamp(301)).is_err());
        environment.deadline = timestamp(200);
        assert!(check_session(&environment, timestamp(201)).is_err());
    }
}

/// Values for tests of this crate.
#[cfg(test)]
pub(crate) mod fixtures {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use crate::environment::{Environment, Phase, Placement, Scope};
    use crate::guardrails::Guardrails;
    use crate::identity::{Identity, Job, Named, Run, Runner, Source, VerifiedToken};
    use crate::ids::{EnvironmentId, TokenDigest};
    use crate::profile::{Profile, ResolvedProfile};
    use crate::text::UntrustedText;

    /// `seconds` after the tests' beginning of time.
    pub(crate) fn timestamp(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    pub(crate) fn environment_id(nth: u8) -> EnvironmentId {
        EnvironmentId::from_random([nth; 16])
    }

    pub(crate) fn identity() -> Identity {
        Identity {
            issuer: "https://agent.buildkite.com".into(),
            organization: Named {
                id: "01945ecf-0000-4000-8000-000000000001".into(),
                slug: "acme".into(),
            },
            project: Named {
                id: "01945ecf-0000-4000-8000-000000000002".into(),
                slug: "web".into(),
            },
            run: Run {
                id: "01945ecf-0000-4000-8000-000000000003".into(),
                number: 5,
                url: "https://buildkite.com/acme/web/builds/5".into(),
            },
            job: Job {
                id: "01945ecf-0000-4000-8000-000000000004".into(),
                step_key: Some(UntrustedText::new("test")),
                url: "https://buildkite.com/acme/web/builds/5#01945ecf-0000-4000-8000-000000000004"
                    .into(),
            },
            source: Source {
                branch: Some(UntrustedText::new("main")),
                tag: None,
                commit: UntrustedText::new("b5ffe3aeea51cec6c41aef16e45ee6bce47d8810"),
                trigger: "ui".into(),
            },
            runner: Runner {
                environment: "self-hosted".into(),
                agent_id: "01945ecf-0000-4000-8000-000000000005".into(),
                ..Runner::default()
            },
        }
    }

    pub(crate) fn profile() -> Profile {
        Profile {
            name: "ci-small".into(),
            description: String::new(),
            engine: crate::profile::EngineKind::Local,
            kubernetes: "1.34".into(),
            restricted: false,
            lease_seconds: 300,
            deadline_seconds: 7200,
            session_seconds: 600,
            streams_end_with: crate::profile::StreamEnd::Environment,
            environments_max: None,
            request_bytes_max: 3 * 1024 * 1024,
            memory_bytes_max: Some(crate::profile::MEMORY_BYTES_DEFAULT),
            stored_bytes_max: Some(crate::profile::STORED_BYTES_DEFAULT),
            changes_per_second_max: crate::profile::CHANGES_PER_SECOND_DEFAULT,
            bytes_per_second_max: crate::profile::BYTES_PER_SECOND_DEFAULT,
            manifests: Vec::new(),
            egress: Vec::new(),
            guardrails: Guardrails::default(),
            namespace: None,
        }
    }

    pub(crate) fn placement() -> Placement {
        Placement {
            host: "east".into(),
            namespace: "kubler-env-01".into(),
            accounts_namespace: "kubler-accounts".into(),
            kubernetes_version: "v1.34.4".into(),
        }
    }

    /// Created at 0 with a lease of 300 s and a deadline of 7200 s, in phase Requested.
    pub(crate) fn environment() -> Environment {
        let resolved = ResolvedProfile {
            profile: profile(),
            kubernetes_version: "v1.34.4".into(),
            manifests: BTreeMap::new(),
        };
        Environment {
            id: environment_id(1),
            name: "main".into(),
            scope: Scope::Job,
            identity: identity(),
            digest: resolved.digest(),
            resolved,
            placement: None,
            phase: Phase::Requested,
            reason: None,
            created_at: timestamp(0),
            ready_at: None,
            lease_end: timestamp(300),
            deadline: timestamp(7200),
            dead_at: None,
            gone_at: None,
            version: 0,
        }
    }

    pub(crate) fn verified_token(issued_at: Timestamp) -> VerifiedToken {
        VerifiedToken {
            identity: identity(),
            digest: TokenDigest::of("token"),
            token_id: None,
            issued_at,
            expires_at: crate::lease::after(issued_at, std::time::Duration::from_secs(300)),
        }
    }
}
