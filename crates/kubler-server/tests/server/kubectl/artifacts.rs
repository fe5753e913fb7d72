//! What kubectl was asked to run is in the ledger, and leads from an image to environments and back.

use serde_json::Value;

use super::{Desk, Method};

const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      initContainers: [{name: wait, image: busybox}]
      containers: [{name: web, image: 'registry.example/acme/web:v1'}]
";
const NIGHTLY: &str = "\
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: '0 3 * * *'
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: it, image: 'acme/nightly:2'}]}}}}
";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

impl Desk {
    /// Records of the job's environment of which `is_meant` holds.
    async fn records(&self, is_meant: impl Fn(&Value) -> bool) -> Vec<Value> {
        let path = format!("/v1/ledger/records?limit=1000&environment={}", self.id);
        let found = self.server.operator(Method::GET, &path).await;
        let records = found.body["records"].as_array().unwrap().iter();
        records.filter(|record| is_meant(record)).cloned().collect()
    }

    /// What the table of `kubler trace` shows an operator; nothing when nothing was found.
    fn trace(&self, anything: &str) -> String {
        let output = self.server.cli(&["trace", anything]);
        String::from_utf8(output.stdout).unwrap()
    }
}

fn images(artifact: &Value) -> Vec<&str> {
    let images = artifact["images"].as_array().unwrap().iter();
    images.map(|image| image.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_runs_is_in_the_ledger_and_found_by_its_image() {
    let desk = Desk::new(|draft| draft).await;
    desk.file("web.yaml", WEB);
    desk.file("nightly.yaml", NIGHTLY);
    desk.kubectl(&["apply", "-f", "web.yaml"]).await;
    let other = format!("web=registry.example/acme/web@{DIGEST}");
    desk.kubectl(&["set", "image", "deployment/web", &other])
        .await;
    desk.kubectl(&["apply", "--server-side", "-f", "nightly.yaml"])
        .await;
    let patch = r#"[{"op":"replace","path":"/spec/template/spec/initContainers/0/image","value":"busybox:1.36"}]"#;
    desk.kubectl(&["patch", "deployment", "web", "--type=json", "-p", patch])
        .await;
    desk.kubectl(&["create", "deployment", "idle", "--image=acme/pause:3"])
        .await;
    desk.kubectl(&["apply", "-f", "web.yaml", "--dry-run=server"])
        .await;
    let refused = desk
        .run(&["run", "Not_A_Name", "--image=acme/refused:1"])
        .await;
    assert!(!refused.status.success());
    desk.kubectl(&[
        "create",
        "secret",
        "generic",
        "hidden",
        "--from-literal=canary=4711",
    ])
    .await;

    let all = desk.records(|record| !record["artifact"].is_null()).await;
    let said: Vec<_> = all.iter().map(|record| &record["artifact"]).collect();
    let of = |kind: &str, form: &str| -> Vec<&Value> {
        let meant = |it: &&&Value| it["kind"] == kind && it["form"] == form;
        said.iter().filter(meant).copied().collect()
    };
    let made = of("Deployment", "object");
    assert_eq!(images(made[0]), ["registry.example/acme/web:v1", "busybox"]);
    assert_eq!(
        (&made[0]["name"], &made[0]["namespace"]),
        (&"web".into(), &"default".into())
    );
    assert_eq!(made[0]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(images(made[1]), ["acme/pause:3"], "{said:?}");
    let changed = of("Deployment", "patch");
    assert_eq!(
        images(changed[0]),
        [format!("registry.example/acme/web@{DIGEST}")]
    );
    assert_eq!(images(changed[1]), ["busybox:1.36"]);
    assert_eq!(images(of("CronJob", "apply")[0]), ["acme/nightly:2"]);
    assert!(
        said.iter()
            .all(|artifact| artifact["not_understood"].is_null()),
        "{said:?}"
    );
    for start in &all {
        assert_eq!(start["kind"], "start", "said before it goes on");
    }
    let secrets = desk
        .records(|record| record["request"]["resource"] == "secrets")
        .await;
    assert!(!secrets.is_empty() && secrets.iter().all(|record| record["artifact"].is_null()));

    for known in [
        "registry.example/acme/web:v1",
        "registry.example/acme/web",
        &format!("registry.example/acme/web@{DIGEST}"),
        DIGEST,
        "busybox:latest",
        "acme/web",
        "nightly:2",
        "docker.io/acme/nightly",
    ] {
        assert!(desk.trace(known).contains(&desk.id), "{known}");
    }
    for unknown in [
        "registry.example/acme/web:v2",
        "acme/refused:1",
        "busybox:1.35",
        "eb:v1",
    ] {
        assert!(!desk.trace(unknown).contains(&desk.id), "{unknown}");
    }
    let back = desk.trace(&desk.id);
    for image in ["busybox", "busybox:1.36", "acme/pause:3", "acme/nightly:2"] {
        assert!(back.contains(image), "{image}: {back}");
    }
    assert!(!back.contains("acme/refused"), "{back}");
    desk.release().await;
    assert!(
        desk.trace("acme/nightly:2").contains(&desk.id),
        "the dead are found as well"
    );
}
