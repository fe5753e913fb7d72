use super::*;
use crate::configuration::Configuration;
use crate::invariants::fixtures;
use crate::profile::ResolvedProfile;
use std::collections::BTreeMap;

mod decisions;
mod examples;
mod rules;
mod speed;

const ORGANIZATION: &str = "01945ecf-0000-4000-8000-000000000001";
const OTHER_ORGANIZATION: &str = "01945ecf-0000-4000-8000-0000000000ff";

/// Two organizations of one issuer, a full and a restricted profile.
fn configuration() -> Configuration {
    let text = format!(
        r#"
url: https://kubler.test:8443
issuers:
  - kind: buildkite
    audience: https://kubler.test:8443
    organizations:
      - {{id: "{ORGANIZATION}", slug: acme}}
      - {{id: "{OTHER_ORGANIZATION}", slug: umbrella}}
kubernetes: {{"1.34": {{}}}}
profiles:
  - {{name: ci-small, kubernetes: "1.34"}}
  - {{name: untrusted, kubernetes: "1.34", restricted: true}}
"#
    );
    let configuration: Configuration = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(configuration.faults(), []);
    configuration
}

fn with_prefixed_forks() -> Configuration {
    let mut configuration = configuration();
    configuration.issuers[0].organizations[0].fork_branches_are_prefixed = true;
    configuration
}

fn set_of(text: &str) -> PolicySet {
    parse(text).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

fn parse(text: &str) -> Result<PolicySet, Vec<PolicyFault>> {
    PolicySet::parse(
        &BTreeMap::from([("a.cedar".to_owned(), text.to_owned())]),
        &configuration(),
    )
}

/// The only fault of `text`.
fn fault_of(text: &str) -> PolicyFault {
    let mut faults = parse(text).expect_err(text);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

fn starter_set(configuration: &Configuration) -> PolicySet {
    PolicySet::parse(&starter(ORGANIZATION, "acme"), configuration)
        .unwrap_or_else(|faults| panic!("{faults:#?}"))
}

fn job(change: impl FnOnce(&mut Identity)) -> Caller {
    let mut identity = fixtures::identity();
    change(&mut identity);
    Caller::Job(Box::new(identity))
}

fn operator() -> Caller {
    Caller::Operator(Operator {
        name: "alice".into(),
    })
}

fn profile(name: &str) -> Target {
    let profile = configuration().profile(name).unwrap().clone();
    Target::Profile(Box::new(ResolvedProfile {
        profile,
        kubernetes_version: "v1.34.4".into(),
        manifests: BTreeMap::new(),
    }))
}

fn environment(change: impl FnOnce(&mut Environment)) -> Target {
    let mut environment = fixtures::environment();
    change(&mut environment);
    Target::Environment(Box::new(environment))
}

const OF_ENVIRONMENTS: [Action; 5] = [
    Action::ReadEnvironment,
    Action::RenewEnvironment,
    Action::ReleaseEnvironment,
    Action::IssueSession,
    Action::UseKubernetes,
];
