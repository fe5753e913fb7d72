use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kubler_core::ledger::checkpoint::PrivateKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::clock::{ManualClock, SystemClock};

/// Where checkpoints are taken by HTTPS: keeps who came with what, and answers as it is told.
#[derive(Default)]
struct Receiver {
    taken: Mutex<Vec<(String, String)>>,
    /// What a POST is answered with; 0 stands for 200.
    answer: AtomicU16,
}

impl Receiver {
    /// Serves on a port of its own; gives its address and its certificate.
    async fn serve() -> (Arc<Self>, String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "https://localhost:{}/log",
            listener.local_addr().unwrap().port()
        );
        let receiver = Arc::new(Self::default());
        let router = Router::new()
            .route("/log", get(Self::tell).post(Self::take))
            .with_state(Arc::clone(&receiver));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    let served = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    drop(served);
                });
            }
        });
        (receiver, url, made.cert.pem())
    }

    async fn take(
        Shared(receiver): Shared<Arc<Self>>,
        headers: HeaderMap,
        note: String,
    ) -> StatusCode {
        let answer = receiver.answer.load(Ordering::Relaxed);
        if answer != 0 {
            return StatusCode::from_u16(answer).unwrap();
        }
        let bearer = headers["authorization"].to_str().unwrap().to_owned();
        receiver.taken.lock().unwrap().push((bearer, note));
        StatusCode::OK
    }

    async fn tell(Shared(receiver): Shared<Arc<Self>>) -> (StatusCode, String) {
        match receiver.taken.lock().unwrap().last() {
            Some((_, note)) => (StatusCode::OK, note.clone()),
            None => (StatusCode::NOT_FOUND, String::new()),
        }
    }
}

fn checkpoint(size: u64) -> Checkpoint {
    let key = PrivateKey::from_random("kubler.test/ledger", &[7; 32].into()).unwrap();
    let note = key.sign(size, [9; 32]);
    Checkpoint { note, size }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn to_file(file: &str) -> SinkSettings {
    SinkSettings {
        file: Some(file.into()),
        ..SinkSettings::default()
    }
}

fn standing(sinks: &Sinks, now: Timestamp) -> Standing {
    sinks.standings(now).remove(0)
}

#[tokio::test]
async fn l5_an_address_takes_each_checkpoint_with_its_token_and_tells_the_last() {
    let (receiver, url, ca) = Receiver::serve().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
    std::fs::write(folder.path().join("token"), "first\n").unwrap();
    let settings = SinkSettings {
        url: Some(url),
        token_file: Some("token".into()),
        ca: Some("ca.pem".into()),
        ..SinkSettings::default()
    };
    let sinks = Arc::new(Sinks::new(&[settings], folder.path()).unwrap());
    assert_eq!(sinks.witnesses().await.unwrap(), []);

    receiver.answer.store(503, Ordering::Relaxed);
    sinks.publish(&checkpoint(1), at(0));
    sinks.publish(&checkpoint(2), at(5));
    sinks.deliver_once(at(6)).await;
    let behind = standing(&sinks, at(400));
    assert_eq!(behind.behind_seconds, 400, "since the first it lacks");
    assert!(behind.is_alarming());
    assert!(behind.message.unwrap().contains("503"));

    // It is tried again by itself, and gets the latest only.
    let over = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&sinks).run(Arc::new(SystemClock), over.clone()));
    receiver.answer.store(0, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(60);
    while standing(&sinks, at(400)).behind_seconds != 0 {
        assert!(Instant::now() < deadline, "{:?}", sinks.standings(at(400)));
        tokio::task::yield_now().await;
    }
    over.cancel();
    running.await.unwrap();
    std::fs::write(folder.path().join("token"), "second\n").unwrap();
    sinks.publish(&checkpoint(3), at(7));
    sinks.deliver_once(at(7)).await;
    let taken = receiver.taken.lock().unwrap().clone();
    assert_eq!(
        taken,
        [
            ("Bearer first".to_owned(), checkpoint(2).note),
            ("Bearer second".to_owned(), checkpoint(3).note)
        ]
    );
    assert_eq!(sinks.witnesses().await.unwrap()[0].note, checkpoint(3).note);
}

#[tokio::test]
async fn l5_a_file_has_the_latest_and_a_folder_one_a_day() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("days")).unwrap();
    let settings = [to_file("kept"), to_file("days")];
    let sinks = Sinks::new(&settings, folder.path()).unwrap();
    assert_eq!(sinks.witnesses().await.unwrap(), []);
    for (size, seconds) in [(1, 0), (2, 60), (3, 86_400)] {
        sinks.publish(&checkpoint(size), at(seconds));
        sinks.deliver_once(at(seconds)).await;
    }
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("kept"), checkpoint(3).note);
    assert_eq!(read("days/2027-01-15.checkpoint"), checkpoint(2).note);
    assert_eq!(read("days/2027-01-16.checkpoint"), checkpoint(3).note);
    // The next start.
    let next = Sinks::new(&settings, folder.path()).unwrap();
    let seen = next.witnesses().await.unwrap();
    assert!(
        seen.iter()
            .all(|witness| witness.note == checkpoint(3).note)
            && seen.len() == 2
    );
}

#[tokio::test]
async fn l5_a_second_server_that_signs_to_the_same_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let sinks = |_: &str| Sinks::new(&[to_file("kept")], folder.path()).unwrap();
    let (mine, other) = (sinks("mine"), sinks("other"));
    for sinks in [&mine, &other] {
        sinks.witnesses().await.unwrap();
    }
    mine.publish(&checkpoint(1), at(0));
    mine.deliver_once(at(0)).await;
    other.publish(&checkpoint(2), at(1));
    other.deliver_once(at(1)).await;
    let told = standing(&other, at(2));
    assert_eq!(told.behind_seconds, 1);
    assert!(told.message.unwrap().contains("somebody else writes there"));
    let kept = std::fs::read_to_string(folder.path().join("kept")).unwrap();
    assert_eq!(kept, checkpoint(1).note, "nothing is written over");
}

#[tokio::test]
async fn a_sink_that_is_not_there_stops_nobody_and_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let sinks = Sinks::new(&[to_file("mount/kept")], folder.path()).unwrap();
    assert_eq!(sinks.witnesses().await.unwrap(), []);
    let clock = ManualClock::new(at(0));
    sinks.publish(&checkpoint(1), clock.now());
    sinks.deliver_once(clock.now()).await;
    assert!(standing(&sinks, clock.now()).message.is_some());
    std::fs::create_dir(folder.path().join("mount")).unwrap();
    sinks.deliver_once(clock.now()).await;
    assert_eq!(standing(&sinks, at(9)).behind_seconds, 0);
    assert_eq!(standing(&sinks, at(9)).message, None);
}
