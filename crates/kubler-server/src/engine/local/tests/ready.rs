//! Ready means: the API answers, the default namespace and its service account exist, the manifests are applied.

use serde_json::json;

use super::*;

/// Of a kind that somebody else must bring.
const WIDGET: &str = r"
apiVersion: example.test/v1
kind: Widget
metadata: {name: first}
";
const WIDGETS: &str = "/apis/example.test/v1/namespaces/default/widgets/first";
const DEFAULT_ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_is_said_when_all_parts_are_there_even_if_nothing_was_prepared() {
    let place = Place::new();
    // Without a template each part is made by the control plane in its own time, the service account last.
    let engine = place
        .engine_with(|settings| {
            for programs in settings.binaries.versions.values_mut() {
                programs.template = None;
            }
        })
        .await;
    let environment = environment(1);
    engine.provision(&environment).await.unwrap();
    let api = job_client(&engine, environment.id).await;
    // At once, not eventually.
    for path in ["/readyz", "/api/v1/namespaces/default", DEFAULT_ACCOUNT] {
        let answer = api.get(path).await.unwrap();
        assert!(answer.is_success(), "{path}: {}", answer.message());
    }
    engine.remove(environment.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_is_not_said_before_the_last_manifest_is_applied() {
    let place = Place::new();
    let engine = place.engine().await;
    let mut environment = environment(1);
    let id = environment.id;
    let manifests = &mut environment.resolved.manifests;
    manifests.insert("widget.yaml".into(), WIDGET.into());
    let making = {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move { engine.provision(&environment).await })
    };
    // All but the manifest.
    let folder = engine.inner.run.environment(id);
    let api = eventually("its API answers", || async {
        let upstream = upstream::read(&folder).ok()?;
        let socket = folder.api_socket();
        let connecting = ApiClient::connect(
            &socket,
            &upstream.tls,
            upstream.server_name.clone(),
            &upstream.token,
        );
        connecting.await.ok()
    })
    .await;
    for path in ["/readyz", "/api/v1/namespaces/default", DEFAULT_ACCOUNT] {
        eventually(path, || async {
            api.get(path).await.ok()?.is_success().then_some(())
        })
        .await;
    }
    assert!(!making.is_finished() && engine.upstream(id).is_none());
    assert!(matches!(
        condition(&engine, id).await,
        Some(Condition::Broken { .. })
    ));

    let version = json!({
        "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } },
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.test" },
        "spec": {
            "group": "example.test", "scope": "Namespaced", "versions": [version],
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget" },
        },
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = api.post(path, &definition).await.unwrap();
    assert!(made.is_success(), "{}", made.message());
    making.await.unwrap().unwrap();
    assert!(api.get(WIDGETS).await.unwrap().is_success());
    assert_eq!(condition(&engine, id).await, Some(Condition::Whole));
    engine.remove(id).await.unwrap();
}
