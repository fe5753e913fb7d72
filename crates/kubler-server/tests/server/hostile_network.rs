//! Those on the network who want no answer but the server's time, memory and places. Good callers are served meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kubler_testkit::buildkite::{Buildkite, OidcRequest};
use kubler_testkit::kubler::Server;
use kubler_testkit::tls;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::{LONG, metric};

/// Connections of each kind of silence.
const EACH: usize = 60;

fn address(server: &Server) -> SocketAddr {
    let address = server.url().trim_start_matches("https://");
    address.parse().unwrap()
}

async fn from(source: [u8; 4], server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(address(server)).await.unwrap()
}

pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition().await {
        assert!(Instant::now() < deadline, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn records(server: &Server, action: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        let path = format!("/v1/ledger/records?limit=1000&from={from}");
        let page = server.operator(Method::GET, &path).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.body["records"].as_array().unwrap().clone();
        let Some(last) = page.last() else {
            return found;
        };
        from = last["sequence"].as_u64().unwrap() + 1;
        // Reading is recorded too: what was there when it began is enough.
        let is_last = page.len() < 100;
        found.extend(page.into_iter().filter(|record| record["action"] == action));
        if is_last {
            return found;
        }
    }
}

/// How many refusals with this reason the ledger has counted until now.
pub(crate) async fn counted(server: &Server, reason: &str) -> u64 {
    let many = records(server, "caller.refuse_many").await;
    let of_reason = many
        .iter()
        .filter(|record| record["details"]["reason"] == reason);
    of_reason
        .map(|record| record["details"]["count"].as_u64().unwrap())
        .sum()
}

/// A ClientHello of this version with one suite, and nothing that newer versions would need.
fn client_hello(version: [u8; 2], suite: [u8; 2]) -> Vec<u8> {
    let mut hello = vec![version[0], version[1]];
    hello.extend([7; 32]); // random
    hello.extend([0, 0, 2, suite[0], suite[1], 1, 0]); // no session, one suite, no compression
    // Groups, points, and signatures that such a client would offer.
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, // P-256
        0, 11, 0, 2, 1, 0, // uncompressed
        0, 13, 0, 6, 0, 4, 4, 3, 4, 1, // ECDSA and RSA with SHA-256
    ];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut message = vec![1, 0, 0, hello.len() as u8];
    message.extend(hello);
    let mut record = vec![0x16, 3, 1, 0, message.len() as u8];
    record.extend(message);
    record
}

/// The first bytes of the answer.
async fn answer(server: &Server, hello: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address(server)).await.unwrap();
    stream.write_all(hello).await.unwrap();
    let mut answer = vec![0; 7];
    let read = tokio::time::timeout(LONG, stream.read_exact(&mut answer)).await;
    read.expect("an answer").expect("an answer of TLS");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_before_1_2_and_weak_suites_are_refused() {
    const STRONG: [u8; 2] = [0xc0, 0x2b]; // ECDHE-ECDSA-AES128-GCM-SHA256
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let good = answer(&server, &client_hello([3, 3], STRONG)).await;
    assert_eq!(good[0], 0x16, "TLS 1.2 is spoken: {good:?}");
    for old in [[3, 0], [3, 1], [3, 2]] {
        let refused = answer(&server, &client_hello(old, STRONG)).await;
        assert_eq!((refused[0], refused[5]), (0x15, 2), "{old:?}: {refused:?}");
    }
    let weak = [
        [0x00, 0x2f], // RSA key exchange, AES-128-CBC-SHA
        [0xc0, 0x09], // ECDHE-ECDSA, AES-128-CBC-SHA
        [0xc0, 0x07], // RC4
        [0x00, 0x0a], // 3DES
        [0xc0, 0x06], // no cipher at all
        [0x00, 0x00],
    ];
    for suite in weak {
        let refused = answer(&server, &client_hello([3, 3], suite)).await;
        assert_eq!(
            (refused[0], refused[5]),
            (0x15, 2),
            "{suite:?}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_begin_and_do_not_go_on_keep_no_place_and_good_callers_are_served() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let ca = std::fs::read(server.ca()).unwrap();
    let hello = client_hello([3, 3], [0xc0, 0x2b]);
    let job = buildkite.build("app").start().job("test").run();
    let head = format!(
        "POST /v1/environments HTTP/1.1\r\nHost: kubler\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\n",
        server.token(&job)
    );
    let (mut silent, mut dripping) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        // Says nothing at all; begins to say hello; says hello and no more.
        for begun in [0, 10, hello.len()] {
            let mut stream = TcpStream::connect(address(&server)).await.unwrap();
            stream.write_all(&hello[..begun]).await.unwrap();
            silent.push(stream);
        }
        // Headers, and a body, byte by byte.
        for begun in [
            "GET /healthz HTTP/1.1\r\nHost: kubler\r\nX-Slow: ",
            head.as_str(),
        ] {
            let stream = TcpStream::connect(address(&server)).await.unwrap();
            let mut stream = tls::over(stream, &ca).await;
            stream.write_all(begun.as_bytes()).await.unwrap();
            dripping.push(tokio::spawn(async move {
                while stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }));
        }
    }
    let environment = server.create(&job, "main").await;
    assert_eq!(environment["phase"], "ready");
    let few = i64::try_from(EACH / 4).unwrap();
    until("all places are given back", async || {
        metric(&server, "connections").await < few
    })
    .await;
    for dripping in dripping {
        dripping.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_headers_and_endless_bodies_are_refused() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let ca = std::fs::read(server.ca()).unwrap();
    let chunk = [b'x'; 64 * 1024];
    for (begun, end) in [
        ("GET /healthz HTTP/1.1\r\nHost: kubler\r\nX-Huge: ", "431"),
        (
            "POST /v1/token HTTP/1.1\r\nHost: kubler\r\nContent-Length: 99999999999\r\n\r\n",
            "413",
        ),
    ] {
        let stream = TcpStream::connect(address(&server)).await.unwrap();
        let (mut read, mut write) = tokio::io::split(tls::over(stream, &ca).await);
        write.write_all(begun.as_bytes()).await.unwrap();
        let sending = tokio::spawn(async move {
            let mut sent = 0_usize;
            while write.write_all(&chunk).await.is_ok() && sent < 1 << 30 {
                sent += chunk.len();
            }
            sent
        });
        let mut answer = [0; 12];
        let answered = tokio::time::timeout(LONG, read.read_exact(&mut answer)).await;
        answered.expect("an answer").unwrap();
        assert_eq!(String::from_utf8_lossy(&answer[9..]), end);
        drop(read);
        let sent = tokio::time::timeout(LONG, sending).await;
        let sent = sent.expect("the connection is closed").unwrap();
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
    let well = server.request(Method::GET, "/healthz", None, None).await;
    assert_eq!(well.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_the_places_of_another() {
    let buildkite = Buildkite::start();
    let limits = "limits: {connections_max: 30, connections_per_address_max: 20}";
    let server = Server::of(&buildkite).section(limits).start().await;
    let ca = std::fs::read(server.ca()).unwrap();
    let mut greedy = Vec::new();
    for _ in 0..40 {
        greedy.push(from([127, 0, 0, 3], &server).await);
    }
    // From another address all is well: twenty of thirty places are taken, and not more.
    let taken = metric(&server, "connections").await;
    assert!((20..30).contains(&taken), "{taken}");
    let mut refused = greedy.pop().unwrap();
    let closed = tokio::time::timeout(LONG, refused.read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    let mut other = tls::over(from([127, 0, 0, 4], &server).await, &ca).await;
    let hello = b"GET /healthz HTTP/1.1\r\nHost: kubler\r\nConnection: close\r\n\r\n";
    other.write_all(hello).await.unwrap();
    let mut answer = [0; 12];
    other.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(greedy);
    bodies_of_another_are_read(&server, &ca).await;
    until("the greedy one's places are free", async || {
        metric(&server, "connections").await < 5
    })
    .await;
    let again = tls::over(from([127, 0, 0, 3], &server).await, &ca).await;
    drop(again);
    until("the refusals are in the ledger", async || {
        counted(&server, "connections_of_address").await >= 20
    })
    .await;
}

/// Webhooks that do not come: one address has half of the places and no more.
async fn bodies_of_another_are_read(server: &Server, ca: &[u8]) {
    const WEBHOOKS_OF_ADDRESS: usize = 8;
    let ask = async |source, body: &str| {
        let mut stream = tls::over(from(source, server).await, ca).await;
        let head = format!(
            "POST /v1/hooks/buildkite HTTP/1.1\r\nHost: kubler\r\nContent-Length: 2\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let status = async |stream: &mut tls::Stream| {
        let mut answer = [0; 12];
        let read = tokio::time::timeout(LONG, stream.read_exact(&mut answer)).await;
        read.expect("an answer").unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    let mut held = Vec::new();
    let refused = loop {
        let mut stream = ask([127, 0, 0, 5], "{").await;
        tokio::select! {
            status = status(&mut stream) => break status,
            () = tokio::time::sleep(Duration::from_millis(300)) => held.push(stream),
        }
    };
    assert_eq!((held.len(), refused.as_str()), (WEBHOOKS_OF_ADDRESS, "503"));
    let mut other = ask([127, 0, 0, 6], "{}").await;
    assert_eq!(status(&mut other).await, "401");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_bad_tokens_stop_no_good_caller_and_are_counted() {
    const CONNECTIONS: u64 = 8;
    const TOKENS_EACH: u64 = 500;
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let ca = std::fs::read(server.ca()).unwrap();
    let job = buildkite.build("app").start().job("test").run();
    // Everything is as it should be but the signature, which is the dearest one to refuse.
    let forged = job.forge(&OidcRequest::for_kubler(server.url())).sign();
    let (message, signature) = forged.rsplit_once('.').unwrap();
    let signature = format!("{}AAAA", &signature[..signature.len() - 4]);
    let request = format!(
        "GET /v1/environments HTTP/1.1\r\nHost: kubler\r\nAuthorization: Bearer {message}.{signature}\r\n\r\n"
    );
    let floods: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (request, ca, address) = (request.clone(), ca.clone(), address(&server));
            tokio::spawn(async move {
                let stream = TcpStream::connect(address).await.unwrap();
                let mut stream = tls::over(stream, &ca).await;
                let mut answer = vec![0; 16 * 1024];
                for _ in 0..TOKENS_EACH {
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let read = stream.read(&mut answer).await.unwrap();
                    assert!(answer[..read].starts_with(b"HTTP/1.1 401"));
                }
            })
        })
        .collect();
    let environment = server.create(&job, "main").await;
    let id = environment["id"].as_str().unwrap();
    let mut exchanges = 0;
    while exchanges < 10 || floods.iter().any(|flood| !flood.is_finished()) {
        server.session(&job, id).await;
        exchanges += 1;
    }
    for flood in floods {
        flood.await.unwrap();
    }
    let all = CONNECTIONS * TOKENS_EACH;
    until("every refusal is counted", async || {
        counted(&server, "token_signature").await == all
    })
    .await;
    let many = records(&server, "caller.refuse_many").await;
    assert!(many.len() < 100, "{} records", many.len());
    let named = server.log().matches("a request was refused").count();
    assert!(named < 1000, "{named} lines in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_writes_so_many_refusals_of_its_own_deeds_and_no_more() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let (job, other) = (
        buildkite.build("app").start().job("test").run(),
        buildkite.build("app").start().job("test").run(),
    );
    let environment = server.create(&job, "main").await;
    let body = json!({ "profile": "no-such-profile" });
    let token = server.token(&job);
    let mut last = Value::Null;
    let mut statuses = Vec::new();
    for _ in 0..400 {
        let answer = server
            .request(Method::POST, "/v1/environments", Some(&token), Some(&body))
            .await;
        statuses.push(answer.status.as_u16());
        last = answer.body;
    }
    let too_many = statuses.iter().filter(|status| **status == 429).count();
    assert!(too_many >= 200, "{too_many} of {}", statuses.len());
    assert!(statuses.iter().take(50).all(|status| *status == 404));
    let detail = last["detail"].as_str().unwrap();
    assert!(detail.contains("no-such-profile"), "it says why: {detail}");
    let refused = records(&server, "environment.create").await;
    let refused = refused.iter().filter(|record| record["kind"] == "end");
    assert_eq!(refused.count(), 400 - too_many + 1, "one of them was made");
    until("the others are counted", async || {
        counted(&server, "job_refused_too_often").await >= u64::try_from(too_many).unwrap()
    })
    .await;
    // Its neighbour is not touched, and its own end is never stopped.
    let neighbour = server.create(&other, "main").await;
    assert_eq!(neighbour["phase"], "ready");
    // What was earned meanwhile is used up, so that anything else would be stopped now.
    let create = "/v1/environments";
    let ask = || server.request(Method::POST, create, Some(&token), Some(&body));
    let release = async |id: &Value| {
        while ask().await.status != 429 {}
        let path = format!("/v1/environments/{}/release", id.as_str().unwrap());
        server
            .request(Method::POST, &path, Some(&token), None)
            .await
    };
    // Nor does an end that is not its own help it past the bound. On a slow machine it may just have earned a refusal.
    until("it is stopped", async || {
        release(&neighbour["id"]).await.status == 429
    })
    .await;
    let released = release(&environment["id"]).await;
    assert_eq!(released.status, 200, "{released:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_strangers_do_not_hide_one_that_was_stolen() {
    let buildkite = Buildkite::builder()
        .organization("acme", &["app"])
        .organization("other", &["app"])
        .start();
    let server = Server::of(&buildkite).start().await;
    let job = buildkite.build("acme/app").start().job("test").run();
    let stranger = buildkite.build("other/app").start().job("test").run();
    let request = OidcRequest::for_kubler(server.url());
    // Each is another token, validly signed for us: more of them than refusals have records of their own.
    for nth in 0..130 {
        let now = jiff::Timestamp::now();
        let token = stranger.forge(&request).minted_at(now, 100 + nth).sign();
        let path = "/v1/environments";
        let answer = server.request(Method::GET, path, Some(&token), None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    }
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(2000);
    let stolen = job.forge(&request).minted_at(then, 300).sign();
    let path = "/v1/environments";
    let answer = server.request(Method::GET, path, Some(&stolen), None).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let refused = records(&server, "caller.refuse").await;
    let id = job.id().to_string();
    let of_job = |record: &&Value| record["identity"]["job"]["id"] == id.as_str();
    assert_eq!(refused.iter().filter(of_job).count(), 1, "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_when_its_caller_is_gone_and_what_was_asked_goes_on() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let etcd = |signal| {
        let processes = server.processes();
        let etcd = processes
            .iter()
            .find(|process| process.command.contains("/etcd "))
            .expect("etcd");
        etcd.signal(signal);
    };
    // Nothing can be made while etcd stands still.
    etcd(Signal::STOP);
    let ask = || {
        let job = buildkite.build("app").start().job("test").run();
        let body = json!({ "profile": "ci-small", "name": "main", "wait_seconds": 60 });
        let create = server
            .client()
            .post(format!("{}/v1/environments", server.url()))
            .bearer_auth(server.token(&job))
            .json(&body);
        tokio::spawn(create.send())
    };
    // One stays, and its wait is the older one: it would be over first, if waits went on without their callers.
    let open = async |wanted| metric(&server, "requests_open").await == wanted;
    let stays = ask();
    until("the first waits", async || open(2).await).await;
    let goes = ask();
    until("both wait", async || open(3).await).await;
    goes.abort();
    until("one waits", async || open(2).await).await;
    assert!(!stays.is_finished(), "its wait is not over");
    etcd(Signal::CONT);
    let listed = server.operator(Method::GET, "/v1/environments").await;
    let made = listed.body["environments"].as_array().unwrap();
    assert_eq!(made.len(), 2, "what was asked goes on: {made:#?}");
    for environment in made {
        let id = environment["id"].as_str().unwrap();
        let is_ready = |environment: &Value| environment["phase"] == "ready";
        server.wait_for(id, LONG, is_ready).await;
    }
    assert_eq!(stays.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_callers_request_id_is_found_in_the_log() {
    let buildkite = Buildkite::start();
    let server = Server::of(&buildkite).start().await;
    let path = "/v1/environments";
    let answer = server
        .request(Method::GET, path, Some("not-a-token"), None)
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let id = answer.body["request_id"].as_str().unwrap();
    let log = server.log();
    let line = log.lines().find(|line| line.contains(id));
    let line = line.unwrap_or_else(|| panic!("{id} is not in {log}"));
    assert!(line.contains("token_not_a_jwt"), "{line}");
}
