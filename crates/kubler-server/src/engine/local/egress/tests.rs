use super::*;

type Records = Arc<Mutex<Vec<(String, String, u64)>>>;

fn recorder(records: &Records) -> Recorder {
    let records = Arc::clone(records);
    Arc::new(move |body: Body| {
        let text = |name: &str| {
            body.details
                .get(name)
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let count = body
            .details
            .get("count")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_default();
        records
            .lock()
            .unwrap()
            .push((text("target"), body.outcome.unwrap().code.unwrap(), count));
        Box::pin(std::future::ready(true))
    })
}

async fn ask(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

fn connect_to(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

#[tokio::test]
async fn what_is_not_listed_or_is_this_machine_is_refused_and_written_down_once() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("egress.sock");
    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("127.0.0.1:{}", canary.local_addr().unwrap().port());
    let by_name = format!("localhost:{}", canary.local_addr().unwrap().port());
    let records = Records::default();
    let listed = [own.clone(), by_name.clone()];
    let _serving = serve(
        &socket,
        EnvironmentId::from_random([1; 16]),
        &listed,
        recorder(&records),
    )
    .unwrap();
    for target in [&own, &by_name, &"192.0.2.9:443".to_owned(), &own] {
        assert_eq!(
            ask(&socket, &connect_to(target)).await,
            "HTTP/1.1 403",
            "{target}"
        );
    }
    assert_eq!(ask(&socket, "GET / HTTP/1.1\r\n\r\n").await, "HTTP/1.1 400");
    let reached = tokio::time::timeout(Duration::from_millis(50), canary.accept()).await;
    assert!(reached.is_err(), "the canary was reached");
    let expected = [
        (own, "forbidden_address"),
        (by_name, "forbidden_address"),
        ("192.0.2.9:443".to_owned(), "not_listed"),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(target, code)| (target, code.to_owned(), 1))
        .collect();
    assert_eq!(*records.lock().unwrap(), expected);
}

#[tokio::test]
async fn the_machines_own_address_is_its_own() {
    let own = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    // Documentation addresses are routed like any other; nothing is sent.
    if own.connect("192.0.2.1:9").await.is_ok() {
        assert!(is_own(SocketAddr::new(own.local_addr().unwrap().ip(), 9)).await);
    }
    assert!(is_own("127.0.0.1:9".parse().unwrap()).await);
    assert!(!is_own("192.0.2.1:9".parse().unwrap()).await);
}

#[tokio::test]
async fn repeats_and_a_flood_of_targets_are_counted() {
    let records = Records::default();
    let log = gate(&[], recorder(&records)).log;
    for _ in 0..5 {
        log.refused(&Target::parse("a:1").unwrap(), Refusal::NotListed)
            .await;
    }
    for port in 1..=100 {
        let host = "b".into();
        log.refused(&Target { host, port }, Refusal::NotListed)
            .await;
    }
    assert_eq!(records.lock().unwrap().len(), REFUSED_PER_WINDOW_MAX);
    log.turn_over().await;
    let records = records.lock().unwrap();
    assert_eq!(
        records[REFUSED_PER_WINDOW_MAX..],
        [
            ("a:1".to_owned(), "not_listed".to_owned(), 4),
            (
                "others".to_owned(),
                "counted".to_owned(),
                100 - (REFUSED_PER_WINDOW_MAX as u64 - 1)
            ),
        ]
    );
}

const LISTED: &str = "192.0.2.9:443";
/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

fn gate(listed: &[&str], recorder: Recorder) -> Gate {
    let listed: Vec<_> = listed.iter().map(|text| (*text).to_owned()).collect();
    Gate::new(EnvironmentId::from_random([1; 16]), &listed, recorder)
}

fn target(text: &str) -> Target {
    Target::parse(text).unwrap()
}

/// Writes down what is refused, and cannot what is allowed.
fn refusals_only() -> Recorder {
    Arc::new(|body: Body| {
        let code = body.outcome.unwrap().code.unwrap();
        Box::pin(std::future::ready(code != "allowed"))
    })
}

#[tokio::test]
async fn what_cannot_be_written_down_is_refused() {
    let gate = gate(&[LISTED], refusals_only());
    let refused = gate.open(&target(LISTED)).await.unwrap_err();
    assert_eq!(refused, Refusal::NotRecorded);
    // Neither when so much else was asked for that refusals are only counted.
    for port in 1..=100 {
        let other = target(&format!("b:{port}"));
        gate.log.refused(&other, Refusal::NotListed).await;
    }
    let refused = gate.open(&target(LISTED)).await.unwrap_err();
    assert_eq!(refused, Refusal::NotRecorded);
}

#[tokio::test]
async fn nobody_is_let_out_behind_a_record_that_is_not_made_yet() {
    // The first record is under way until it fails.
    let (fail, failing) = tokio::sync::watch::channel(false);
    let slow: Recorder = Arc::new(move |_| {
        let mut failing = failing.clone();
        Box::pin(async move { failing.wait_for(|fails| *fails).await.is_err() })
    });
    let log = Arc::new(gate(&[LISTED], slow).log);
    let asks = [(); 2].map(|()| {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.allowed(&target(LISTED), [192, 0, 2, 9].into()).await })
    });
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    fail.send(true).unwrap();
    for ask in asks {
        assert!(!ask.await.unwrap());
    }
}

#[tokio::test]
async fn what_was_only_counted_is_written_down_when_the_way_out_closes() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("egress.sock");
    for is_dropped in [false, true] {
        let records = Records::default();
        let serving = open(&socket, gate(&[], recorder(&records))).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&socket, &connect_to(LISTED)).await, "HTTP/1.1 403");
        }
        let others = REFUSED_PER_WINDOW_MAX + 7;
        for port in 1..=others {
            ask(&socket, &connect_to(&format!("b:{port}"))).await;
        }
        assert_eq!(records.lock().unwrap().len(), REFUSED_PER_WINDOW_MAX);
        let written = serving.written.clone();
        if is_dropped {
            drop(serving);
        } else {
            serving.end().await;
        }
        written.cancelled().await;
        assert!(UnixStream::connect(&socket).await.is_err(), "it is closed");
        let records = records.lock().unwrap();
        assert_eq!(
            records[REFUSED_PER_WINDOW_MAX..],
            [
                (LISTED.to_owned(), "not_listed".to_owned(), 2),
                ("others".to_owned(), "counted".to_owned(), 8),
            ]
        );
    }
}

/// Where a listed name leads is refused before it is dialled, and nothing says that it was let out.
async fn leads_nowhere(address: SocketAddr) {
    let records = Records::default();
    let gate = gate(&["hooks.example:443"], recorder(&records));
    let name = target("hooks.example:443");
    let dialled = gate.dial(&name, vec![address]).await;
    assert_eq!(dialled.unwrap_err(), Refusal::ForbiddenAddress, "{address}");
    assert!(records.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_listed_name_that_leads_to_where_machines_get_their_credentials_is_refused() {
    for address in ["169.254.169.254:80", "100.100.100.200:80", "224.0.0.1:80"] {
        leads_nowhere(address.parse().unwrap()).await;
    }
}

#[tokio::test]
async fn a_listed_name_that_leads_to_this_machines_own_address_is_refused() {
    let own = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    // A machine without any other address than loopback has nothing to guard here.
    if own.connect("192.0.2.1:9").await.is_ok() {
        let address = own.local_addr().unwrap().ip();
        let canary = std::net::TcpListener::bind((address, 0)).unwrap();
        canary.set_nonblocking(true).unwrap();
        leads_nowhere(canary.local_addr().unwrap()).await;
        assert!(canary.accept().is_err(), "the canary was reached");
    }
}

/// A way out whose clients may take their time.
fn patient(socket: &Path, head_time_max: Duration) -> Serving {
    let gate = Gate {
        head_time_max,
        ..gate(&[], recorder(&Records::default()))
    };
    open(socket, gate).unwrap()
}

/// Waits until the other side has closed the connection without an answer.
async fn is_closed(stream: &mut UnixStream) {
    let read = tokio::time::timeout(LONG, stream.read_u8()).await;
    assert!(read.expect("it stays open").is_err(), "it was answered");
}

#[tokio::test]
async fn so_many_connections_and_no_more_are_open_at_once() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("egress.sock");
    let _serving = patient(&socket, 60 * LONG);
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        open.push(UnixStream::connect(&socket).await.unwrap());
    }
    is_closed(&mut UnixStream::connect(&socket).await.unwrap()).await;
    // They were not closed to make room.
    let last = open.last_mut().unwrap();
    last.write_all(connect_to(LISTED).as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    last.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn a_head_is_so_long_and_no_longer() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("egress.sock");
    let _serving = patient(&socket, 60 * LONG);
    let of_length = |bytes: usize| {
        let head = connect_to(LISTED);
        let (line, rest) = head.split_at(head.len() - 2);
        let padding = "x".repeat(bytes - head.len() - "X: \r\n".len());
        format!("{line}X: {padding}\r\n{rest}")
    };
    assert_eq!(
        ask(&socket, &of_length(HEAD_BYTES_MAX)).await,
        "HTTP/1.1 403"
    );
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    // Without its end, so that nothing but its length ends it.
    let endless = of_length(HEAD_BYTES_MAX + 3);
    let _ = stream
        .write_all(&endless.as_bytes()[..=HEAD_BYTES_MAX])
        .await;
    is_closed(&mut stream).await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("egress.sock");
    let _serving = patient(&socket, Duration::from_millis(20));
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"CONNECT a:1 HTTP").await.unwrap();
    is_closed(&mut stream).await;
    assert_eq!(gate(&[], refusals_only()).head_time_max, HEAD_TIME_MAX);
}
