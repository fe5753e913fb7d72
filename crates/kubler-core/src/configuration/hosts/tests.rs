use serde_json::{Value, json};

use super::*;

fn good() -> Value {
    json!({
        "url": "https://kubler.test:8443",
        "issuers": [{
            "kind": "buildkite", "audience": "https://kubler.test:8443",
            "organizations": [{ "id": "01945ecf-0000-4000-8000-00000000000a", "slug": "acme" }],
        }],
        "kubernetes": { "1.34": {} },
        "hosts": [{ "name": "east", "kubeconfig": "hosts/east.yaml", "labels": {"region": "east"} }],
        "profiles": [
            { "name": "preview", "engine": "namespace", "namespace": {
                "hosts": {"region": "east"},
                "quota": {"pods": "20", "requests.cpu": "4"},
                "limits": {"default": {"cpu": "500m"}},
                "network": {"isolation": "required", "allow": [{"to": "203.0.113.0/24", "ports": [443]}]},
                "secrets": [{"name": "registry", "files": {".dockerconfigjson": "secrets/registry"}}],
                "strip_finalizers": [{"group": "example.com", "resource": "widgets", "finalizer": "example.com/guard"}],
            } },
            { "name": "bare", "engine": "namespace" },
            { "name": "ci-small", "kubernetes": "1.34" },
        ],
    })
}

/// The faults of the good configuration with `value` at `pointer`, as `key: message`.
fn faults(pointer: &str, value: Value) -> Vec<String> {
    let mut all = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match all.pointer_mut(parent).unwrap() {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Object(map) => _ = map.insert(key.to_owned(), value),
        other => panic!("{parent} is {other}"),
    }
    let read: Configuration = serde_json::from_value(all).unwrap();
    let faults = read.faults().into_iter();
    faults
        .map(|fault| {
            assert!(!fault.hint.is_empty(), "{fault}");
            fault.to_string()
        })
        .collect()
}

#[test]
fn hosts_and_profiles_for_them_have_no_fault_when_they_are_right() {
    assert_eq!(faults("/log", json!("info")), [] as [String; 0]);
}

#[test]
fn t9_what_means_nothing_for_an_engine_is_a_fault_of_its_profiles() {
    for (profile, key, value, other) in [
        (0, "kubernetes", json!("1.34"), "namespace"),
        (0, "memory_bytes_max", json!(536_870_912), "namespace"),
        (0, "stored_bytes_max", json!(134_217_728), "namespace"),
        (0, "egress", json!(["hooks.example:443"]), "namespace"),
        (2, "namespace", json!({}), "local"),
    ] {
        assert_eq!(
            faults(&format!("/profiles/{profile}/{key}"), value),
            [format!(
                "`profiles[{profile}].{key}`: it means nothing for the engine `{other}`"
            )]
        );
    }
}

#[test]
fn t9_every_fault_of_hosts_and_namespaces_is_found_and_named_by_its_key() {
    let again = good()["hosts"][0].clone();
    let deny =
        json!([{"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}]);
    for (pointer, value, says) in [
        ("/hosts/-", again, "`hosts[1].name`: `east` is listed twice"),
        (
            "/hosts/0/name",
            json!("East"),
            "`hosts[0].name`: `East` is not a host's name",
        ),
        (
            "/hosts/0/in_cluster",
            json!(true),
            "`hosts[0].kubeconfig`: a host is reached by",
        ),
        (
            "/hosts/0/kubeconfig",
            Value::Null,
            "`hosts[0].kubeconfig`: a host is reached by",
        ),
        (
            "/hosts/0/environments_max",
            json!(0),
            "`hosts[0].environments_max`: 0 is out of bounds",
        ),
        (
            "/hosts/0/namespace_prefix",
            json!("kubler"),
            "`hosts[0].namespace_prefix`: `kubler` cannot",
        ),
        (
            "/hosts/0/namespace_prefix",
            json!("a".repeat(31) + "-"),
            "`hosts[0].namespace_prefix`",
        ),
        (
            "/hosts/0/accounts_namespace",
            json!("kubler-env-x"),
            "`hosts[0].accounts_namespace`",
        ),
        (
            "/profiles/0/namespace/hosts",
            json!({"region": "west"}),
            "`profiles[0].namespace.hosts`: no host has",
        ),
        (
            "/profiles/0/namespace/quota",
            json!({"pods": "many"}),
            "`profiles[0].namespace.quota.pods`: `many` is not",
        ),
        (
            "/profiles/0/namespace/limits",
            json!({"max": {"cpu": "-1"}}),
            "`profiles[0].namespace.limits.max.cpu`",
        ),
        (
            "/profiles/0/namespace/network",
            json!({"allow": [{}]}),
            "`profiles[0].namespace.network.allow[0]`: an exception",
        ),
        (
            "/profiles/0/namespace/network",
            json!({"allow": [{"to": "x"}]}),
            "is not a range of addresses",
        ),
        (
            "/profiles/0/namespace/network",
            json!({"allow": [{"to": "169.254.169.254/32"}]}),
            "stay closed",
        ),
        (
            "/profiles/0/namespace/network",
            json!({"allow": [{"from": "0.0.0.0/0", "ports": [0]}]}),
            "port 0 is no port",
        ),
        (
            "/profiles/0/namespace/rules",
            deny,
            "`profiles[0].namespace.rules[0]`: `create` on `serviceaccounts/token`",
        ),
        (
            "/profiles/0/namespace/secrets",
            json!([{"name": "x", "files": {}}]),
            "`profiles[0].namespace.secrets[0]`",
        ),
        (
            "/profiles/0/namespace/secrets",
            json!([{"name": "x", "files": {"../k": "f"}}]),
            "cannot be a secret",
        ),
        (
            "/profiles/0/namespace/strip_finalizers",
            json!([{"resource": "pods", "finalizer": "kubernetes.io/pvc-protection"}]),
            "`profiles[0].namespace.strip_finalizers[0]`: `kubernetes.io/pvc-protection` cannot",
        ),
    ] {
        let found = faults(pointer, value);
        assert!(
            found.iter().any(|fault| fault.contains(says)),
            "{pointer}: {says}: {found:?}"
        );
    }
}
