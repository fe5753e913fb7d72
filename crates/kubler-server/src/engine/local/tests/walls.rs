use serde_json::json;

use super::super::certificates::Pair;
use super::super::etcd::{Client, wire};
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_environments_are_strangers() {
    let place = Place::new();
    let engine = place.engine().await;
    let (first, second) = (environment(1), environment(2));
    engine.provision(&first).await.unwrap();
    engine.provision(&second).await.unwrap();
    credentials_of_one_are_worth_nothing_in_the_other(&engine, first.id, second.id).await;
    the_etcd_certificate_of_one_opens_its_own_prefix_only(&engine, first.id, second.id).await;
    a_webhook_to_this_machine_reaches_nobody(&place, &engine, first.id).await;
    engine.remove(first.id).await.unwrap();
    assert_eq!(
        condition(&engine, second.id).await,
        Some(Condition::Whole),
        "the end of one breaks the other"
    );
    assert!(
        job_client(&engine, second.id)
            .await
            .get("/readyz")
            .await
            .unwrap()
            .is_success()
    );
    engine.remove(second.id).await.unwrap();
    assert_eq!(
        place.leftovers(&engine, second.id).await,
        Vec::<String>::new()
    );
}

async fn credentials_of_one_are_worth_nothing_in_the_other(
    engine: &LocalEngine,
    first: EnvironmentId,
    second: EnvironmentId,
) {
    let api = job_client(engine, first).await;
    let me = api
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
        )
        .await
        .unwrap();
    assert_eq!(
        text(&me.json().unwrap(), "/status/userInfo/username"),
        "kubler:job:job-1"
    );

    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
    let made = api
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            &asked,
        )
        .await
        .unwrap();
    let token = secrecy::SecretString::from(text(&made.json().unwrap(), "/status/token"));
    let (here, there) = (
        engine.upstream(first).unwrap(),
        engine.upstream(second).unwrap(),
    );
    let path = "/api/v1/namespaces/default/serviceaccounts/default";
    // At home it is known, and may do nothing; the same account exists in the other, with a UID of its own.
    assert_eq!(
        client_of(&here, &token)
            .await
            .get(path)
            .await
            .unwrap()
            .status,
        403
    );
    assert_eq!(
        client_of(&there, &token)
            .await
            .get(path)
            .await
            .unwrap()
            .status,
        401
    );
    assert_eq!(
        client_of(&there, &here.token)
            .await
            .get(path)
            .await
            .unwrap()
            .status,
        401
    );
    let none = secrecy::SecretString::from("");
    assert_eq!(
        client_of(&there, &none)
            .await
            .get("/version")
            .await
            .unwrap()
            .status,
        401,
        "anonymous"
    );
    // Nor does one take the other's server for its own.
    let crate::engine::UpstreamAddress::Unix(socket) = &there.address else {
        panic!()
    };
    assert!(
        ApiClient::connect(socket, &here.tls, here.server_name.clone(), &here.token)
            .await
            .is_err()
    );
}

async fn the_etcd_certificate_of_one_opens_its_own_prefix_only(
    engine: &LocalEngine,
    first: EnvironmentId,
    second: EnvironmentId,
) {
    let folder = engine.inner.run.environment(first);
    let user = Pair {
        certificate: folder.read("etcd-client.crt").unwrap(),
        key: folder.read("etcd-client.key").unwrap().into(),
    };
    let port = engine
        .inner
        .etcd
        .endpoint()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let client = Client::new(port, engine.inner.etcd.authority_certificate(), &user).unwrap();
    let range = |prefix: &str| wire::Range {
        key: prefix.into(),
        range_end: wire::prefix_end(prefix),
        count_only: true,
        ..Default::default()
    };
    let own = client
        .call(&range(&format!("/environments/{first}/")))
        .await
        .unwrap();
    assert!(own.count > 100, "{}", own.count);
    for prefix in [
        format!("/environments/{second}/"),
        format!("/environments/{first}"),
        "/environments/".into(),
        "/".into(),
    ] {
        let error = client.call(&range(&prefix)).await.unwrap_err();
        assert!(error.says("permission denied"), "{prefix}: {error}");
        let delete = wire::DeleteRange {
            key: prefix.clone().into(),
            range_end: wire::prefix_end(&prefix),
        };
        assert!(
            client
                .call(&delete)
                .await
                .unwrap_err()
                .says("permission denied"),
            "{prefix}"
        );
    }
    assert!(
        client
            .call(&wire::UserList {})
            .await
            .unwrap_err()
            .says("permission denied")
    );
}

async fn a_webhook_to_this_machine_reaches_nobody(
    place: &Place,
    engine: &LocalEngine,
    id: EnvironmentId,
) {
    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("127.0.0.1:{}", canary.local_addr().unwrap().port());
    let api = job_client(engine, id).await;
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "canary"},
        "webhooks": [{
            "name": "canary.example.test",
            "clientConfig": {"url": format!("https://{target}/")},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 3,
        }],
    });
    let made = api
        .post(
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            &hook,
        )
        .await
        .unwrap();
    assert!(made.is_success(), "{}", made.message());
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x-"}});
    // The server takes a moment to notice its new hook; from then on nothing passes.
    let refused = eventually("the webhook is asked", || async {
        let answer = api
            .post("/api/v1/namespaces/default/configmaps", &map)
            .await
            .unwrap();
        (!answer.is_success()).then_some(answer)
    })
    .await;
    assert!(
        refused.message().contains("failed calling webhook"),
        "{}",
        refused.message()
    );
    let reached = tokio::time::timeout(Duration::from_millis(100), canary.accept()).await;
    assert!(reached.is_err(), "the canary was reached");
    let records = place.records.lock().unwrap();
    let record = records
        .iter()
        .find(|body| {
            body.details
                .get("target")
                .is_some_and(|found| *found == target)
        })
        .expect("a record");
    assert_eq!(
        (
            record.environment_id,
            record.outcome.as_ref().unwrap().code.as_deref()
        ),
        (Some(id), Some("not_listed"))
    );
}
