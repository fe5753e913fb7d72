//! Real pods on a real node, through the gateway: what kubectl does with them, by WebSocket and by SPDY, and what the
//! cluster's own audit log says of it.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use kubler_core::environment::EndReason;
use kubler_core::ledger::record::{Kind, Record};
use kubler_testkit::lab::{self, BUSYBOX, Lab};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Child;

use super::kubectl::{Way, ended, kubectl};
use super::tunnels::{SOON, noise};
use super::world::{World, records};
use crate::engine::{Upstream, UpstreamAddress};

/// What is copied to a pod and back, in bytes.
const COPIED_BYTES: usize = 50 * 1024 * 1024;
/// kubectl that run at once.
const AT_ONCE: usize = 40;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: main, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'nc -ll -p 9000 -e sh -c "head -c 200000 | wc -c" & n=0; while sleep 0.2; do n=$((n+1)); echo line $n; done']}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, stdin: true, command: [sh, -c, 'while read x; do echo got $x; done; sleep 1000']}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kubler-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
"#;

fn upstream(lab: &Lab) -> Arc<Upstream> {
    let address = lab.url().trim_start_matches("https://");
    let (host, port) = address.rsplit_once(':').expect("a port");
    let ca = std::fs::read(lab.ca()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let token = lab.kubectl_ok(&["create", "token", "default"]);
    Arc::new(Upstream {
        address: UpstreamAddress::Tcp(host.to_owned(), port.parse().unwrap()),
        tls: Arc::new(tls),
        server_name: ServerName::try_from(host.to_owned()).unwrap(),
        token: token.trim().into(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_reached_in_every_way_through_the_gateway_and_both_logs_say_the_same() {
    let Some(lab) = lab::or_skip() else { return };
    lab.apply(&PODS.replace("IMAGE", BUSYBOX));
    lab.kubectl_ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/main",
        "pod/reader",
        "--timeout=120s",
    ]);
    let world = World::in_front_of(upstream(lab)).await;
    for way in [Way::WebSocket, Way::Spdy] {
        commands(&world, way).await;
        sizes(&world, way).await;
        copies(&world, way).await;
        attach(&world, way).await;
        ports(&world, way).await;
    }
    many_at_once(&world).await;
    let mut logs = kubectl(
        &world,
        Way::WebSocket,
        &["logs", "--follow", "--tail=1", "main"],
    )
    .await;
    let mut lines = lines(&mut logs);
    for _ in 0..3 {
        assert!(next_line(&mut lines).await.starts_with("line "));
    }
    let mut open = Vec::new();
    for way in [Way::WebSocket, Way::Spdy] {
        let mut sleeper = kubectl(
            &world,
            way,
            &[
                "exec",
                "main",
                "--",
                "sh",
                "-c",
                "echo begun; exec sleep 1000",
            ],
        )
        .await;
        assert_eq!(next_line(&mut self::lines(&mut sleeper)).await, "begun");
        open.push(sleeper);
    }
    same_requests(&world, lab).await;
    world.release(EndReason::Released);
    for sleeper in open {
        let output = ended(sleeper).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("its job released it"), "{told}");
    }
    ended(logs).await;
}

fn lines(child: &mut Child) -> tokio::io::Lines<BufReader<tokio::process::ChildStdout>> {
    BufReader::new(child.stdout.take().expect("its output")).lines()
}

async fn next_line(lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStdout>>) -> String {
    let line = tokio::time::timeout(SOON, lines.next_line())
        .await
        .expect("a line");
    line.unwrap().expect("one more line")
}

async fn run(world: &World, way: Way, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = kubectl(world, way, arguments).await;
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    tokio::spawn(async move { stdin.write_all(&input).await });
    ended(child).await
}

fn well(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

async fn commands(world: &World, way: Way) {
    let script = "echo out; echo err >&2; exit 3";
    let output = run(world, way, &["exec", "main", "--", "sh", "-c", script], b"").await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.starts_with(b"err\n"), "{output:?}");
    let input = noise(300_000);
    let counted = run(
        world,
        way,
        &["exec", "--stdin", "main", "--", "wc", "-c"],
        &input,
    )
    .await;
    assert_eq!(well(counted), b"300000\n");
}

/// What a terminal of 33 lines and 77 columns is inside of the pod.
async fn sizes(world: &World, way: Way) {
    let inside = kubectl_line(
        world,
        way,
        &[
            "exec",
            "-it",
            "main",
            "--",
            "sh",
            "-c",
            "'sleep 1; stty size'",
        ],
    )
    .await;
    let script = format!("stty rows 33 cols 77; {inside}");
    let terminal = tokio::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &script, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = ended(terminal).await;
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(seen.contains("33 77"), "{output:?}");
}

/// The same kubectl as a line of a shell.
async fn kubectl_line(world: &World, way: Way, arguments: &[&str]) -> String {
    let command = super::kubectl::command_of(world, way, arguments).await;
    let command = command.as_std();
    let words = command.get_args().map(|word| word.to_str().unwrap());
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value?.to_str()?)));
    let mut line: Vec<_> = std::iter::once("env".to_owned()).chain(variables).collect();
    line.push(command.get_program().to_str().unwrap().to_owned());
    line.extend(words.map(str::to_owned));
    line.join(" ")
}

async fn copies(world: &World, way: Way) {
    let count = if way == Way::WebSocket {
        COPIED_BYTES
    } else {
        COPIED_BYTES / 10
    };
    let bytes = noise(count);
    let [there, back] = ["there", "back"].map(|name| world.folder.path().join(name));
    std::fs::write(&there, &bytes).unwrap();
    well(
        run(
            world,
            way,
            &["cp", there.to_str().unwrap(), "main:/tmp/it"],
            b"",
        )
        .await,
    );
    well(
        run(
            world,
            way,
            &["cp", "main:/tmp/it", back.to_str().unwrap()],
            b"",
        )
        .await,
    );
    assert!(
        std::fs::read(&back).unwrap() == bytes,
        "it came back changed"
    );
}

async fn attach(world: &World, way: Way) {
    let mut attached = kubectl(world, way, &["attach", "--stdin", "reader"]).await;
    let word = format!("{way:?}");
    let mut stdin = attached.stdin.take().unwrap();
    stdin
        .write_all(format!("{word}\n").as_bytes())
        .await
        .unwrap();
    let mut lines = lines(&mut attached);
    while !next_line(&mut lines).await.contains(&format!("got {word}")) {}
    attached.kill().await.unwrap();
}

/// The pod answers when it has all, and ends its half first. It never hears that a client has ended its own: the
/// node's containerd passes that on to nobody.
async fn ports(world: &World, way: Way) {
    let mut forward = kubectl(world, way, &["port-forward", "main", ":9000"]).await;
    // Held on to: kubectl says more of each connection, and ends when nobody listens.
    let mut said = lines(&mut forward);
    let line = next_line(&mut said).await;
    let port = line
        .split([':', ' '])
        .find_map(|word| word.parse::<u16>().ok())
        .expect("a port");
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    stream.write_all(&noise(200_000)).await.unwrap();
    let mut counted = String::new();
    let read = tokio::time::timeout(SOON, stream.read_to_string(&mut counted)).await;
    read.expect("an answer").unwrap();
    assert_eq!(counted, "200000\n");
    forward.kill().await.unwrap();
}

async fn many_at_once(world: &World) {
    let words: Vec<_> = (0..AT_ONCE).map(|nth| format!("word{nth}")).collect();
    let all = words.iter().map(async |word| {
        let output = run(
            world,
            Way::WebSocket,
            &["exec", "main", "--", "echo", word],
            b"",
        )
        .await;
        assert_eq!(well(output), format!("{word}\n").as_bytes());
    });
    futures_util::future::join_all(all).await;
}

/// Every request of ours is in the cluster's log under the same name.
async fn same_requests(world: &World, lab: &Lab) {
    let ours = || -> BTreeSet<String> {
        let starts = records(&world.ledger).into_iter();
        let starts = starts.filter(|record: &Record| record.body.kind == Kind::Start);
        starts
            .map(|record| record.body.request_id.unwrap().to_string())
            .collect()
    };
    let ours = ours();
    assert!(ours.len() > 2 * AT_ONCE);
    let limit = tokio::time::Instant::now() + SOON;
    loop {
        let log = std::fs::read_to_string(lab.audit_log()).unwrap_or_default();
        let ids = log.lines().filter_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(event["auditID"].as_str()?.to_owned())
        });
        let theirs: BTreeSet<_> = ids.collect();
        let missing: Vec<_> = ours.difference(&theirs).collect();
        if missing.is_empty() {
            return;
        }
        assert!(
            tokio::time::Instant::now() < limit,
            "the cluster knows nothing of {missing:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
