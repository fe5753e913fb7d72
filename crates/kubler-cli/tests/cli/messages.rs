//! What people do wrong, and what they are told: what was wrong, where, what next, and a code that means something.

use std::net::TcpListener;
use std::process::Output;

use crate::desk::{Desk, Takes, kubler, token};

const USAGE: i32 = 2;
const DENIED: i32 = 3;
const ENDED: i32 = 4;
const UNAVAILABLE: i32 = 5;
const ENVIRONMENT_FAILED: i32 = 6;

struct Scene {
    desk: Desk,
    files: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
        write("token", &token("j"));
        write("nonsense", "hello");
        for name in ["one", "two"] {
            let key = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            write(&format!("{name}.pem"), &key.cert.pem());
            write(&format!("{name}.key"), &key.signing_key.serialize_pem());
        }
        Self {
            desk: Desk::open(),
            files,
        }
    }

    /// Runs it in the folder of the files. Returns all that was said.
    fn run(&self, line: &str) -> (Output, String) {
        let jobs = tempfile::tempdir().unwrap();
        let line = line
            .replace("SERVER", &self.desk.url())
            .replace("CA", self.desk.ca().to_str().unwrap());
        let output = kubler(jobs.path())
            .current_dir(self.files.path())
            .args(line.split(' '))
            .output()
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output, said)
    }

    fn is_told(&self, line: &str, code: i32, parts: &[&str]) {
        let (output, said) = self.run(line);
        assert_eq!(output.status.code(), Some(code), "`kubler {line}`: {said}");
        for part in parts {
            assert!(
                said.contains(part),
                "`kubler {line}` does not say {part:?}: {said}"
            );
        }
        let next = ["hint: ", "tip: ", "Usage: ", "possible values"];
        assert!(
            next.iter().any(|next| said.contains(next)) || said.contains("use "),
            "`kubler {line}` does not say what next: {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }

    fn is_told_by_the_server(&self, line: &str, code: i32, parts: &[&str]) {
        let line = format!("--server SERVER --ca CA --token-file token {line}");
        self.is_told(&line, code, parts);
    }
}

#[test]
fn a_server_that_cannot_be_meant_or_reached() {
    let scene = Scene::new();
    let told = |line: &str, code, parts: &[&str]| scene.is_told(line, code, parts);
    told(
        "env list",
        USAGE,
        &["no server is named", "--server", "KUBLER_SERVER"],
    );
    let not_https = ["is not an https URL", "not sent over plain http"];
    told("env list --server http://kubler:8443", USAGE, &not_https);
    told(
        "env list --server kubler:8443",
        USAGE,
        &["`kubler:8443`", "https://name:port"],
    );
    told(
        "env list --server https://",
        USAGE,
        &["`https://`", "https://name:port"],
    );
    let with = |server: &str| format!("env list --token-file token --server {server}");
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    told(
        &with(&format!("https://{closed}")),
        UNAVAILABLE,
        &["cannot reach", &closed.to_string(), "is the server running"],
    );
    told(
        &with("https://no-such-host.invalid:8443"),
        UNAVAILABLE,
        &["no-such-host.invalid", "cannot be resolved", "DNS"],
    );
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let scene = Scene::new();
    let told = |line: &str, code, parts: &[&str]| scene.is_told(line, code, parts);
    let server = "env list --server SERVER";
    told(
        &format!("{server} --token-file token --ca nowhere.pem"),
        USAGE,
        &["cannot read the CA `nowhere.pem`", "KUBLER_CA"],
    );
    told(
        &format!("{server} --token-file token --ca nonsense"),
        USAGE,
        &["`nonsense`", "no certificate", "PEM"],
    );
    told(
        &format!("{server} --token-file token --ca one.pem"),
        UNAVAILABLE,
        &[
            "no trusted connection",
            "the CA in `one.pem` is not the one of this server",
            "--ca FILE",
            "KUBLER_CA",
        ],
    );
    let certified = format!("{server} --ca CA --client-certificate");
    told(
        &format!("{certified} one.pem"),
        USAGE,
        &["--client-key", "together"],
    );
    told(
        &format!("{certified} one.pem --client-key two.key"),
        USAGE,
        &["`one.pem`", "`two.key` is the key of another one"],
    );
    told(
        &format!("{certified} one.pem --client-key nowhere.key"),
        USAGE,
        &["`nowhere.key`", "No such file", "kubler-server init"],
    );
    told(
        &format!("{certified} one.pem --client-key nonsense"),
        USAGE,
        &["`nonsense`", "kubler-server init"],
    );
    told(
        &format!("{server} --ca CA --token-file nowhere"),
        DENIED,
        &["token file `nowhere`", "one identity token"],
    );
    told(
        &format!("{server} --ca CA --token-file nonsense"),
        DENIED,
        &[
            "`nonsense` holds no identity token",
            "buildkite-agent oidc request-token",
        ],
    );
    assert!(
        scene.desk.calls().is_empty(),
        "nothing was sent: {:#?}",
        scene.desk.calls()
    );
}

#[test]
fn what_the_server_says() {
    let scene = Scene::new();
    let told = |line: &str, code, parts: &[&str]| scene.is_told_by_the_server(line, code, parts);
    told(
        "env show env_none",
        ENDED,
        &["no such environment", "request: "],
    );
    scene.desk.put("env_1");
    scene.desk.release("env_1");
    told("env renew env_1", ENDED, &["env_1 has ended"]);
    scene.desk.making(Takes::Fails);
    let failed = [
        "could not be made: its API server did not start",
        "kubler trace",
    ];
    told("env create --profile p", ENVIRONMENT_FAILED, &failed);
    scene.desk.refuse(
        401,
        "unauthenticated",
        "the token expired at 12:00",
        "get a fresh one",
    );
    told(
        "env list",
        DENIED,
        &["the token expired", "`unauthenticated`"],
    );
    scene
        .desk
        .refuse(400, "invalid_request", "`profile` is missing", "name one");
    told("env list", USAGE, &["`profile` is missing"]);
}

#[test]
fn a_kubeconfig_that_would_be_refused_is_not_written() {
    let scene = Scene::new();
    let line = "--server SERVER --ca CA --token-file token kubeconfig env_1 --file written";
    let is_refused = |code, parts: &[&str]| {
        scene.is_told(line, code, parts);
        assert!(!scene.files.path().join("written").exists());
    };
    is_refused(ENDED, &["there is no such environment"]);
    scene.desk.put("env_1");
    scene.desk.release("env_1");
    is_refused(ENDED, &["env_1 has ended: its job released it"]);
    scene.desk.put("env_1");
    let (output, said) = scene.run(line);
    assert!(output.status.success(), "{said}");
    std::fs::remove_file(scene.files.path().join("written")).unwrap();
    let told = "environment env_1 belongs to another job";
    scene
        .desk
        .refuse_sessions(403, "denied", told, "ask for one of your own");
    is_refused(DENIED, &[told, "ask for one of your own", "req_0123"]);
}

#[test]
fn what_is_not_in_the_ledger() {
    let scene = Scene::new();
    let told = |line: &str, code, parts: &[&str]| scene.is_told_by_the_server(line, code, parts);
    let no_id = [
        "nothing was found",
        "`web/1` is no job's id",
        "kubler trace web/1",
    ];
    told("ledger records --job web/1", 0, &no_id);
    let job = "01945ecf-0000-4000-8000-0000000000bb";
    told(
        &format!("ledger records --job {job}"),
        0,
        &["nothing was found", "nobody knew it"],
    );
    scene.desk.refuse(
        403,
        "denied",
        "no policy allows `read_ledger`",
        "permit read_ledger",
    );
    let hint = format!(
        "ask an operator: this is read from the server's ledger, with `--client-certificate` and `--client-key`, as `kubler policy explain {job}`"
    );
    told(&format!("policy explain {job}"), DENIED, &[&hint]);
}

/// As `head` does it: the reader goes, and whoever writes ends by SIGPIPE, without a word.
#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    use std::os::unix::process::ExitStatusExt as _;
    let scene = Scene::new();
    scene.desk.put("env_1");
    for line in [
        "completions bash",
        "env list",
        "env show env_1",
        "--output json env list",
    ] {
        let jobs = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = scene
            .desk
            .kubler(jobs.path())
            .env("KUBLER_TOKEN_FILE", scene.files.path().join("token"))
            .args(line.split(' '))
            .stdout(writer)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said, "", "`kubler {line}`");
        assert_eq!(output.status.signal(), Some(13), "`kubler {line}`");
    }
}

#[test]
fn a_folder_that_may_not_be_used() {
    let scene = Scene::new();
    let output = kubler(std::path::Path::new("/proc"))
        .env("KUBLER_SERVER", scene.desk.url())
        .env("KUBLER_CA", scene.desk.ca())
        .arg("--token-file")
        .arg(scene.files.path().join("token"))
        .args(["credential", "--environment", "env_1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot make the folder `/proc/kubler-")
            && said.contains("KUBLER_JOBS_FOLDER"),
        "{said}"
    );
}

#[test]
fn slips_of_the_keyboard() {
    let scene = Scene::new();
    let told = |line: &str, parts: &[&str]| scene.is_told(line, USAGE, parts);
    told(
        "env create --profil ci-small",
        &["'--profil'", "'--profile'"],
    );
    told("env lst", &["'lst'", "'list'"]);
    told("env list --phase dead", &["'dead'", "ready"]);
    told(
        "env create --profile p --name Main",
        &["'Main'", "lower-case"],
    );
    let long = "a".repeat(41);
    told(
        &format!("env create --profile p --name {long}"),
        &["at most 40"],
    );
    told("env create --profile p --wait soon", &["'soon'", "--wait"]);
    told(
        "env create --profile p --wait 18446744073709551615",
        &["--wait", "at most 900"],
    );
    told(
        "env release env_1 --wait 1m",
        &["'1m'", "without a unit, such as 60"],
    );
    told("env list --build app/7", &["'app/7'", "such as 1234"]);
    told("ledger records --limit 0", &["'0'", "from 1 to 100000"]);
    told("ledger records --from 1k", &["'1k'", "such as 1200"]);
    told("run --profile p true", &["'true'", "-- <COMMAND>"]);
    told(
        "run --server SERVER --profile p --token-file - -- true",
        &["standard input cannot be renewed"],
    );
    told("--output yaml env list", &["'yaml'", "json"]);
    told("policy check --config nowhere.yaml", &["nowhere.yaml"]);
    let jobs = tempfile::tempdir().unwrap();
    let heard = kubler(jobs.path())
        .env("KUBLER_CONFIG", "/nowhere/of-the-server.yaml")
        .args(["policy", "check"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&heard.stderr).into_owned();
    assert!(said.contains("`/nowhere/of-the-server.yaml`"), "{said}");
    told(
        "policy explain token --config nowhere.yaml",
        &["nowhere.yaml"],
    );
    told(
        "policy explain token --action fly",
        &["'fly'", "create_environment"],
    );
    told("ledger verify nowhere", &["nowhere"]);
}
