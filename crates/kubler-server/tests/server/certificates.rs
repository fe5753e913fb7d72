//! Certificates that change while requests run, and operators who are none any more.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kubler_testkit::buildkite::Buildkite;
use kubler_testkit::kubler::Server;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{LONG, metric};

/// A CA whose key is at hand.
struct Authority(Issuer<'static, KeyPair>);

/// A certificate with its key, both PEM.
struct Pair {
    certificate: String,
    key: String,
}

fn moment(days: i64) -> time::OffsetDateTime {
    let then = Timestamp::now() + SignedDuration::from_hours(24 * days);
    time::OffsetDateTime::from_unix_timestamp(then.as_second()).unwrap()
}

fn leaf(name: &str, usage: ExtendedKeyUsagePurpose, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.serial_number = Some(SerialNumber::from(serial));
    (params.not_before, params.not_after) = (moment(-2), moment(2));
    params
}

fn operator(name: &str, serial: u64) -> CertificateParams {
    leaf(name, ExtendedKeyUsagePurpose::ClientAuth, serial)
}

impl Authority {
    fn read(folder: &Path, name: &str) -> Self {
        let read = |end: &str| std::fs::read_to_string(folder.join(format!("{name}.{end}")));
        let key = KeyPair::from_pem(&read("key").unwrap()).unwrap();
        Self(Issuer::from_ca_cert_pem(&read("pem").unwrap(), key).unwrap())
    }

    /// Another CA, and its certificate.
    fn other(name: &str) -> (Self, String) {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (Self(Issuer::new(params, key)), pem)
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn server(&self, serial: u64) -> Pair {
        let mut params = leaf("Kubler", ExtendedKeyUsagePurpose::ServerAuth, serial);
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        self.sign(&params)
    }

    fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: moment(-1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: moment(-1),
            next_update: moment(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// Written beside and put in place, as a careful operator does.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

fn client(server: &Server, pair: Option<&Pair>, idle: usize) -> reqwest::Client {
    let ca = std::fs::read(server.ca()).unwrap();
    let mut builder = reqwest::Client::builder()
        .use_rustls_tls()
        .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
        .pool_max_idle_per_host(idle);
    if let Some(pair) = pair {
        let both = format!("{}{}", pair.certificate, pair.key);
        builder = builder.identity(reqwest::Identity::from_pem(both.as_bytes()).unwrap());
    }
    builder.build().unwrap()
}

/// What the server answers to an operator's question; `None` when TLS already refuses.
async fn asks(server: &Server, client: &reqwest::Client) -> Option<StatusCode> {
    let url = format!("{}/v1/environments", server.url());
    Some(client.get(url).send().await.ok()?.status())
}

async fn until<T: PartialEq + std::fmt::Debug>(wanted: T, look: impl AsyncFn() -> T) {
    let deadline = Instant::now() + LONG;
    loop {
        let seen = look().await;
        if seen == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "still {seen:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The serial number that a new connection is shown.
async fn shown(server: &Server) -> u64 {
    let (address, ca) = (
        server.url().trim_start_matches("https://"),
        std::fs::read(server.ca()).unwrap(),
    );
    let stream = kubler_testkit::tls::connect(address, &ca).await;
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&certificates[0]).unwrap();
    leaf.raw_serial()
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_changes_without_a_lost_request_and_a_bad_one_is_kept_out() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let tls = server.folder().join("tls");
    let authority = Authority::read(&tls, "ca");
    let job = buildkite.build("app").start().job("test").run();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let session = server.session(&job, id).await;
    let path = format!("/k8s/{id}/api/v1/namespaces/default/configmaps");
    let mut watch = server
        .client()
        .get(format!("{}{path}?watch=1", server.url()))
        .bearer_auth(&session)
        .send()
        .await
        .unwrap();
    assert_eq!(watch.status(), 200);

    // Somebody asks all the time, with new connections and with a kept one.
    let over = tokio_util::sync::CancellationToken::new();
    let askers: Vec<_> = [0, 1]
        .map(|idle| {
            let (client, over) = (client(&server, None, idle), over.clone());
            let url = format!("{}/healthz", server.url());
            tokio::spawn(async move {
                let mut answers = 0_u32;
                while !over.is_cancelled() {
                    let answer = client.get(&url).send().await.expect("no request is lost");
                    assert_eq!(answer.status(), 200);
                    answers += 1;
                }
                answers
            })
        })
        .into();
    for serial in [1001, 1002] {
        let pair = authority.server(serial);
        replace(&tls.join("server.pem"), &pair.certificate);
        replace(&tls.join("server.key"), &pair.key);
        until(serial, async || shown(&server).await).await;
    }
    // A key of another certificate, and then no certificate at all.
    let other = authority.server(1003);
    replace(&tls.join("server.key"), &other.key);
    until(1, async || metric(&server, "certificates_refused").await).await;
    replace(&tls.join("server.pem"), "not a certificate");
    server.reload();
    until(true, async || {
        server.log().contains("certificates cannot be loaded")
    })
    .await;
    assert_eq!(shown(&server).await, 1002, "the old one stays");
    replace(&tls.join("server.pem"), &other.certificate);
    until(0, async || metric(&server, "certificates_refused").await).await;
    assert_eq!(shown(&server).await, 1003);

    over.cancel();
    for asker in askers {
        assert!(asker.await.unwrap() > 0);
    }
    let object =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "after" } });
    let made = server
        .request(Method::POST, &path, Some(&session), Some(&object))
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    let mut seen = String::new();
    while !seen.contains("\"after\"") {
        let chunk = tokio::time::timeout(LONG, watch.chunk()).await;
        let chunk = chunk.expect("an event").unwrap().expect("an open watch");
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    let records = server
        .operator(Method::GET, "/v1/ledger/records?limit=1000")
        .await;
    let records = records.body["records"].as_array().unwrap().clone();
    let loads: Vec<_> = records
        .iter()
        .filter(|record| record["action"] == "certificate.load")
        .map(|record| record["details"]["refused"].is_null())
        .collect();
    let count = |loaded: bool| {
        loads
            .iter()
            .filter(|is_loaded| **is_loaded == loaded)
            .count()
    };
    assert!(count(true) >= 3 && count(false) >= 1, "{loads:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_callers_would_not_believe_is_kept_out() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let tls = server.folder().join("tls");
    let before = shown(&server).await;
    let put = |pair: &Pair| {
        replace(&tls.join("server.pem"), &pair.certificate);
        replace(&tls.join("server.key"), &pair.key);
    };
    let (foreign, _) = Authority::other("Kubler CA");
    let mut elsewhere = leaf("Kubler", ExtendedKeyUsagePurpose::ServerAuth, 1003);
    elsewhere.subject_alt_names = vec![SanType::DnsName("elsewhere.test".try_into().unwrap())];
    let authority = Authority::read(&tls, "ca");
    for (pair, why) in [
        (foreign.server(1002), "`tls.ca` did not sign"),
        (authority.sign(&elsewhere), "is not for `127.0.0.1`"),
    ] {
        put(&pair);
        until(true, async || server.log().contains(why)).await;
        assert_eq!(shown(&server).await, before, "{why}");
    }
    put(&authority.server(1004));
    until(1004, async || shown(&server).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_certificate_that_the_operators_ca_signed_for_clients_makes_an_operator() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let authority = Authority::read(&server.folder().join("tls"), "operator-ca");
    let asks = async |pair: &Pair| asks(&server, &client(&server, Some(pair), 0)).await;
    let good = authority.sign(&operator("ops", 1));
    assert_eq!(asks(&good).await, Some(StatusCode::OK));

    let mut expired = operator("ops", 2);
    expired.not_after = moment(-1);
    assert_eq!(asks(&authority.sign(&expired)).await, None, "expired");
    let mut early = operator("ops", 3);
    early.not_before = moment(1);
    assert_eq!(asks(&authority.sign(&early)).await, None, "not yet valid");
    let servers = leaf("ops", ExtendedKeyUsagePurpose::ServerAuth, 4);
    assert_eq!(asks(&authority.sign(&servers)).await, None, "a server's");
    let (other, _) = Authority::other("Kubler operators");
    let foreign = other.sign(&operator("ops", 1));
    assert_eq!(asks(&foreign).await, None, "another CA of the same name");
    let callers = Authority::read(&server.folder().join("tls"), "ca");
    let ours = callers.sign(&operator("ops", 1));
    assert_eq!(asks(&ours).await, None, "the CA of the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_none_any_more_once_the_certificate_is_revoked_or_its_ca_is_gone() {
    let buildkite = Buildkite::start();
    let draft = Server::of(&buildkite);
    let tls = draft.folder().join("k/tls");
    let authority = Authority::read(&tls, "operator-ca");
    let server = draft
        .file("tls/operators.crl", &authority.revoke(&[77]))
        .section("tls: {operator_crl: tls/operators.crl}")
        .start()
        .await;
    let (leaving, staying) = (
        authority.sign(&operator("leaving", 100)),
        authority.sign(&operator("staying", 101)),
    );
    // One connection each that stays open, so that the handshake is long over when trust ends.
    let (leaving_kept, staying_kept) = (
        client(&server, Some(&leaving), 1),
        client(&server, Some(&staying), 1),
    );
    let ok = Some(StatusCode::OK);
    assert_eq!(asks(&server, &leaving_kept).await, ok);
    assert_eq!(asks(&server, &staying_kept).await, ok);

    replace(&tls.join("operators.crl"), &authority.revoke(&[77, 100]));
    let unauthorized = Some(StatusCode::UNAUTHORIZED);
    until(unauthorized, async || asks(&server, &leaving_kept).await).await;
    let again = client(&server, Some(&leaving), 0);
    assert_eq!(asks(&server, &again).await, None, "not let in again");
    assert_eq!(asks(&server, &staying_kept).await, ok);

    let (successor, pem) = Authority::other("Kubler operators, second");
    replace(&tls.join("operators.crl"), &successor.revoke(&[]));
    replace(&tls.join("operator-ca.pem"), &pem);
    until(unauthorized, async || asks(&server, &staying_kept).await).await;
    let again = client(&server, Some(&staying), 0);
    assert_eq!(asks(&server, &again).await, None, "not let in again");
    let new = successor.sign(&operator("new", 1));
    assert_eq!(asks(&server, &client(&server, Some(&new), 0)).await, ok);
}
