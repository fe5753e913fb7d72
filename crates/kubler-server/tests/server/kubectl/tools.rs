//! What jobs bring with them: kubectl of another minor version, and helm.

use serde_json::Value;

use super::{Desk, FIRST, SECOND, text};

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_of_two_minor_versions_works_through_the_gateway() {
    let desk = Desk::new(|draft| draft).await;
    desk.file("first.yaml", FIRST);
    desk.file("second.yaml", SECOND);
    let mut minors = Vec::new();
    for program in ["kubectl", "kubectl-previous"] {
        let kubectl = async |arguments: &[&str]| desk.ok_of(program, arguments).await;
        let version: Value =
            serde_json::from_str(&kubectl(&["version", "--output=json"]).await).unwrap();
        minors.push(
            version["clientVersion"]["minor"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
        assert!(
            version["serverVersion"]["gitVersion"].is_string(),
            "{version}"
        );

        kubectl(&["apply", "-f", "first.yaml"]).await;
        let differs = desk.run_of(program, &["diff", "-f", "second.yaml"]).await;
        assert_eq!(differs.status.code(), Some(1), "{}", text(&differs));
        assert!(
            text(&differs).contains("+  colour: blue"),
            "{}",
            text(&differs)
        );
        kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "second.yaml",
        ])
        .await;
        let field = "--output=jsonpath={.data.colour}";
        let colour = kubectl(&["get", "configmap", "settings", field]).await;
        assert_eq!(colour, "blue");
        let image = "--image=busybox";
        kubectl(&["create", "deployment", "web", image, "--replicas=2"]).await;
        kubectl(&["scale", "deployment/web", "--replicas=1"]).await;
        let observed = "--for=jsonpath={.status.observedGeneration}=2";
        kubectl(&["wait", observed, "deployment/web", "--timeout=60s"]).await;
        kubectl(&[
            "delete",
            "deployment,configmap",
            "web",
            "settings",
            "--ignore-not-found",
        ])
        .await;
        assert_eq!(kubectl(&["get", "deployments", "--output=name"]).await, "");
    }
    assert_ne!(minors[0], minors[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_installs_and_removes_a_chart_through_the_gateway() {
    let desk = Desk::new(|draft| draft).await;
    chart(&desk);
    let helm = async |arguments: &[&str]| desk.ok_of("helm", arguments).await;
    let colour = async || {
        let field = "--output=jsonpath={.data.colour}";
        desk.kubectl(&["get", "configmap", "shop", field]).await
    };
    helm(&["install", "shop", "chart", "--set", "colour=green"]).await;
    assert_eq!(colour().await, "green");
    let deployed = ["get", "deployment,lamp", "--output=name"];
    let deployed = desk.kubectl(&deployed).await;
    assert_eq!(deployed, "deployment.apps/shop\nlamp.shop.test/shop\n");

    helm(&["upgrade", "shop", "chart", "--set", "colour=blue"]).await;
    assert_eq!(colour().await, "blue");
    helm(&["rollback", "shop", "1"]).await;
    assert_eq!(colour().await, "green");
    let history: Value =
        serde_json::from_str(&helm(&["history", "shop", "--output=json"]).await).unwrap();
    assert_eq!(history.as_array().unwrap().len(), 3, "{history}");

    helm(&["uninstall", "shop", "--wait"]).await;
    let left = [
        "get",
        "configmap/shop",
        "deployment/shop",
        "service/shop",
        "lamp/shop",
    ];
    let left = desk.run(&left).await;
    assert_eq!(
        text(&left).matches("NotFound").count(),
        4,
        "{}",
        text(&left)
    );
    assert_eq!(helm(&["list", "--all", "--short"]).await, "");
}

/// A chart with a kind of its own, as many have.
fn chart(desk: &Desk) {
    let folders = ["chart", "chart/crds", "chart/templates"];
    for folder in folders {
        std::fs::create_dir(desk.path(folder)).unwrap();
    }
    for (name, text) in [
        ("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n"),
        ("values.yaml", "colour: red\n"),
        ("crds/lamp.yaml", LAMP),
        ("templates/all.yaml", ALL),
    ] {
        desk.file(&format!("chart/{name}"), text);
    }
}

const LAMP: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: lamps.shop.test}
spec:
  group: shop.test
  names: {kind: Lamp, plural: lamps, singular: lamp}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

const ALL: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: '{{ .Release.Name }}'}
data: {colour: '{{ .Values.colour }}'}
---
apiVersion: v1
kind: Service
metadata: {name: '{{ .Release.Name }}'}
spec: {ports: [{port: 80}], selector: {app: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: '{{ .Release.Name }}'}
spec:
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec: {containers: [{name: shop, image: busybox}]}
---
apiVersion: shop.test/v1
kind: Lamp
metadata: {name: '{{ .Release.Name }}'}
";
