//! The host cluster without a node works as any cluster does, and leaves nothing.

use std::time::Duration;

use kubler_testkit::cluster::Cluster;
use kubler_testkit::kubler::kubectl;
use kubler_testkit::leaks::{Process, files_in};

const BOUND: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_host_cluster_knows_its_users_writes_what_they_do_and_leaves_nothing() {
    let mut cluster = Cluster::start().await;
    // The usual guards are on, and controllers work.
    cluster.kubectl_ok(&["create", "namespace", "other"]);
    cluster.apply(
        "{apiVersion: v1, kind: ResourceQuota, metadata: {name: all, namespace: other}, spec: {hard: {configmaps: 3}}}",
    );
    cluster.kubectl_ok(&[
        "label",
        "namespace",
        "other",
        "pod-security.kubernetes.io/enforce=restricted",
    ]);
    cluster.kubectl_ok(&[
        "wait",
        "--for=jsonpath={.status.hard.configmaps}=3",
        "--timeout=60s",
        "--namespace=other",
        "resourcequota/all",
    ]);
    cluster.kubectl_ok(&[
        "wait",
        "--for=create",
        "--timeout=60s",
        "--namespace=other",
        "serviceaccount/default",
    ]);
    let refused = cluster.kubectl(&[
        "run",
        "it",
        "--image=busybox",
        "--namespace=other",
        "--privileged",
    ]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("PodSecurity \"restricted"), "{said}");
    let served = cluster.kubectl_ok(&["api-resources", "--output=name"]);
    assert!(
        served.contains("validatingadmissionpolicies."),
        "{served:?}"
    );

    // A user is who the certificate says, and may do what the roles say.
    let kubeconfig = cluster.kubeconfig_of("jane", &["editors", "readers"]);
    let jane = |arguments: &[&str]| {
        let mut command = kubectl(&kubeconfig, cluster.folder());
        let output = command.args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (_, who) = jane(&["auth", "whoami", "--output=json"]);
    assert!(who.contains("\"jane\"") && who.contains("\"editors\"") && who.contains("\"readers\""));
    let (may, said) = jane(&["get", "namespaces"]);
    assert!(!may && said.contains("Forbidden"), "{said}");
    cluster.kubectl_ok(&[
        "create",
        "rolebinding",
        "editors",
        "--clusterrole=edit",
        "--group=readers",
        "--namespace=other",
    ]);
    let made = ["create", "configmap", "it", "--namespace=other"];
    let (may, said) = jane(&made);
    assert!(may, "{said}");
    let event = cluster
        .wait_for_audit_event(BOUND, |event| {
            event["verb"] == "create"
                && event["objectRef"]["resource"] == "configmaps"
                && event["user"]["username"] == "jane"
        })
        .await;
    assert_eq!(event["objectRef"]["name"], "it");
    assert_eq!(event["responseStatus"]["code"], 201);
    assert!(event["requestObject"].is_null(), "{event}");

    // It goes away and comes back as it was.
    let before = cluster.api_server_process();
    cluster.stop_api_server();
    assert!(!before.lives());
    assert!(!cluster.kubectl(&["get", "namespaces"]).status.success());
    cluster.start_api_server().await;
    assert_ne!(cluster.api_server_process(), before);
    let kept = cluster.get(&["configmap", "it", "--namespace=other"]);
    assert_eq!(kept["metadata"]["name"], "it");
    cluster.kubectl_ok(&["delete", "namespace", "other", "--timeout=60s"]);

    // And ends as a whole.
    let (mark, folder) = (cluster.mark().clone(), cluster.folder().to_owned());
    let roles = [
        cluster.etcd_process(),
        cluster.api_server_process(),
        cluster.controller_manager_process(),
    ];
    drop(cluster);
    assert!(!roles.iter().any(Process::lives));
    assert_eq!(mark.processes(), []);
    assert_eq!(files_in(&folder), [] as [std::path::PathBuf; 0]);
}
