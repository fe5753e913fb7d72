//! A profile's guardrails as people meet them: kubectl shows which one refuses, an operator approves with `kubler`, and
//! kubectl goes on.

use serde_json::Value;

use super::{Desk, FIRST, Method, SECOND, text};

const GUARDRAILS: &str = "guardrails:
      deny: [{groups: [''], resources: [secrets], verbs: ['*']}]
      dry_run: [{groups: [''], resources: [namespaces], verbs: [create, delete]}]
      approval: [{groups: [''], resources: [configmaps], verbs: [patch, delete], names: [settings]}]
      object_bytes_max: 20000";

impl Desk {
    /// What kubectl says of a command that must be refused.
    async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    /// What `kubler approval` says to an operator.
    fn approval(&self, arguments: &[&str]) -> String {
        let output = self.server.cli(&[&["approval"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    async fn recorded(&self, action: &str) -> Vec<Value> {
        let found = self
            .server
            .operator(Method::GET, "/v1/ledger/records?limit=1000")
            .await;
        let records = found.body["records"].as_array().unwrap().iter();
        records
            .filter(|record| record["action"] == action)
            .cloned()
            .collect()
    }
}

/// The approval that kubectl was told of.
fn named(told: &str) -> String {
    let at = told.find("apr_").unwrap_or_else(|| panic!("{told}"));
    told[at..at + 36].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_is_told_which_guardrail_refuses_and_goes_on_when_an_operator_approves() {
    let mut desk = Desk::new(|draft| draft.profile_line(GUARDRAILS)).await;
    let told = desk.refused(&["get", "secrets"]).await;
    assert!(
        told.contains("guardrail `deny[0]` of profile `ci-small` refuses `list secrets"),
        "{told}"
    );
    let told = desk.refused(&["create", "namespace", "shop"]).await;
    assert!(told.contains("`--dry-run=server`"), "{told}");
    desk.kubectl(&["create", "namespace", "shop", "--dry-run=server"])
        .await;
    desk.kubectl(&["delete", "namespace", "kube-node-lease", "--dry-run=server"])
        .await;
    desk.refused(&["delete", "namespace", "kube-node-lease", "--wait=false"])
        .await;
    desk.kubectl(&["get", "namespace", "kube-node-lease"]).await;
    desk.file("large", &"x".repeat(30_000));
    let told = desk
        .refused(&["create", "configmap", "large", "--from-file=large"])
        .await;
    assert!(told.contains("`object_bytes_max`"), "{told}");

    desk.file("first.yaml", FIRST);
    desk.file("second.yaml", SECOND);
    desk.kubectl(&["apply", "-f", "first.yaml"]).await;
    let apply = ["apply", "-f", "second.yaml"];
    let told = desk.refused(&apply).await;
    assert!(told.contains("needs the approval of an operator"), "{told}");
    let id = named(&told);
    assert_eq!(
        named(&desk.refused(&apply).await),
        id,
        "it waits for the same approval"
    );
    let listed = desk.approval(&["list"]);
    for part in [
        id.as_str(),
        "patch configmaps settings",
        &desk.id,
        "pending",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    // The job cannot approve what it asks for.
    let path = format!("/v1/approvals/{id}/approve");
    let token = desk.server.token(&desk.job);
    let own = desk
        .server
        .request(Method::POST, &path, Some(&token), None)
        .await;
    assert_eq!(own.status, 403, "{own:?}");
    desk.refused(&apply).await;
    let answered = desk.approval(&["approve", &id]);
    assert!(
        answered.contains("approved: `patch configmaps settings"),
        "{answered}"
    );
    desk.kubectl(&apply).await;
    let colour = desk
        .kubectl(&[
            "get",
            "configmap",
            "settings",
            "--output=jsonpath={.data.colour}",
        ])
        .await;
    assert_eq!(colour, "blue");

    let delete = ["delete", "configmap", "settings"];
    let told = desk.refused(&delete).await;
    desk.approval(&["refuse", &named(&told)]);
    let told = desk.refused(&delete).await;
    assert!(
        told.contains("an operator refused `delete configmaps settings"),
        "{told}"
    );

    // Approvals end with the server that knew them: it is asked anew, and nothing goes on without.
    let annotate = ["annotate", "configmap", "settings", "a=b"];
    let waited = named(&desk.refused(&annotate).await);
    desk.approval(&["approve", &waited]);
    desk.server.kill().await;
    desk.server.restart().await;
    let again = named(&desk.refused(&annotate).await);
    assert_ne!(again, waited);

    let asked = desk.recorded("approval.ask").await;
    assert!(
        asked
            .iter()
            .any(|record| record["details"]["approval"] == id.as_str())
    );
    let answers = desk.recorded("approval.answer").await;
    let is_yes =
        |record: &&Value| record["details"]["approval"] == id.as_str() && record["kind"] == "end";
    let yes = answers.iter().find(is_yes).unwrap();
    assert_eq!(yes["details"]["answer"], "approved");
    let started = |record: &&Value| record["kind"] == "start" && record["sequence"] == yes["start"];
    assert!(answers.iter().find(started).unwrap()["operator"].is_string());
    let used = desk.recorded("kubernetes.request").await;
    let uses = used
        .iter()
        .filter(|record| record["details"]["approval"] == id.as_str());
    assert_eq!(uses.count(), 1);
}
