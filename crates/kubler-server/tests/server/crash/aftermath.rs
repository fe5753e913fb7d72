//! What may be left and what must be told once an environment is gone, however often its server was killed.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubler_testkit::buildkite::Job;
use kubler_testkit::kubler::Server;
use kubler_testkit::leaks::files_in;
use reqwest::Method;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The ids of all environments that were made for the job.
pub(super) async fn made_for(server: &Server, job: &Job) -> Vec<String> {
    let path = format!("/v1/environments?job={}", job.id());
    let listed = server.operator(Method::GET, &path).await;
    let listed = listed.body["environments"].as_array().unwrap().clone();
    let ids = listed.iter().map(|it| it["id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

/// No process, no file, no socket, and no user, role or key in etcd.
pub(super) async fn nothing_is_left(server: &Server, id: &str) {
    let marked = |process: &kubler_testkit::leaks::Process| {
        let mark = process.variable("KUBLER_MARK").unwrap_or_default();
        mark.ends_with(id) || process.command.contains(id)
    };
    let mut processes = server.processes();
    processes.retain(marked);
    assert!(processes.is_empty(), "{processes:#?}");
    let files = files_in(&server.folder());
    let digits = id.trim_start_matches("env_");
    let files: Vec<_> = files
        .iter()
        .filter(|path| path.to_string_lossy().contains(digits))
        .collect();
    assert!(files.is_empty(), "{files:?}");
    let holds = etcd_holds(server, id).await;
    assert!(holds.is_empty(), "etcd has {holds:?} of {id}");
}

/// Every start of the job in the ledger has one end, and the phases of its environment are there once and in order,
/// until it was gone. Gives the phases.
pub(super) async fn is_told(server: &Server, job: &Job, id: &str) -> Vec<String> {
    let path = format!("/v1/ledger/records?job={}&limit=1000", job.id());
    let read = server.operator(Method::GET, &path).await;
    let records = read.body["records"].as_array().unwrap().clone();
    let of_kind = |kind: &'static str| records.iter().filter(move |it| it["kind"] == kind);
    let sequences = |sequences: Vec<&Value>| {
        let mut sequences: Vec<_> = sequences.iter().map(|it| it.as_u64().unwrap()).collect();
        sequences.sort_unstable();
        sequences
    };
    let shown = || {
        let lines = records.iter().map(|it| {
            let of = |key: &str| it[key].to_string();
            let told = ["sequence", "kind", "action", "start", "phase", "outcome"].map(of);
            told.join(" ") + &of("details")
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let starts = sequences(of_kind("start").map(|it| &it["sequence"]).collect());
    let ends = sequences(of_kind("end").map(|it| &it["start"]).collect());
    assert!(!starts.is_empty() && starts == ends, "{}", shown());
    let changes = of_kind("event")
        .filter(|it| it["action"] == "environment.phase" && it["environment_id"] == id);
    let mut phases = Vec::new();
    for change in changes {
        let (from, to) = (&change["phase"]["from"], &change["phase"]["to"]);
        let last = phases.last().map(String::as_str);
        assert_eq!(from.as_str(), last, "{}", shown());
        phases.push(to.as_str().unwrap().to_owned());
    }
    assert_eq!(phases.last().unwrap(), "gone", "{}", shown());
    phases
}

/// Stopped without environments, the server takes etcd with it, but only when etcd holds nothing; the ledger of all
/// that happened verifies.
pub(super) async fn leaves_nothing(mut server: Server) {
    server.stop().await;
    let left = server.processes();
    assert!(left.is_empty(), "{left:#?}\n{}", server.log());
    assert!(!server.folder().join("data/local/etcd").exists());
    let ledger = server.folder().join("data/ledger");
    let verified = server.cli(&["ledger", "verify", ledger.to_str().unwrap()]);
    assert!(verified.status.success(), "{verified:?}");
}

/// What etcd has of an environment: asked as its root, without any code of the server's.
async fn etcd_holds(server: &Server, id: &str) -> Vec<&'static str> {
    let prefix = format!("/environments/{id}");
    // Key, end of the range, and one key at most.
    let mut range = field(1, format!("{prefix}/").as_bytes());
    range.extend(field(2, format!("{prefix}0").as_bytes()));
    range.extend([3 << 3, 1]);
    let mut holds = Vec::new();
    for (what, method, request) in [
        ("a user", "Auth/UserList", Vec::new()),
        ("a role", "Auth/RoleList", Vec::new()),
        ("a key", "KV/Range", range),
    ] {
        let answer = ask_etcd(server, method, &request).await;
        if String::from_utf8_lossy(&answer).contains(id) {
            holds.push(what);
        }
    }
    holds
}

/// A field of bytes as protobuf writes it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 128, "one byte says the length");
    [&[number << 3 | 2, length], bytes].concat()
}

/// One request, and the bytes of its answer.
async fn ask_etcd(server: &Server, method: &str, message: &[u8]) -> Bytes {
    let folder = server.folder().join("data/local/etcd");
    let text = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let record: Value = serde_json::from_slice(&text("record.json")).unwrap();
    let port = u16::try_from(record["port"].as_u64().unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&text("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&text("root.crt")).unwrap()],
            PrivateKeyDer::from_pem_slice(&text("root.key")).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream);
    let stream = TokioIo::new(stream.await.unwrap());
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], &length[..], message].concat();
    let request = http::Request::post(format!("https://localhost/etcdserverpb.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(framed)))
        .unwrap();
    let answer = requests.send_request(request).await.unwrap();
    let answer = answer.into_body().collect().await.unwrap();
    let status = answer.trailers().and_then(|all| all.get("grpc-status"));
    assert_eq!(status.unwrap(), "0", "etcd refuses {method}");
    connection.abort();
    answer.to_bytes()
}
