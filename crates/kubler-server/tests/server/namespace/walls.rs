//! What is in an environment when it is ready, and what nobody reaches from it.

use kubler_testkit::cluster::Cluster;
use serde_json::{Value, json};

use super::hosted::{ACCOUNTS, Environment, Hosted};

const SECRET: &str = "s3cr3t-of-the-profile";
const MANIFEST: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: seeded}\ndata: {a: b}\n";
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "NAME"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}"#;

async fn two() -> Hosted {
    Hosted::with(
        &[
            "quota: {pods: \"2\"}",
            "limits: {default: {cpu: 100m}, default_request: {cpu: 50m}}",
            "secrets: [{name: registry, files: {password: password}}]",
        ],
        |draft| {
            draft
                .file("password", SECRET)
                .file("seeded.yaml", MANIFEST)
                .edit(
                    "    engine: namespace\n",
                    "    engine: namespace\n    manifests: [seeded.yaml]\n",
                )
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_what_its_profile_says_and_nobody_reaches_out_of_it() {
    let hosted = two().await;
    let (here, there) = (hosted.environment().await, hosted.environment().await);
    it_has_what_the_profile_says(&here);
    the_walls_stand(&here, &there);
    its_pods_are_bounded(&here);
    nothing_secret_is_kept(&hosted);
    at_most_so_many_calls(&hosted.cluster, &here).await;
    for environment in [&here, &there] {
        let released = environment.release().await;
        assert_eq!(released.body["phase"], "gone", "{released:?}");
    }
    hosted.nothing_is_left().await;
}

fn it_has_what_the_profile_says(here: &Environment<'_>) {
    let read = |kind: &str, name: &str| -> Value {
        serde_json::from_str(&here.kubectl_ok(&["get", kind, name, "--output=json"])).unwrap()
    };
    assert_eq!(read("configmap", "seeded")["data"]["a"], "b");
    // "s3cr3t-of-the-profile" in base64.
    assert_eq!(
        read("secret", "registry")["data"]["password"],
        "czNjcjN0LW9mLXRoZS1wcm9maWxl"
    );
    let account = read("serviceaccount", "default");
    assert_eq!(account["automountServiceAccountToken"], false);
    let quota = read("resourcequota", "kubler");
    assert_eq!(quota["status"]["hard"]["pods"], "2");
    assert_eq!(quota["status"]["hard"]["services.nodeports"], "0");
    let policy = read("networkpolicy", "kubler");
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let namespace = read("namespace", &here.namespace);
    let labels = &namespace["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "baseline");
    // Kubler's own fields are its own.
    let managers = here.kubectl_ok(&[
        "get",
        "resourcequota",
        "kubler",
        "--show-managed-fields",
        "--output=json",
    ]);
    assert!(managers.contains("\"manager\": \"kubler\""), "{managers}");
}

/// Every one of these is refused by the host itself.
fn the_walls_stand(here: &Environment<'_>, there: &Environment<'_>) {
    let (own, other) = (here.namespace.as_str(), there.namespace.as_str());
    let patch = r#"{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}"#;
    let tries: &[&[&str]] = &[
        &["get", "configmaps", "--namespace", other],
        &["get", "secret", "registry", "--namespace", other],
        &["create", "configmap", "x", "--namespace", other],
        &["get", "serviceaccounts", "--namespace", ACCOUNTS],
        &["create", "token", own, "--namespace", ACCOUNTS],
        &["create", "token", "default"],
        &["get", "pods", "--all-namespaces"],
        &["get", "namespaces"],
        &["get", "nodes"],
        &["create", "namespace", "kubler-env-x"],
        &["patch", "namespace", own, "--patch", patch],
        &["delete", "namespace", own],
        &["delete", "resourcequota", "kubler"],
        &["delete", "networkpolicy", "kubler"],
        &["delete", "rolebinding", "kubler"],
        &[
            "create",
            "rolebinding",
            "x",
            "--clusterrole=view",
            "--serviceaccount=default:default",
        ],
        &[
            "create",
            "clusterrolebinding",
            "x",
            "--clusterrole=cluster-admin",
            "--user=x",
        ],
        &["get", "clusterroles"],
        &["get", "--raw", "/api/v1/nodes/x/proxy/"],
        &["get", "--raw", "/logs/"],
    ];
    for arguments in tries {
        let output = here.kubectl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        // kubectl says of a create only the message.
        let is_told = [
            "orbidden",
            "outside of namespace",
            "as somebody else",
            "never",
        ];
        let is_told = is_told.iter().any(|words| said.contains(words));
        assert!(
            !output.status.success() && is_told,
            "{arguments:?}: {said}{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    let as_other = here.kubectl(&["get", "pods", "--as", "system:admin"]);
    let said = String::from_utf8_lossy(&as_other.stderr);
    assert!(
        !as_other.status.success() && said.contains("as somebody else"),
        "{said}"
    );
    // What runs inside has no rights at all, whichever account it names.
    let cluster = &here.hosted.cluster;
    cluster.kubectl_ok(&["create", "serviceaccount", "mine", "--namespace", own]);
    for account in ["default", "mine"] {
        let account = format!("system:serviceaccount:{own}:{account}");
        for (verb, what) in [
            ("list", "secrets"),
            ("create", "pods"),
            ("get", "configmaps"),
        ] {
            let may = cluster.kubectl(&[
                "auth",
                "can-i",
                verb,
                what,
                "--as",
                &account,
                "--namespace",
                own,
            ]);
            let said = String::from_utf8_lossy(&may.stdout).into_owned();
            assert_eq!(said.trim(), "no", "{account} {verb} {what}");
        }
    }
}

fn its_pods_are_bounded(here: &Environment<'_>) {
    let folder = here.hosted.cluster.folder();
    let create = |name: &str, change: fn(&mut Value)| {
        let mut pod: Value = serde_json::from_str(&POD.replace("NAME", name)).unwrap();
        change(&mut pod["spec"]);
        let path = folder.join(format!("{name}.json"));
        std::fs::write(&path, pod.to_string()).unwrap();
        here.kubectl(&[
            "create",
            "--filename",
            path.to_str().unwrap(),
            "--output=json",
        ])
    };
    let refused = |name: &str, change: fn(&mut Value), words: &str| {
        let output = create(name, change);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words),
            "{name}: {said}"
        );
    };
    refused(
        "network",
        |spec| spec["hostNetwork"] = json!(true),
        "violates PodSecurity",
    );
    refused(
        "files",
        |spec| spec["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]),
        "violates PodSecurity",
    );
    let made = create("first", |_| {});
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let pod: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "100m"
    );
    assert_eq!(pod["spec"]["automountServiceAccountToken"], Value::Null);
    assert_eq!(pod["spec"]["volumes"], Value::Null, "no token is mounted");
    assert!(create("second", |_| {}).status.success());
    refused("third", |_| {}, "exceeded quota");
}

/// Neither the store nor the ledger nor the log has what the profile's files hold.
fn nothing_secret_is_kept(hosted: &Hosted) {
    let encoded = "czNjcjN0LW9mLXRoZS1wcm9maWxl";
    let mut folders = vec![hosted.server.folder().join("data")];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                let text = String::from_utf8_lossy(&bytes);
                assert!(
                    !text.contains(SECRET) && !text.contains(encoded),
                    "{path:?}"
                );
                read += 1;
            }
        }
    }
    assert!(read > 3, "only {read} files were read");
    let log = hosted.server.log();
    assert!(!log.contains(SECRET) && !log.contains(encoded));
}

/// Calls for one environment from nothing to usable, besides its profile's own secrets and manifests.
const CALLS_MAX: usize = 12;

async fn at_most_so_many_calls(cluster: &Cluster, here: &Environment<'_>) {
    let tenant = format!("system:serviceaccount:{ACCOUNTS}:{}", here.namespace);
    let is_review = |event: &Value| {
        event["user"]["username"] == tenant.as_str()
            && event["objectRef"]["resource"] == "selfsubjectaccessreviews"
    };
    cluster.wait_for_audit_event(crate::LONG, is_review).await;
    let events = cluster.audit_events();
    let is_its = |event: &&Value| {
        let by_kubler = event["user"]["username"] == "kubler";
        let uri = event["requestURI"].as_str().unwrap_or_default();
        let own_secret = uri.contains("/secrets/");
        event["stage"] == "ResponseComplete"
            && (is_review(event) || by_kubler && uri.contains(&here.namespace) && !own_secret)
    };
    let calls: Vec<_> = events
        .iter()
        .filter(is_its)
        .map(|event| format!("{} {}", event["verb"], event["requestURI"]))
        .collect();
    println!("verified: {} calls", calls.len());
    assert!((8..=CALLS_MAX).contains(&calls.len()), "{calls:#?}");
}
