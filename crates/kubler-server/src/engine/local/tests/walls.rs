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
    keys_and_issuers_are_their_own(&engine, first.id, second.id).await;
    etcd_has_no_other_door(&engine).await;
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

    let token = bearer(account_token(&api).await);
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
    the_upstream_credential_is_known_to_its_own_server_only(&here, &there).await;
    let none = bearer(String::new());
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

/// A token of the default service account.
async fn account_token(api: &ApiClient) -> String {
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = api.post(path, &asked).await.unwrap().json().unwrap();
    text(&made, "/status/token").to_owned()
}

/// The credential with which the gateway forwards has rights in its own environment, and is nobody elsewhere.
async fn the_upstream_credential_is_known_to_its_own_server_only(
    here: &Upstream,
    there: &Upstream,
) {
    let at_home = client_of(here, &here.token).await;
    assert!(at_home.get("/api/v1/secrets").await.unwrap().is_success());
    for path in ["/api/v1/secrets", "/version", "/readyz", "/openid/v1/jwks"] {
        // Who is not known is also hung up on.
        let abroad = client_of(there, &here.token).await;
        assert_eq!(abroad.get(path).await.unwrap().status, 401, "{path}");
    }
}

/// Each wall for itself: tokens would be refused even if one of key, issuer and UID were shared.
async fn keys_and_issuers_are_their_own(
    engine: &LocalEngine,
    first: EnvironmentId,
    second: EnvironmentId,
) {
    let file = |id, name: &str| engine.inner.run.environment(id).read(name).unwrap();
    for name in [
        "service-account.key",
        "serving.key",
        "ca.crt",
        "etcd-client.key",
        "tokens.csv",
    ] {
        assert_ne!(file(first, name), file(second, name), "{name} is shared");
    }
    let mut seen = Vec::new();
    for id in [first, second] {
        let api = job_client(engine, id).await;
        let get = async |path: &str| api.get(path).await.unwrap().json().unwrap();
        let token = account_token(&api).await;
        let mut parts = token.split('.').map(|part| {
            use base64::Engine as _;
            let part = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(part);
            serde_json::from_slice::<Value>(&part.unwrap()).unwrap_or_default()
        });
        let (head, claims) = (parts.next().unwrap(), parts.next().unwrap());
        let account = get("/api/v1/namespaces/default/serviceaccounts/default").await;
        let system = get("/api/v1/namespaces/kube-system").await;
        seen.push([
            text(&claims, "/iss").to_owned(),
            text(&head, "/kid").to_owned(),
            text(&account, "/metadata/uid").to_owned(),
            text(&system, "/metadata/uid").to_owned(),
        ]);
    }
    for (one, other) in seen[0].iter().zip(&seen[1]) {
        assert!(!one.is_empty() && one != other, "{seen:?}");
    }
}

/// Without a certificate there is no answer, and with root's there is gRPC only.
async fn etcd_has_no_other_door(engine: &LocalEngine) {
    let etcd = &engine.inner.etcd;
    let folder = engine.inner.settings.data.join("etcd");
    let authority =
        reqwest::Certificate::from_pem(etcd.authority_certificate().as_bytes()).unwrap();
    let client = |identity: Option<reqwest::Identity>| {
        let builder = reqwest::Client::builder()
            .use_rustls_tls()
            .tls_certs_only([authority.clone()]);
        let builder = identity
            .into_iter()
            .fold(builder, reqwest::ClientBuilder::identity);
        builder.build().unwrap()
    };
    let mut root = fs::read(folder.join("root.crt")).unwrap();
    root.extend(fs::read(folder.join("root.key")).unwrap());
    let root = client(Some(reqwest::Identity::from_pem(&root).unwrap()));
    let range = json!({"key": "AA==", "range_end": "AA=="});
    for path in ["/v3/kv/range", "/v3/auth/user/list", "/v3/auth/disable"] {
        let url = format!("{}{path}", etcd.endpoint());
        let answer = root.post(&url).json(&range).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        let error = client(None).post(&url).json(&range).send().await;
        assert!(error.is_err(), "{path} without a certificate: {error:?}");
    }
    let stranger = super::super::certificates::Authority::new("kubler etcd", validity()).unwrap();
    let forged = stranger.client("root", validity()).unwrap();
    let mut pem = forged.certificate.into_bytes();
    pem.extend(forged.key.as_bytes());
    let forged = client(Some(reqwest::Identity::from_pem(&pem).unwrap()));
    for client in [client(None), forged] {
        for path in ["/version", "/health", "/metrics"] {
            let url = format!("{}{path}", etcd.endpoint());
            let answer = client.get(&url).send().await;
            assert!(answer.is_err(), "{path}: {answer:?}");
        }
    }
    let plain = etcd.endpoint().replace("https:", "http:");
    let answer = reqwest::Client::new()
        .get(format!("{plain}/version"))
        .send();
    assert!(
        !answer
            .await
            .is_ok_and(|answer| answer.status().is_success()),
        "without TLS"
    );
}

fn validity() -> super::super::certificates::Validity {
    let now = SystemClock.now();
    super::super::certificates::Validity::new(now, later(now, 3600))
}
