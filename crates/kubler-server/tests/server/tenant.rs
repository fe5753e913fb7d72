//! A job that is cluster-admin of its own environment and wants to be somebody elsewhere, or somebody for longer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubler_testkit::buildkite::{Buildkite, Job};
use kubler_testkit::kubler::{Answer, Server};
use kubler_testkit::leaks::{groups, listening_sockets};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use reqwest::Method;
use rustix::thread::set_thread_res_uid;
use serde_json::{Value, json};

use crate::SOON;

/// Somebody else on the machine.
const ANOTHER_USER: u32 = 65_534;
/// How the user begins as whom the gateway speaks to an API server.
const GATEWAY_USER: &str = "kubler:job:";
const ACCOUNT: &str = "/api/v1/namespaces/default/serviceaccounts/default";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// One job's environment, reached through the gateway.
struct Inside<'a> {
    server: &'a Server,
    job: Job,
    id: String,
    session: String,
}

impl<'a> Inside<'a> {
    async fn new(server: &'a Server, job: Job) -> Self {
        let made = server.create(&job, "main").await;
        let id = made["id"].as_str().unwrap().to_owned();
        let session = server.session(&job, &id).await;
        Self {
            server,
            job,
            id,
            session,
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.ask_as(Some(&self.session), method, path, body).await
    }

    async fn ask_as(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let path = format!("/k8s/{}{path}", self.id);
        self.server.request(method, &path, token, body).await
    }

    /// Makes an object that must be taken.
    async fn make(&self, path: &str, object: Value) -> Value {
        let made = self.ask(Method::POST, path, Some(&object)).await;
        assert!(made.status.is_success(), "{object}: {made:?}");
        made.body
    }

    async fn replace(&self, path: &str, object: &Value) {
        let made = self.ask(Method::PUT, path, Some(object)).await;
        assert!(made.status.is_success(), "{object}: {made:?}");
    }

    fn folder(&self) -> PathBuf {
        self.server.folder().join("data/local/run").join(&self.id)
    }

    async fn reads(&self) -> bool {
        let read = self.ask(Method::GET, "/api/v1/namespaces", None).await;
        read.status == 200
    }
}

/// Asks the API server of an environment on its own socket, as only our user can.
async fn directly(
    environment: &Inside<'_>,
    token: Option<&str>,
    identity: Option<reqwest::Identity>,
) -> u16 {
    let authority = std::fs::read(environment.folder().join("ca.crt")).unwrap();
    let builder = reqwest::Client::builder()
        .use_rustls_tls()
        .tls_certs_only([reqwest::Certificate::from_pem(&authority).unwrap()])
        .unix_socket(environment.folder().join("api.sock"));
    let builder = identity
        .into_iter()
        .fold(builder, reqwest::ClientBuilder::identity);
    let request = builder
        .build()
        .unwrap()
        .get(format!("https://kubernetes.default.svc{SECRETS}"));
    let request = token
        .into_iter()
        .fold(request, reqwest::RequestBuilder::bearer_auth);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_mints_inside_its_environment_opens_nothing_outside() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let build = buildkite.build("app").start();
    let inside = Inside::new(&server, build.job("attacker").run()).await;
    let neighbour = Inside::new(&server, build.job("neighbour").run()).await;

    // Nobody at all is cluster-admin in here, and so is the account whose token is minted.
    let subject = |kind: &str, name: &str| {
        let mut subject = json!({ "kind": kind, "name": name });
        match kind {
            "ServiceAccount" => subject["namespace"] = "default".into(),
            _ => subject["apiGroup"] = "rbac.authorization.k8s.io".into(),
        }
        subject
    };
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "everybody" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [
            subject("User", "system:anonymous"), subject("Group", "system:unauthenticated"),
            subject("ServiceAccount", "default"), subject("User", "mallory"),
        ],
    });
    inside
        .make(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            binding,
        )
        .await;
    let asked = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 3600 },
    });
    let minted = inside.make(&format!("{ACCOUNT}/token"), asked).await;
    let minted = minted["status"]["token"].as_str().unwrap();
    let certificate = signed_inside(&inside).await;

    // The gateway knows none of it, neither here nor next door.
    for environment in [&inside, &neighbour] {
        for token in [None, Some(minted)] {
            let answer = environment.ask_as(token, Method::GET, SECRETS, None).await;
            assert_eq!(answer.status, 401, "{answer:?}");
        }
    }
    assert_eq!(server.exchange(minted, &inside.id).await.status, 401);
    let as_operator = reqwest::Client::builder()
        .use_rustls_tls()
        .tls_certs_only([
            reqwest::Certificate::from_pem(&std::fs::read(server.ca()).unwrap()).unwrap(),
        ])
        .identity(certificate.clone())
        .build()
        .unwrap();
    let url = format!("{}/v1/environments", server.url());
    let answer = as_operator.get(url).send().await;
    assert!(answer.is_err(), "a certificate of its own: {answer:?}");

    // Nor is there a way around the gateway: no port, and sockets that only the server's user can open.
    let listening = listening_sockets(&server.control_planes());
    let sockets =
        [&inside, &neighbour].map(|one| one.folder().join("api.sock").display().to_string());
    assert_eq!(listening.len(), 2, "{listening:?}");
    for socket in &sockets {
        assert!(listening.contains(socket), "{listening:?}");
    }
    another_user_finds_no_door(&inside);
    the_way_out_does_not_lead_to(&neighbour, &inside).await;

    // Even there, by hand: nobody is nobody, a certificate says nothing, and a token is known at home only.
    for environment in [&inside, &neighbour] {
        assert_eq!(directly(environment, None, None).await, 401);
        assert_eq!(
            directly(environment, None, Some(certificate.clone())).await,
            401
        );
    }
    assert_eq!(directly(&inside, Some(minted), None).await, 200);
    assert_eq!(directly(&neighbour, Some(minted), None).await, 401);
}

/// A certificate that the environment itself approved and holds as issued, with its key.
async fn signed_inside(inside: &Inside<'_>) -> reqwest::Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "mallory");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let wanted = params.serialize_request(&key).unwrap().pem().unwrap();
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let mut request = inside
        .make(path, json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": { "name": "mine" },
            "spec": {
                "request": STANDARD.encode(wanted), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
            },
        }))
        .await;
    request["status"]["conditions"] =
        json!([{ "type": "Approved", "status": "True", "reason": "Mine" }]);
    inside
        .replace(&format!("{path}/mine/approval"), &request)
        .await;

    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let issued = params.signed_by(&key, &authority).unwrap().pem();
    let mut request = inside
        .ask(Method::GET, &format!("{path}/mine"), None)
        .await
        .body;
    request["status"]["certificate"] = STANDARD.encode(&issued).into();
    inside
        .replace(&format!("{path}/mine/status"), &request)
        .await;
    reqwest::Identity::from_pem(format!("{issued}{}", key.serialize_pem()).as_bytes()).unwrap()
}

/// Needs a user who may become another one; as an ordinary user only the modes are looked at.
fn another_user_finds_no_door(inside: &Inside<'_>) {
    use std::os::unix::fs::PermissionsExt as _;
    let socket = inside.folder().join("api.sock");
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&inside.folder()), mode(&socket)), (0o700, 0o600));
    if !rustix::process::geteuid().is_root() {
        println!("not root: what another user sees is told by the modes alone");
        return;
    }
    let connected = std::thread::spawn(move || {
        let another = rustix::process::Uid::from_raw(ANOTHER_USER);
        // Of this thread alone, which ends with it.
        set_thread_res_uid(another, another, another).unwrap();
        UnixStream::connect(socket)
    });
    let error = connected.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

/// Where an environment's API server asks for what it is made to dial, nobody gets to another's API server, also not with
/// the very credential that is good there.
async fn the_way_out_does_not_lead_to(neighbour: &Inside<'_>, inside: &Inside<'_>) {
    let tokens = std::fs::read_to_string(neighbour.folder().join("tokens.csv")).unwrap();
    let of_gateway = tokens.lines().find(|line| line.contains(GATEWAY_USER));
    let (token, _) = of_gateway.unwrap().split_once(',').unwrap();
    assert_eq!(directly(neighbour, Some(token), None).await, 200);
    let socket = neighbour.folder().join("api.sock").display().to_string();
    let targets = [
        "kubernetes.default.svc:443".to_owned(),
        "127.0.0.1:443".to_owned(),
        socket.clone(),
        format!("{socket}:443"),
        format!("unix:{socket}"),
        format!("unix://{socket}:443"),
        format!("../{}/api.sock:443", neighbour.id),
    ];
    for target in targets {
        let mut out = UnixStream::connect(inside.folder().join("egress.sock")).unwrap();
        let asked = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        out.write_all(asked.as_bytes()).unwrap();
        let mut answer = String::new();
        out.read_to_string(&mut answer).unwrap();
        let is_refused = ["HTTP/1.1 403 ", "HTTP/1.1 400 "]
            .iter()
            .any(|refused| answer.starts_with(refused));
        assert!(is_refused, "{target}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_whose_contents_resist_ends_all_the_same() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let inside = Inside::new(&server, buildkite.build("app").start().job("test").run()).await;
    // Nobody will ever take this finalizer away, and the namespace around it never ends.
    inside
        .make(
            "/api/v1/namespaces",
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "stuck" } }),
        )
        .await;
    let held = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "finalizers": ["example.test/never"] },
        })
    };
    for namespace in ["stuck", "default"] {
        inside
            .make(
                &format!("/api/v1/namespaces/{namespace}/configmaps"),
                held("held"),
            )
            .await;
    }
    // An aggregated API that never answers, and a webhook in front of every deletion.
    inside.make("/apis/apiregistration.k8s.io/v1/apiservices", json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": "v1.never.example.test" },
        "spec": {
            "group": "never.example.test", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 10,
            "service": { "namespace": "default", "name": "never" }, "insecureSkipTLSVerify": true,
        },
    })).await;
    inside.make("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": { "name": "never" },
        "webhooks": [{
            "name": "never.example.test", "clientConfig": { "url": "https://192.0.2.9/" }, "timeoutSeconds": 30,
            "rules": [{ "operations": ["DELETE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"] }],
            "admissionReviewVersions": ["v1"], "sideEffects": "None",
        }],
    })).await;
    // What the environment itself ends on is asked to end as well.
    for namespace in ["stuck", "default", "kube-system"] {
        let path = format!("/api/v1/namespaces/{namespace}");
        let _ = inside.ask(Method::DELETE, &path, None).await;
    }
    let token = server.token(&inside.job);
    let path = format!("/v1/environments/{}/release", inside.id);
    let wait = json!({ "wait_seconds": 60 });
    let released = server
        .request(Method::POST, &path, Some(&token), Some(&wait))
        .await;
    assert_eq!(released.status, 200, "{released:?}");
    assert_eq!(released.body["phase"], "gone", "{released:?}");
    assert!(!inside.folder().exists());
    server.wait_until_no_control_plane(SOON).await.unwrap();
    let installation = server.folder().join("data/local/installation");
    let installation = std::fs::read_to_string(installation).unwrap();
    assert!(groups(installation.trim()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_fills_itself_from_inside_is_ended_and_its_neighbour_works_on() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite)
        .profile_line("stored_bytes_max: 1048576")
        .start()
        .await;
    let build = buildkite.build("app").start();
    let inside = Inside::new(&server, build.job("attacker").run()).await;
    let neighbour = Inside::new(&server, build.job("neighbour").run()).await;
    // One small request, which controllers then carry out behind the gateway, as fast as they can.
    inside.make("/apis/apps/v1/namespaces/default/replicasets", json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "million" },
        "spec": {
            "replicas": 1_000_000, "selector": { "matchLabels": { "app": "x" } },
            "template": { "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
        },
    })).await;
    let gone = |environment: &Value| environment["phase"] == "gone";
    server
        .wait_for(&inside.id, Duration::from_secs(120), gone)
        .await;
    let told = inside.ask(Method::GET, SECRETS, None).await;
    assert_eq!(told.status, 404, "{told:?}");
    let message = told.body["message"].as_str().unwrap();
    assert!(message.contains("`stored_bytes_max`"), "{message}");
    assert!(neighbour.reads().await);
}
