//! Policies and golden cases. The input is the text of a file.

use std::collections::BTreeMap;

use crate::policy::{Action, PolicySet, Question, Subject, check, explain, starter, test};

/// No policy that anybody wrote names it.
const FOREIGN: &str = "f0e1d2c3-b4a5-4697-8879-6a5b4c3d2e1f";

fn files(text: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("a.cedar".to_owned(), text.to_owned())])
}

pub(super) fn policy(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let configuration = super::usual();
    let files = files(text);
    let set = match PolicySet::parse(&files, &configuration) {
        Ok(set) => set,
        Err(faults) => {
            assert!(!faults.is_empty());
            let lines = text.lines().count() + 1;
            for fault in faults {
                assert!(fault.line <= lines, "{fault:?}");
                assert!(!fault.message.is_empty() && !fault.hint.is_empty());
            }
            return false;
        }
    };
    let checked = check(&files, &configuration).expect("what is read once is read twice");
    assert_eq!(checked.set.digest(), set.digest());
    assert_eq!(checked.policies.len(), set.len());
    if !text.contains("f0e1") {
        nobody_else_is_let_in(&set);
    }
    true
}

/// Rule C1: a policy that was taken lets in no job of an organization which it does not name.
fn nobody_else_is_let_in(set: &PolicySet) {
    let mut configuration = super::usual();
    configuration.issuers[0].organizations[0].id = FOREIGN.into();
    for action in Action::ALL {
        let question = Question {
            action: *action,
            profile: None,
            environment: None,
        };
        let claims = claims(FOREIGN);
        let answer = explain(set, &configuration, &Subject::Claims(claims), &question);
        let answer = answer.expect("a question that can be asked");
        assert!(!answer.allowed, "{action} by {:?}", answer.policies);
        assert!(answer.detail.is_some() && answer.hint.is_some());
    }
}

fn claims(organization: &str) -> String {
    let id = |last: u8| format!("00000000-0000-4000-8000-{last:012}");
    serde_json::json!({
        "iss": "https://agent.buildkite.com", "organization_id": organization, "organization_slug": "acme",
        "pipeline_id": id(1), "pipeline_slug": "web", "build_id": id(2), "build_number": 7,
        "build_branch": "main", "build_commit": "0".repeat(40), "build_source": "ui",
        "job_id": id(3), "agent_id": id(4), "runner_environment": "self-hosted",
    })
    .to_string()
}

pub(super) fn cases(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let configuration = super::usual();
    let set = PolicySet::parse(&starter(super::ORGANIZATION, "acme"), &configuration)
        .expect("the starter's policies");
    match test(&set, &configuration, "cases.yaml", text) {
        Ok(report) => {
            assert!(!report.cases.is_empty());
            assert_eq!(report.passed(), report.failures() == 0);
            let again = test(&set, &configuration, "cases.yaml", text);
            assert_eq!(again.ok(), Some(report), "a case has one answer");
            true
        }
        Err(fault) => {
            assert!(!fault.message.is_empty() && !fault.hint.is_empty());
            false
        }
    }
}
