//! What is answered: the starter policies, the rules above all policies, and what a denial says.

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::environment::Scope;
use crate::text::UntrustedText;

fn allows(set: &PolicySet, caller: &Caller, action: Action, target: Target) -> bool {
    set.decide(caller, action, target).is_ok()
}

#[test]
fn an_empty_set_denies_everything() {
    let set = PolicySet::parse(&BTreeMap::new(), &configuration()).unwrap();
    for caller in [job(|_| ()), operator()] {
        for action in Action::ALL {
            let target = match action.target() {
                TargetKind::Profile => profile("ci-small"),
                TargetKind::Environment => environment(|_| ()),
                TargetKind::Server => Target::Server,
            };
            let denial = set.decide(&caller, *action, target).unwrap_err();
            assert!(denial.grounds.policies.is_empty() && denial.closest.is_empty());
            assert!(
                denial.hint.contains("no policy is loaded"),
                "{}",
                denial.hint
            );
        }
    }
}

#[test]
fn a_permit_says_by_which_policies_and_which_set() {
    let set = starter_set(&configuration());
    let permit = set
        .decide(
            &job(|_| ()),
            Action::CreateEnvironment,
            profile("untrusted"),
        )
        .unwrap();
    assert_eq!(
        permit.grounds().policies,
        ["acme/create", "acme/create-restricted"]
    );
    assert_eq!(permit.grounds().policy_digest, set.digest());
    let Target::Profile(resolved) = profile("untrusted") else {
        panic!("a profile")
    };
    assert_eq!(permit.spend_on_profile(&resolved), Ok(()));
    let set = set_of("\npermit (principal is Operator, action, resource);");
    let permit = set
        .decide(&operator(), Action::ReadLedger, Target::Server)
        .unwrap();
    assert_eq!(permit.grounds().policies, ["a.cedar:2"]);
}

#[test]
fn a_permit_is_spent_on_nothing_but_what_it_was_given_for() {
    let set = starter_set(&configuration());
    let environment = crate::invariants::fixtures::environment();
    let caller = Caller::Job(Box::new(environment.identity.clone()));
    let for_release = || {
        let target = Target::Environment(Box::new(environment.clone()));
        set.decide(&caller, Action::ReleaseEnvironment, target)
            .unwrap()
    };
    let spent = for_release().spend_on_environment(Action::ReleaseEnvironment);
    assert_eq!(spent, Ok(environment.id));
    assert!(
        for_release()
            .spend_on_environment(Action::IssueSession)
            .is_err()
    );
    assert!(
        for_release()
            .spend_on_profile(&environment.resolved)
            .is_err()
    );
    let (Target::Profile(small), target) = (profile("ci-small"), profile("untrusted")) else {
        panic!("profiles")
    };
    let for_other = set
        .decide(&job(|_| ()), Action::CreateEnvironment, target)
        .unwrap();
    assert!(for_other.spend_on_profile(&small).is_err());
}

/// C5: who gets the full profile under the starter policies.
#[rstest]
#[case("ui", Some("main"), true, true)]
#[case("api", Some("main"), true, true)]
#[case("schedule", Some("main"), true, true)]
#[case("webhook", Some("main"), false, true)]
#[case("webhook", Some("feature/x"), false, true)]
#[case("webhook", Some("someone:main"), false, false)]
#[case("webhook", None, false, false)]
#[case("trigger_job", Some("main"), false, true)]
#[case("ui", Some("someone:main"), false, false)]
#[case("something_new", Some("main"), false, true)]
fn c5_a_build_that_anybody_may_have_triggered_gets_restricted_profiles_only(
    #[case] source: &str,
    #[case] branch: Option<&str>,
    #[case] full: bool,
    #[case] full_when_prefixed: bool,
) {
    let caller = job(|identity| {
        identity.source.trigger = source.into();
        identity.source.branch = branch.map(UntrustedText::new);
    });
    for (configuration, expected) in [
        (configuration(), full),
        (with_prefixed_forks(), full_when_prefixed),
    ] {
        let set = starter_set(&configuration);
        assert_eq!(
            allows(
                &set,
                &caller,
                Action::CreateEnvironment,
                profile("ci-small")
            ),
            expected
        );
        assert!(allows(
            &set,
            &caller,
            Action::CreateEnvironment,
            profile("untrusted")
        ));
    }
}

#[test]
fn c5_what_one_organization_states_of_its_forks_does_not_hold_for_another() {
    let mut configuration = configuration();
    configuration.issuers[0].organizations[1].fork_branches_are_prefixed = true;
    let caller = job(|identity| identity.source.trigger = "webhook".into());
    assert!(!allows(
        &starter_set(&configuration),
        &caller,
        Action::CreateEnvironment,
        profile("ci-small")
    ));
}

#[test]
fn c1_another_organization_gets_nothing_from_the_starter_policies() {
    let set = starter_set(&with_prefixed_forks());
    // Everything equal, down to job and build, but the organization.
    let caller = job(|identity| identity.organization.id = OTHER_ORGANIZATION.into());
    for action in Action::ALL {
        let target = match action.target() {
            TargetKind::Profile => profile("untrusted"),
            TargetKind::Environment => environment(|_| ()),
            TargetKind::Server => Target::Server,
        };
        let denial = set.decide(&caller, *action, target).unwrap_err();
        assert!(
            denial.closest.is_empty(),
            "{action} tells of another organization's policies: {denial:?}"
        );
        assert!(!format!("{denial:?}").contains(ORGANIZATION), "{denial:?}");
    }
}

#[test]
fn c1_another_issuer_is_another_organization() {
    let set = starter_set(&configuration());
    let caller = job(|identity| identity.issuer = "https://ci.example".into());
    for action in OF_ENVIRONMENTS {
        assert!(
            !allows(
                &set,
                &caller,
                action,
                environment(|found| found.scope = Scope::Build)
            ),
            "{action}"
        );
    }
}

#[rstest]
#[case("main:x\" || true || \"")]
#[case("x\\\" }; permit (principal, action, resource); //")]
#[case("release/1\u{0}")]
#[case("*")]
fn c6_untrusted_text_is_only_ever_a_value(#[case] branch: &str) {
    let set = set_of(&format!(
        "permit (principal is Job, action, resource) when {{ principal.organization_id == \"{ORGANIZATION}\" && principal has branch && (principal.branch == \"main\" || principal.branch like \"release/?\") }};"
    ));
    let caller = job(|identity| {
        identity.source.branch = Some(UntrustedText::new(branch));
        identity.job.step_key = Some(UntrustedText::new(branch));
    });
    let denial = set
        .decide(&caller, Action::CreateEnvironment, profile("ci-small"))
        .unwrap_err();
    assert!(!denial.hint.contains('\u{0}'));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn c6_no_text_opens_the_full_profile_to_a_webhook(branch in any::<String>(), step in any::<String>(), tag in any::<String>()) {
        let set = starter_set(&configuration());
        let caller = job(|identity| {
            identity.source.trigger = "webhook".into();
            identity.source.branch = Some(UntrustedText::new(&branch));
            identity.source.tag = Some(UntrustedText::new(&tag));
            identity.job.step_key = Some(UntrustedText::new(&step));
        });
        prop_assert!(!allows(&set, &caller, Action::CreateEnvironment, profile("ci-small")));
    }
}

#[test]
fn c8_an_environment_is_for_its_own_job_only() {
    let set = starter_set(&configuration());
    let sibling = job(|identity| identity.job.id = "01945ecf-0000-4000-8000-0000000000bb".into());
    for action in OF_ENVIRONMENTS {
        assert!(
            allows(&set, &job(|_| ()), action, environment(|_| ())),
            "{action}"
        );
        let expected = action == Action::ReadEnvironment;
        assert_eq!(
            allows(&set, &sibling, action, environment(|_| ())),
            expected,
            "{action}"
        );
        // Of the same build and made for it.
        assert!(
            allows(
                &set,
                &sibling,
                action,
                environment(|found| found.scope = Scope::Build)
            ),
            "{action}"
        );
    }
}

#[test]
fn c8_a_shared_environment_is_for_its_own_build_only() {
    let set = starter_set(&configuration());
    let shared = || environment(|found| found.scope = Scope::Build);
    let other_build =
        job(|identity| identity.run.id = "01945ecf-0000-4000-8000-0000000000bb".into());
    let other_pipeline =
        job(|identity| identity.project.id = "01945ecf-0000-4000-8000-0000000000bb".into());
    for action in OF_ENVIRONMENTS {
        assert_eq!(
            allows(&set, &other_build, action, shared()),
            action == Action::ReadEnvironment,
            "{action}"
        );
        assert!(!allows(&set, &other_pipeline, action, shared()), "{action}");
    }
}

#[test]
fn c8_no_policy_widens_who_may_use_an_environment() {
    let set = set_of(&format!(
        "permit (principal is Job, action, resource) when {{ principal.organization_id == \"{ORGANIZATION}\" }};"
    ));
    let sibling = job(|identity| identity.job.id = "01945ecf-0000-4000-8000-0000000000bb".into());
    for action in OF_ENVIRONMENTS {
        let answer = set.decide(&sibling, action, environment(|_| ()));
        match action {
            Action::ReadEnvironment => assert!(answer.is_ok()),
            _ => assert!(
                answer
                    .unwrap_err()
                    .detail
                    .contains("belongs to another job")
            ),
        }
    }
}

#[test]
fn operators_observe_and_end_and_do_nothing_in_a_jobs_name() {
    let set = starter_set(&configuration());
    for action in Action::ALL {
        let (target, expected) = match action {
            Action::CreateEnvironment => (profile("ci-small"), false),
            Action::RenewEnvironment | Action::IssueSession | Action::UseKubernetes => {
                (environment(|_| ()), false)
            }
            Action::ReadEnvironment | Action::ReleaseEnvironment => (environment(|_| ()), true),
            Action::ReadTrace
            | Action::ReadLedger
            | Action::ReadCheckpoint
            | Action::ReadMetrics
            | Action::ReadApprovals
            | Action::AnswerApproval => (Target::Server, true),
        };
        assert_eq!(
            allows(&set, &operator(), *action, target),
            expected,
            "{action}"
        );
    }
}

#[test]
fn jobs_search_and_keep_the_checkpoint_and_read_no_ledger() {
    let set = starter_set(&configuration());
    for (action, expected) in [
        (Action::ReadTrace, true),
        (Action::ReadCheckpoint, true),
        (Action::ReadLedger, false),
        (Action::ReadMetrics, false),
        (Action::ReadApprovals, false),
        (Action::AnswerApproval, false),
    ] {
        assert_eq!(
            allows(&set, &job(|_| ()), action, Target::Server),
            expected,
            "{action}"
        );
    }
}

#[test]
fn a_forbid_stands_above_every_permit_and_is_named() {
    let set = set_of(
        "permit (principal is Operator, action, resource);\n@id(\"no-ledger\") forbid (principal, action == Action::\"read_ledger\", resource);",
    );
    assert!(allows(
        &set,
        &operator(),
        Action::ReadMetrics,
        Target::Server
    ));
    let denial = set
        .decide(&operator(), Action::ReadLedger, Target::Server)
        .unwrap_err();
    assert_eq!(denial.grounds.policies, ["no-ledger"]);
    assert!(denial.to_string().contains("`no-ledger` forbids it"));
}

#[test]
fn a_policy_that_cannot_be_evaluated_denies_also_when_another_permits() {
    // Overflows for every build but number 0. The engine passes over it; a forbid that is passed over is an open door.
    let set = set_of(&format!(
        "permit (principal is Job, action, resource) when {{ principal.organization_id == \"{ORGANIZATION}\" }};
@id(\"broken\") forbid (principal is Job, action, resource) when {{ principal.build_number * 9223372036854775807 > 10 }};"
    ));
    assert!(allows(
        &set,
        &job(|identity| identity.run.number = 0),
        Action::CreateEnvironment,
        profile("ci-small")
    ));
    let denial = set
        .decide(
            &job(|identity| identity.run.number = 5),
            Action::CreateEnvironment,
            profile("ci-small"),
        )
        .unwrap_err();
    assert_eq!(denial.grounds.policies, ["broken"]);
    assert!(denial.to_string().contains("cannot be evaluated"));
}

#[test]
fn an_action_on_the_wrong_kind_of_target_is_denied() {
    let set = set_of("permit (principal is Operator, action, resource);");
    assert!(!allows(
        &set,
        &operator(),
        Action::CreateEnvironment,
        Target::Server
    ));
    assert!(!allows(
        &set,
        &operator(),
        Action::ReadLedger,
        profile("ci-small")
    ));
    assert!(!allows(
        &set,
        &operator(),
        Action::ReadEnvironment,
        Target::Server
    ));
}

#[test]
fn a_denial_names_the_nearest_permits_and_what_they_failed_on() {
    let set = set_of(&format!(
        r#"
@id("far") permit (principal is Job, action == Action::"create_environment", resource is Profile)
when {{ principal.organization_id == "{ORGANIZATION}" && principal.build_number > 100 && principal has tag }} unless {{ resource.restricted || principal.build_source == "ui" }};
@id("near") permit (principal is Job, action == Action::"create_environment", resource is Profile)
when {{ principal.organization_id == "{ORGANIZATION}" && principal has branch && principal.branch == "release" }};
@id("other-action") permit (principal is Job, action == Action::"read_metrics", resource)
when {{ principal.organization_id == "{ORGANIZATION}" }};
@id("theirs") permit (principal is Job, action, resource is Profile)
when {{ principal.organization_id == "{OTHER_ORGANIZATION}" }};
"#
    ));
    let denial = set
        .decide(&job(|_| ()), Action::CreateEnvironment, profile("ci-small"))
        .unwrap_err();
    insta::assert_snapshot!(format!("{denial}\nhint: {}\n{:#?}", denial.hint, denial.closest), @r#"
    this job may not create an environment of profile `ci-small`: no policy allows it; `near` failed on: principal.branch == "release"
    hint: nearest is `near`, and this job has branch `main`: change the policy, or run the job so that it holds
    [
        NearMiss {
            policy: "near",
            failed: [
                "principal.branch == \"release\"",
            ],
        },
        NearMiss {
            policy: "far",
            failed: [
                "principal.build_number > 100",
                "principal has tag",
                "not (principal.build_source == \"ui\")",
            ],
        },
    ]
    "#);
}

#[test]
fn a_condition_that_relies_on_a_missing_attribute_is_not_counted_twice() {
    let set = set_of(&format!(
        "permit (principal is Job, action, resource) when {{ principal.organization_id == \"{ORGANIZATION}\" && principal has tag && principal.tag like \"v*\" }};"
    ));
    let denial = set
        .decide(&job(|_| ()), Action::CreateEnvironment, profile("ci-small"))
        .unwrap_err();
    assert_eq!(denial.closest[0].failed, ["principal has tag"]);
    assert!(denial.hint.contains("no tag"), "{}", denial.hint);
}

#[test]
fn a_webhook_is_told_how_to_get_an_environment() {
    let set = starter_set(&configuration());
    let caller = job(|identity| identity.source.trigger = "webhook".into());
    let denial = set
        .decide(&caller, Action::CreateEnvironment, profile("ci-small"))
        .unwrap_err();
    insta::assert_snapshot!(format!("{denial}\nhint: {}", denial.hint), @r"
    this job may not create an environment of profile `ci-small`: no policy allows it; `acme/create-restricted` failed on: resource.restricted
    hint: nearest is `acme/create-restricted`: ask for a profile with `restricted: true`; builds that anybody may have triggered get no other until the configuration states `fork_branches_are_prefixed: true` and the branch is not a fork's
    ");
}

#[test]
fn the_schema_and_the_values_say_the_same() {
    let schema = cedar_policy::Schema::from_cedarschema_str(SCHEMA)
        .unwrap()
        .0;
    let set = starter_set(&configuration());
    let full = job(|identity| {
        identity.source.tag = Some(UntrustedText::new("v1"));
        identity.runner.cluster_id = Some("c".into());
        identity.runner.queue_id = Some("q".into());
        identity.runner.queue_key = Some(UntrustedText::new("k"));
    });
    let bare = job(|identity| {
        identity.source.branch = None;
        identity.job.step_key = None;
    });
    let targets = || [profile("ci-small"), environment(|_| ()), Target::Server];
    for caller in [full, bare, operator()] {
        for target in targets() {
            for described in [
                attributes::principal(&caller, set.forks(&caller)),
                attributes::resource(&target),
            ] {
                let uid = format!("{}::\"{}\"", described.kind, described.id)
                    .parse()
                    .unwrap();
                let entity = described.entity(uid).unwrap();
                // Fails for an attribute that is missing, too much, or of another type.
                cedar_policy::Entities::from_entities([entity], Some(&schema)).unwrap();
            }
        }
    }
    let known: std::collections::BTreeSet<_> = schema
        .actions()
        .map(|uid| uid.id().unescaped().to_owned())
        .collect();
    assert_eq!(
        known,
        Action::ALL
            .iter()
            .map(|action| action.as_str().to_owned())
            .collect()
    );
    for action in Action::ALL {
        assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
        assert_eq!(Action::from_word(action.as_str()), Some(*action));
    }
}

#[test]
fn starter_policies_cannot_be_broken_out_of() {
    let files = starter("01945ecf\" || true // \n", "../a\"b\n/../operators");
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["aboperators.cedar", "operators.cedar"]);
    assert!(files.values().all(|text| !text.contains("|| true")));
    assert_eq!(starter("x", "operators").len(), 2);
}
