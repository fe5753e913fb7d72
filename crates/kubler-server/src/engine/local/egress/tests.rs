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
    let log = Log {
        id: EnvironmentId::from_random([1; 16]),
        recorder: recorder(&records),
        seen: Mutex::default(),
    };
    for _ in 0..5 {
        log.write(&Target::parse("a:1").unwrap(), Err(Refusal::NotListed))
            .await;
    }
    for port in 1..=100 {
        log.write(
            &Target {
                host: "b".into(),
                port,
            },
            Err(Refusal::NotListed),
        )
        .await;
    }
    assert_eq!(records.lock().unwrap().len(), TARGETS_PER_WINDOW_MAX);
    log.turn_over().await;
    let records = records.lock().unwrap();
    assert_eq!(
        records[TARGETS_PER_WINDOW_MAX..],
        [
            ("a:1".to_owned(), "not_listed".to_owned(), 4),
            (
                "others".to_owned(),
                "counted".to_owned(),
                100 - (TARGETS_PER_WINDOW_MAX as u64 - 1)
            ),
        ]
    );
}

#[tokio::test]
async fn what_cannot_be_written_down_is_refused() {
    let refusing: Recorder = Arc::new(|_| Box::pin(std::future::ready(false)));
    let gate = Gate {
        allowed: Allowed::new(&["192.0.2.9:443".into()]),
        log: Log {
            id: EnvironmentId::from_random([1; 16]),
            recorder: refusing,
            seen: Mutex::default(),
        },
    };
    assert_eq!(
        gate.open(&Target::parse("192.0.2.9:443").unwrap())
            .await
            .unwrap_err(),
        Refusal::NotRecorded
    );
}
