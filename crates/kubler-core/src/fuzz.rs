//! What must hold for every input, whoever wrote it: one property for each reader of strangers' text.
//!
//! Compiled for tests and for the fuzzer only (`make fuzz`, folder `fuzz/` of the repository). Each property takes
//! bytes and panics when it does not hold. It says whether the input was taken, so that a test can see that the
//! seeds reach further than the first refusal. The seeds, in `fuzz/seeds/NAME/`, are run by ordinary tests.

mod artifact;
mod configuration;
mod frames;
mod ledger;
mod policy;
mod request;
mod token;

/// A property. `true` means that the reader took the input.
pub type Property = fn(&[u8]) -> bool;

/// Every property, by the name of its fuzz target and of its folder of seeds.
pub const PROPERTIES: [(&str, Property); 12] = [
    ("token", token::token),
    ("path", request::path),
    ("headers", request::headers),
    ("policy", policy::policy),
    ("cases", policy::cases),
    ("configuration", configuration::configuration),
    ("record", ledger::record),
    ("notes", ledger::notes),
    ("verify", ledger::verify),
    ("websocket", frames::websocket),
    ("spdy", frames::spdy),
    ("artifact", artifact::artifact),
];

/// Runs one property.
///
/// # Panics
/// When the property does not hold, or when there is none of this name.
pub fn run(name: &str, input: &[u8]) -> bool {
    let property = PROPERTIES.iter().find(|(known, _)| *known == name);
    let (_, property) = property.unwrap_or_else(|| panic!("there is no property `{name}`"));
    property(input)
}

/// Organization of [`CONFIGURATION`].
const ORGANIZATION: &str = "01945ecf-0000-4000-8000-000000000001";

/// A configuration as an operator writes it.
const CONFIGURATION: &str = r#"
url: https://kubler.test:8443
issuers:
  - kind: buildkite
    audience: https://kubler.test:8443
    organizations:
      - {id: "01945ecf-0000-4000-8000-000000000001", slug: acme, fork_branches_are_prefixed: true}
kubernetes: {"1.34": {}}
profiles:
  - {name: ci-small, kubernetes: "1.34"}
  - {name: untrusted, kubernetes: "1.34", restricted: true}
"#;

fn usual() -> crate::configuration::Configuration {
    serde_saphyr::from_str(CONFIGURATION).expect("the configuration of the properties is one")
}

#[cfg(test)]
mod tests;
