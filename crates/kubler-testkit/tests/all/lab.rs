//! The lab is a cluster like any other: pods run there, and are reached in every way. Nothing of it outlives it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kubler_testkit::lab::{self, BUSYBOX, Lab, leftovers};
use kubler_testkit::leaks::wait_until_none;

const BOUND: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_the_lab_are_reached_in_every_way_and_nothing_outlives_it() {
    if !lab::can_be() {
        return;
    }
    let mut killed = Lab::start();
    run(&killed, "sleeper", "sleep 1000");
    let in_its_world = killed.processes();
    assert!(
        in_its_world.iter().any(|it| it.command == "sleep 1000"),
        "{in_its_world:#?}"
    );
    // Whoever brought it up is gone at once, and so is its world, pods and all.
    killed.kill_supervisor();
    wait_until_none("processes of the lab", BOUND, || {
        let lives = in_its_world.iter().filter(|process| process.lives());
        lives.collect()
    })
    .await
    .unwrap();
    let lost = killed.number();
    drop(killed);

    // The next one takes away what nobody could.
    let lab = Lab::start();
    if lab.number() != lost {
        assert_eq!(leftovers(lost), [""; 0]);
    }
    run(&lab, "server", "echo started; httpd -f -p 8080 -h /etc");
    run(&lab, "client", "sleep 1000");
    logs_exec_and_copies(&lab);
    port_forward(&lab).await;
    network_policies(&lab).await;
    attach(&lab);

    let number = lab.number();
    drop(lab);
    assert_eq!(leftovers(number), [""; 0]);
}

/// Runs a pod and waits until it is ready.
fn run(lab: &Lab, name: &str, script: &str) {
    let image = format!("--image={BUSYBOX}");
    lab.kubectl_ok(&[
        "run",
        name,
        &image,
        "--restart=Never",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let pod = format!("pod/{name}");
    lab.kubectl_ok(&["wait", "--for=condition=Ready", &pod, "--timeout=120s"]);
}

fn logs_exec_and_copies(lab: &Lab) {
    assert_eq!(lab.kubectl_ok(&["logs", "server"]), "started\n");
    let output = lab.kubectl(&[
        "exec",
        "client",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 3",
    ]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.starts_with(b"err\n"), "{output:?}");

    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let folder = tempfile::tempdir().unwrap();
    let [there, back] = ["there", "back"].map(|name| folder.path().join(name));
    std::fs::write(&there, &bytes).unwrap();
    lab.kubectl_ok(&["cp", there.to_str().unwrap(), "client:/tmp/it"]);
    lab.kubectl_ok(&["cp", "client:/tmp/it", back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == bytes);
}

async fn port_forward(lab: &Lab) {
    let mut command = lab.kubectl_command(&["port-forward", "pod/server", ":8080"]);
    let mut forward = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut output = std::io::BufReader::new(forward.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut said).unwrap();
    let address = said.split_whitespace().nth(2).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /hostname HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert!(
        answer.contains("200 OK") && answer.contains("server"),
        "{answer}"
    );
}

/// A service leads to its pod until a policy forbids it, and again when the policy is gone.
async fn network_policies(lab: &Lab) {
    lab.kubectl_ok(&["expose", "pod", "server", "--port=80", "--target-port=8080"]);
    let service = lab.get(&["service", "server"]);
    let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let ask = format!("printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80");
    let reaches = || lab.kubectl(&["exec", "client", "--", "sh", "-c", &ask]);
    until("the service answers", reaches, |output| {
        String::from_utf8_lossy(&output.stdout).contains("server")
    })
    .await;
    lab.apply("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none}, spec: {podSelector: {}, policyTypes: [Ingress]}}");
    until("the policy is enforced", reaches, |output| {
        String::from_utf8_lossy(&output.stderr).contains("refused")
    })
    .await;
    lab.kubectl_ok(&["delete", "networkpolicy", "none"]);
    until("the policy is gone", reaches, |output| {
        output.status.success()
    })
    .await;
}

async fn until(what: &str, ask: impl Fn() -> Output, holds: impl Fn(&Output) -> bool) {
    let deadline = Instant::now() + BOUND;
    loop {
        let output = ask();
        if holds(&output) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {output:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn attach(lab: &Lab) {
    let image = format!("--image={BUSYBOX}");
    let mut command: Command = lab.kubectl_command(&[
        "run",
        "echo",
        &image,
        "--restart=Never",
        "--stdin",
        "--attach",
        "--rm",
        "--quiet",
        "--",
        "cat",
    ]);
    let mut attached = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = attached.stdin.take().unwrap();
    input.write_all(b"there and back\n").unwrap();
    drop(input);
    let output = attached.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("there and back"), "{output:?}");
}
