use serde_json::{Value, json};

use super::*;

const ID: &str = "01945ecf-0000-4000-8000-00000000000a";

fn good() -> Value {
    json!({
        "url": "https://kubler.test:8443",
        "issuers": [{ "kind": "buildkite", "audience": "https://kubler.test:8443", "organizations": [{ "id": ID, "slug": "acme" }] }],
        "kubernetes": { "1.34": {} },
        "profiles": [{ "name": "ci-small", "kubernetes": "1.34", "egress": ["hooks.example:443", "10.0.0.7:8443"] }],
    })
}

fn read(value: Value) -> Configuration {
    serde_json::from_value(value).unwrap()
}

/// The good configuration with `value` at `pointer`, where a last `-` appends to a list.
fn changed(pointer: &str, value: &Value) -> Configuration {
    let mut all = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match all.pointer_mut(parent).unwrap() {
        Value::Array(list) if key == "-" => list.push(value.clone()),
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
        Value::Object(map) => _ = map.insert(key.to_owned(), value.clone()),
        other => panic!("{parent} is {other}"),
    }
    read(all)
}

#[test]
fn a_good_configuration_has_no_fault() {
    assert_eq!(read(good()).faults(), []);
}

#[test]
fn t9_every_fault_is_found_and_named_by_its_key() {
    let again = good()["issuers"][0].clone();
    let profile = good()["profiles"][0].clone();
    let cases = [
        (
            "/listen",
            json!("8443"),
            "listen",
            "`8443` is not `address:port`",
        ),
        (
            "/listen",
            json!("localhost:https"),
            "listen",
            "is not `address:port`",
        ),
        (
            "/url",
            json!("http://kubler.test"),
            "url",
            "is not `https://name:port`",
        ),
        (
            "/url",
            json!("https://"),
            "url",
            "is not `https://name:port`",
        ),
        (
            "/url",
            json!("https://kubler.test/path"),
            "url",
            "is not `https://name:port`",
        ),
        (
            "/url",
            json!("https://user@kubler.test"),
            "url",
            "is not `https://name:port`",
        ),
        ("/issuers", json!([]), "issuers", "no issuer"),
        ("/issuers/-", again, "issuers[1].url", "listed twice"),
        (
            "/issuers/0/url",
            json!("http://agent.buildkite.com"),
            "issuers[0].url",
            "is not https",
        ),
        (
            "/issuers/0/audience",
            json!(" "),
            "issuers[0].audience",
            "cannot be the audience",
        ),
        (
            "/issuers/0/audience",
            json!("https://buildkite.com/acme"),
            "issuers[0].audience",
            "cannot be the audience",
        ),
        (
            "/issuers/0/organizations",
            json!([]),
            "issuers[0].organizations",
            "no organization",
        ),
        (
            "/issuers/0/organizations/0/id",
            json!("acme"),
            "issuers[0].organizations[0].id",
            "`acme` is not a UUID",
        ),
        (
            "/issuers/0/organizations/-",
            json!({ "id": ID.to_uppercase(), "slug": "other" }),
            "issuers[0].organizations[1].id",
            "listed twice",
        ),
        (
            "/issuers/0/token_seconds_max",
            json!(59),
            "issuers[0].token_seconds_max",
            "59 is out of bounds",
        ),
        (
            "/issuers/0/token_seconds_max",
            json!(601),
            "issuers[0].token_seconds_max",
            "601 is out of bounds",
        ),
        (
            "/issuers/0/clock_skew_seconds",
            json!(61),
            "issuers[0].clock_skew_seconds",
            "61 is out of bounds",
        ),
        ("/profiles", json!([]), "profiles", "no profile"),
        ("/profiles/-", profile, "profiles[1].name", "listed twice"),
        (
            "/profiles/0/name",
            json!(""),
            "profiles[0].name",
            "is not a profile's name",
        ),
        (
            "/profiles/0/name",
            json!("CI"),
            "profiles[0].name",
            "`CI` is not a profile's name",
        ),
        (
            "/profiles/0/name",
            json!("a".repeat(64)),
            "profiles[0].name",
            "is not a profile's name",
        ),
        (
            "/profiles/0/kubernetes",
            json!("1.33"),
            "profiles[0].kubernetes",
            "`1.33` is not a key",
        ),
        (
            "/profiles/0/lease_seconds",
            json!(4),
            "profiles[0].lease_seconds",
            "4 is out of bounds",
        ),
        (
            "/profiles/0/lease_seconds",
            json!(3601),
            "profiles[0].lease_seconds",
            "3601 is out of bounds",
        ),
        (
            "/profiles/0/deadline_seconds",
            json!(299),
            "profiles[0].deadline_seconds",
            "299 is out of bounds",
        ),
        (
            "/profiles/0/deadline_seconds",
            json!(86_401),
            "profiles[0].deadline_seconds",
            "86401 is out of bounds",
        ),
        (
            "/profiles/0/session_seconds",
            json!(4),
            "profiles[0].session_seconds",
            "4 is out of bounds",
        ),
        (
            "/profiles/0/session_seconds",
            json!(601),
            "profiles[0].session_seconds",
            "601 is out of bounds",
        ),
        (
            "/profiles/0/environments_max",
            json!(0),
            "profiles[0].environments_max",
            "0 is out of bounds",
        ),
        (
            "/profiles/0/request_bytes_max",
            json!(1023),
            "profiles[0].request_bytes_max",
            "1023 is out of bounds",
        ),
        (
            "/profiles/0/memory_bytes_max",
            json!(256 << 20),
            "profiles[0].memory_bytes_max",
            "268435456 is out of bounds",
        ),
        (
            "/profiles/0/stored_bytes_max",
            json!(1000),
            "profiles[0].stored_bytes_max",
            "1000 is out of bounds",
        ),
        (
            "/profiles/0/changes_per_second_max",
            json!(0),
            "profiles[0].changes_per_second_max",
            "0 is out of bounds",
        ),
        (
            "/profiles/0/bytes_per_second_max",
            json!(1024),
            "profiles[0].bytes_per_second_max",
            "1024 is out of bounds",
        ),
        (
            "/profiles/0/egress/-",
            json!("hooks.example"),
            "profiles[0].egress[2]",
            "`hooks.example` is not `name:port`",
        ),
        (
            "/profiles/0/egress/0",
            json!("*.example:443"),
            "profiles[0].egress[0]",
            "is not `name:port`",
        ),
        (
            "/limits",
            json!({ "environments_max": 0 }),
            "limits.environments_max",
            "0 is out of bounds",
        ),
        (
            "/limits",
            json!({ "queue_max": 0 }),
            "limits.queue_max",
            "0 is out of bounds",
        ),
        (
            "/limits",
            json!({ "provisioning_max": 0 }),
            "limits.provisioning_max",
            "0 is out of bounds",
        ),
        (
            "/limits",
            json!({ "environments_per_job_max": 0 }),
            "limits.environments_per_job_max",
            "0 is out of bounds",
        ),
        (
            "/limits",
            json!({ "connections_max": 0 }),
            "limits.connections_max",
            "0 is out of bounds",
        ),
        (
            "/ledger",
            json!({ "checkpoint_seconds": 0 }),
            "ledger.checkpoint_seconds",
            "0 is out of bounds",
        ),
        (
            "/ledger",
            json!({ "refusal_bytes_per_hour_max": 0 }),
            "ledger.refusal_bytes_per_hour_max",
            "0 is out of bounds",
        ),
        (
            "/ledger",
            json!({ "sinks": [{}] }),
            "ledger.sinks[0]",
            "neither a file nor an address",
        ),
        (
            "/ledger",
            json!({ "sinks": [{ "file": "a", "token_file": "t" }] }),
            "ledger.sinks[0]",
            "belong to a `url`",
        ),
        (
            "/ledger",
            json!({ "sinks": [{ "url": "http://log.example" }] }),
            "ledger.sinks[0].url",
            "is not `https://name/path`",
        ),
        (
            "/ledger",
            json!({ "sinks": [{ "file": "a" }, { "file": "a" }] }),
            "ledger.sinks[1]",
            "listed twice",
        ),
    ];
    for (pointer, value, key, message) in cases {
        let faults = changed(pointer, &value).faults();
        let [fault] = faults.as_slice() else {
            panic!("{pointer} = {value}: {faults:?}")
        };
        assert_eq!(fault.key, key, "{pointer} = {value}");
        assert!(
            fault.message.contains(message),
            "{pointer} = {value}: {fault}"
        );
        assert!(
            !fault.hint.is_empty() && !fault.hint.ends_with('.'),
            "{fault:?}"
        );
    }
}

#[test]
fn t9_an_egress_entry_that_could_never_be_reached_is_a_fault() {
    for listed in [
        "127.0.0.1:443",
        "localhost:443",
        "LocalHost.:443",
        "db.localhost:5432",
        "[::1]:443",
        "[fe80::1]:443",
        "169.254.169.254:80",
        "[::ffff:127.0.0.1]:80",
        "0.0.0.0:1",
        "224.0.0.1:1",
        "100.100.100.200:80",
    ] {
        let faults = changed("/profiles/0/egress/0", &json!(listed)).faults();
        let [fault] = faults.as_slice() else {
            panic!("{listed}: {faults:?}")
        };
        assert_eq!(fault.key, "profiles[0].egress[0]", "{listed}");
        assert!(fault.message.contains("can never be reached"), "{fault}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let mut all = good();
    all["url"] = json!("http://x");
    all["profiles"][0]["lease_seconds"] = json!(1);
    all["limits"] = json!({ "queue_max": 0 });
    let keys: Vec<_> = read(all)
        .faults()
        .into_iter()
        .map(|fault| fault.key)
        .collect();
    assert_eq!(
        keys,
        ["url", "profiles[0].lease_seconds", "limits.queue_max"]
    );
}

#[test]
fn an_organization_is_found_in_whatever_form_its_uuid_is_written() {
    let simple = ID.replace('-', "");
    for written in [
        ID.to_uppercase(),
        simple,
        format!("{{{ID}}}"),
        format!(" {ID} "),
    ] {
        let configuration = changed("/issuers/0/organizations/0/id", &json!(written));
        assert_eq!(configuration.faults(), [], "{written}");
        assert!(
            configuration.issuers[0].organization(ID).is_some(),
            "{written}"
        );
    }
}

#[test]
fn the_ledger_is_named_after_the_server_unless_it_has_a_name() {
    let mut configuration = read(good());
    assert_eq!(configuration.ledger_origin(), "kubler.test:8443/ledger");
    configuration.ledger.origin = Some("acme.test/ci".into());
    assert_eq!(configuration.ledger_origin(), "acme.test/ci");
}
