//! Every way by which somebody inside could make their API server dial: one environment, and a canary on this
//! machine that must see nothing.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// A name that only a resolver could tell from others.
const UNKNOWN_HOST: &str = "canary.doors.example.test";
const DEFAULT: &str = "/api/v1/namespaces/default";
/// Where clouds tell machines their secrets.
const METADATA: &str = "169.254.169.254";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_inside_an_environment_can_make_its_api_server_reach_this_machine() {
    let place = Place::new();
    let engine = place.engine().await;
    let environment = environment(1);
    engine.provision(&environment).await.unwrap();
    let canary = Canary::sing();
    let folder = engine.inner.run.environment(environment.id);
    let doors = Doors {
        api: job_client(&engine, environment.id).await,
        by_hand: by_hand(&folder),
        token: engine.upstream(environment.id).unwrap().token.header(),
        etcd: engine.inner.etcd.endpoint(),
        port: canary.port,
        own: own_address(),
    };
    doors.services().await;
    tokio::join!(
        doors.admission_webhooks(),
        doors.conversion("byurl", json!({ "url": doors.url() })),
        doors.conversion("byservice", json!({ "service": doors.service("outside") })),
        doors.aggregated_api(&place),
        doors.nodes(),
        doors.endpoints(),
        doors.component_statuses(),
    );
    assert_eq!(canary.calls(), 0, "the canary was reached");
    // It would have noticed.
    drop(
        TcpStream::connect(("127.0.0.1", canary.port))
            .await
            .unwrap(),
    );
    eventually("the canary works", || async {
        (canary.calls() == 1).then_some(())
    })
    .await;

    // All that was dialled asked at the way out, and was refused there.
    let records = place.records.lock().unwrap();
    let refused: BTreeSet<_> = records
        .iter()
        .filter(|body| body.environment_id == Some(environment.id))
        .map(|body| {
            assert_eq!(body.outcome.as_ref().unwrap().status, 403, "{body:?}");
            body.details["target"].as_str().unwrap().to_owned()
        })
        .collect();
    let port = doors.port;
    for host in ["127.0.0.1", "localhost"] {
        assert!(refused.contains(&format!("{host}:{port}")), "{refused:?}");
    }
    let etcd = doors.etcd.trim_start_matches("https://").to_owned();
    for target in [
        format!("{METADATA}:443"),
        format!("{METADATA}:{port}"),
        etcd,
    ] {
        assert!(refused.contains(&target), "{target}: {refused:?}");
    }
    assert!(
        !refused.iter().any(|target| target.contains(UNKNOWN_HOST)),
        "a name to look up: {refused:?}"
    );
}

/// Listens on every address, so that what is dialled by this machine's own one is seen too; hangs up on everybody.
struct Canary {
    port: u16,
    calls: Arc<AtomicUsize>,
    _singing: AbortOnDropHandle<()>,
}

impl Canary {
    fn sing() -> Self {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = TcpListener::from_std(listener).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let singing = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self {
            port,
            calls,
            _singing: AbortOnDropHandle::new(singing),
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// The address by which this machine reaches others, or one that is nobody's.
fn own_address() -> IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent.
    let own = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr());
    own.map_or([192, 0, 2, 9].into(), |own| own.ip())
}

/// A client of the environment's socket that speaks HTTP/1.1.
fn by_hand(folder: &folder::EnvironmentFolder) -> reqwest::Client {
    let authority = folder.read("ca.crt").unwrap();
    reqwest::Client::builder()
        .use_rustls_tls()
        .http1_only()
        .tls_certs_only([reqwest::Certificate::from_pem(authority.as_bytes()).unwrap()])
        .unix_socket(folder.api_socket())
        .build()
        .unwrap()
}

struct Doors {
    api: ApiClient,
    /// For what is not plain HTTP.
    by_hand: reqwest::Client,
    token: http::HeaderValue,
    /// Everybody's etcd.
    etcd: String,
    port: u16,
    own: IpAddr,
}

impl Doors {
    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/", self.port)
    }

    fn service(&self, name: &str) -> Value {
        json!({ "namespace": "default", "name": name, "port": self.port, "path": "/" })
    }

    async fn make(&self, path: &str, object: Value) {
        let made = self.api.post(path, &object).await.unwrap();
        assert!(made.is_success(), "{object}: {}", made.message());
    }

    /// One that is called like this machine, and one whose end points are written by hand.
    async fn services(&self) {
        let ports = json!([{ "name": "p", "port": self.port, "targetPort": self.port }]);
        let services = format!("{DEFAULT}/services");
        self.make(
            &services,
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": "outside" },
                "spec": { "type": "ExternalName", "externalName": "localhost", "ports": ports },
            }),
        )
        .await;
        self.make(&services, json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "handmade" }, "spec": { "ports": ports },
        }))
        .await;
    }

    async fn admission_webhooks(&self) {
        let by_url = json!({ "url": self.url() });
        let by_name = json!({ "url": format!("https://localhost:{}/", self.port) });
        let by_service = |name: &str| json!({ "service": self.service(name) });
        let to_metadata = json!({ "url": format!("https://{METADATA}/latest/meta-data/") });
        let to_etcd = json!({ "url": format!("{}/v3/kv/range", self.etcd) });
        // Each guards a kind of its own, so that each must be asked.
        tokio::join!(
            self.webhook("Validating", "configmaps", "ConfigMap", by_url),
            self.webhook("Validating", "secrets", "Secret", by_service("outside")),
            self.webhook("Validating", "resourcequotas", "ResourceQuota", to_metadata),
            self.webhook("Mutating", "services", "Service", to_etcd),
            self.webhook("Mutating", "podtemplates", "PodTemplate", by_name),
            self.webhook(
                "Mutating",
                "limitranges",
                "LimitRange",
                by_service("handmade")
            ),
        );
    }

    async fn webhook(&self, how: &str, resource: &str, kind: &str, target: Value) {
        let hook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": format!("{how}WebhookConfiguration"),
            "metadata": { "name": resource },
            "webhooks": [{
                "name": format!("{resource}.example.test"),
                "clientConfig": target,
                "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource] }],
                "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 3,
            }],
        });
        let path = "/apis/admissionregistration.k8s.io/v1";
        let path = format!("{path}/{}webhookconfigurations", how.to_lowercase());
        self.make(&path, hook).await;
        let mut object =
            json!({ "apiVersion": "v1", "kind": kind, "metadata": { "generateName": "x-" } });
        if kind == "PodTemplate" {
            object["template"] =
                json!({ "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        }
        if kind == "Service" {
            object["spec"] = json!({ "ports": [{ "port": 1 }] });
        }
        // The server takes a moment to notice its new hook; from then on nothing passes.
        let path = format!("{DEFAULT}/{resource}");
        let refused = eventually(&format!("the hook of {resource} is asked"), || async {
            let answer = self.api.post(&path, &object).await.unwrap();
            (!answer.is_success()).then_some(answer)
        })
        .await;
        let message = refused.message();
        assert!(message.contains("failed calling webhook"), "{message}");
    }

    /// Objects of one version are asked for in another, which a webhook must convert.
    async fn conversion(&self, name: &str, target: Value) {
        let version = |version: &str, stored: bool| {
            json!({
                "name": version, "served": true, "storage": stored,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            })
        };
        let group = format!("{name}.example.test");
        self.make(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": { "name": format!("widgets.{group}") },
                "spec": {
                    "group": group, "scope": "Namespaced",
                    "names": { "plural": "widgets", "singular": "widget", "kind": "Widget" },
                    "versions": [version("v1", true), version("v2", false)],
                    "conversion": {
                        "strategy": "Webhook",
                        "webhook": { "clientConfig": target, "conversionReviewVersions": ["v1"] },
                    },
                },
            }),
        )
        .await;
        let path = |version: &str| format!("/apis/{group}/{version}/namespaces/default/widgets");
        let object = json!({ "apiVersion": format!("{group}/v2"), "kind": "Widget", "metadata": { "name": "w" } });
        let refused = eventually(&format!("conversion {name} is asked"), || async {
            let answer = self.api.post(&path("v2"), &object).await.unwrap();
            assert!(!answer.is_success(), "{}", answer.message());
            answer
                .message()
                .contains("conversion webhook")
                .then_some(answer)
        })
        .await;
        assert!(refused.status >= 500, "{}", refused.message());
    }

    /// The server looks by itself whether an aggregated API is there.
    async fn aggregated_api(&self, place: &Place) {
        let service = json!({ "namespace": "default", "name": "outside", "port": self.port });
        self.make("/apis/apiregistration.k8s.io/v1/apiservices", json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": { "name": "v1.aggregated.example.test" },
            "spec": {
                "group": "aggregated.example.test", "version": "v1", "service": service,
                "insecureSkipTLSVerify": true, "groupPriorityMinimum": 1000, "versionPriority": 10,
            },
        }))
        .await;
        let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1.aggregated.example.test";
        let said = eventually("its availability is looked at", || async {
            let found = self.api.get(path).await.unwrap().json().unwrap();
            let said = text(&found, "/status/conditions/0/message").to_owned();
            said.contains("failing or missing response").then_some(said)
        })
        .await;
        assert!(!said.contains("200"), "{said}");
        let answer = self
            .api
            .get("/apis/aggregated.example.test/v1/things")
            .await
            .unwrap();
        assert_eq!(answer.status, 503, "{}", answer.message());
        let asked = format!("localhost:{}", self.port);
        let records = place.records.lock().unwrap();
        assert!(
            records.iter().any(|body| body.details["target"] == asked),
            "nobody asked for {asked}"
        );
    }

    /// Nodes are forged with this machine's addresses, and asked for logs and as proxies.
    async fn nodes(&self) {
        let own = self.own.to_string();
        let nodes = [
            ("loopback", "InternalIP", "127.0.0.1"),
            ("own", "InternalIP", own.as_str()),
            ("metadata", "InternalIP", METADATA),
            ("named", "Hostname", "localhost"),
            ("unknown", "Hostname", UNKNOWN_HOST),
        ];
        for (name, kind, address) in nodes {
            self.make(
                "/api/v1/nodes",
                json!({
                    "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
                    "status": {
                        "addresses": [{ "type": kind, "address": address }],
                        "daemonEndpoints": { "kubeletEndpoint": { "Port": self.port } },
                    },
                }),
            )
            .await;
            self.make(
                &format!("{DEFAULT}/pods"),
                json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                    "spec": { "nodeName": name, "containers": [{ "name": "c", "image": "i" }] },
                }),
            )
            .await;
            let port = self.port;
            let ways = [
                format!("/api/v1/nodes/{name}/proxy/"),
                format!("/api/v1/nodes/{name}:{port}/proxy/"),
                format!("/api/v1/nodes/https:{name}:{port}/proxy/"),
            ];
            for way in ways {
                let said = self.fails(&way).await;
                if name == "unknown" {
                    assert!(said.contains("names are not resolved"), "{way}: {said}");
                }
            }
            if name != "unknown" {
                self.fails(&format!("{DEFAULT}/pods/{name}/log")).await;
                for way in [
                    "exec?command=id&stdout=1",
                    "attach?stdout=1",
                    "portforward?ports=1",
                ] {
                    self.cannot_upgrade(&format!("{DEFAULT}/pods/{name}/{way}"))
                        .await;
                }
                self.cannot_upgrade(&format!("/api/v1/nodes/{name}:{port}/proxy/"))
                    .await;
            }
        }
    }

    /// A service's end points are written by hand, also with a pod that claims their address.
    async fn endpoints(&self) {
        let endpoints = |address: &str, reference: Value| {
            json!({
                "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "handmade" },
                "subsets": [{
                    "addresses": [{ "ip": address, "targetRef": reference }],
                    "ports": [{ "name": "p", "port": self.port }],
                }],
            })
        };
        let path = format!("{DEFAULT}/endpoints");
        let loopback = endpoints("127.0.0.1", Value::Null);
        let refused = self.api.post(&path, &loopback).await.unwrap();
        assert_eq!(refused.status, 422, "{}", refused.message());

        self.make(
            &format!("{DEFAULT}/pods"),
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "claims" },
                "spec": { "containers": [{ "name": "c", "image": "i" }] },
            }),
        )
        .await;
        let own = self.own.to_string();
        let status = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "claims" },
            "status": { "podIP": own, "podIPs": [{ "ip": own }] },
        });
        let claimed = self
            .api
            .apply(&format!("{DEFAULT}/pods/claims/status"), &status)
            .await
            .unwrap();
        assert!(claimed.is_success(), "{}", claimed.message());
        let reference = json!({ "kind": "Pod", "namespace": "default", "name": "claims" });
        self.make(&path, endpoints(&own, reference)).await;
        let port = self.port;
        for way in [
            format!("{DEFAULT}/services/handmade:p/proxy/"),
            format!("{DEFAULT}/services/https:handmade:p/proxy/"),
            format!("{DEFAULT}/services/outside:p/proxy/"),
            format!("{DEFAULT}/pods/claims:{port}/proxy/"),
            format!("{DEFAULT}/pods/https:claims:{port}/proxy/"),
        ] {
            self.fails(&way).await;
        }
    }

    async fn component_statuses(&self) {
        for path in [
            "/api/v1/componentstatuses",
            "/api/v1/componentstatuses/scheduler",
        ] {
            assert_eq!(self.api.get(path).await.unwrap().status, 404, "{path}");
        }
    }

    /// The protocol is not changed to whatever is behind the path.
    async fn cannot_upgrade(&self, path: &str) {
        let url = format!("https://{}{path}", upstream::SERVER_NAME);
        let asked = self
            .by_hand
            .post(url)
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("authorization", &self.token);
        let status = asked.send().await.unwrap().status();
        assert!(status.as_u16() >= 400, "{path}: {status}");
    }

    /// What the server says instead of what is behind the path.
    async fn fails(&self, path: &str) -> String {
        let answer = self.api.get(path).await.unwrap();
        assert!(answer.status >= 400, "{path}: {}", answer.message());
        answer.message()
    }
}
