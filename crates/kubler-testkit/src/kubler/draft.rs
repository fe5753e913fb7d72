//! A server before it starts: what `init` writes, and what a test changes of it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{Programs, Server};
use crate::buildkite::Buildkite;

/// What a server under test logs.
const LOG_FILTER: &str = "info,kubler_server=debug";

/// A server that is not started yet.
#[must_use]
pub struct ServerDraft {
    folder: TempDir,
    programs: Programs,
    port: u16,
    edits: Vec<(String, String)>,
    log_filter: String,
}

impl ServerDraft {
    pub(super) fn new(buildkite: &Buildkite) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("ks")
            .rand_bytes(8)
            .tempdir_in("/tmp")
            .expect("a folder");
        let programs = Programs::find();
        // Free at this moment, and chosen by the kernel from a range where the next choice is another one.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let issuer_ca = folder.path().join("issuer-ca.pem");
        fs::write(&issuer_ca, buildkite.ca_pem()).expect("the issuer's CA");
        let organization = buildkite.first_organization();
        let output = Command::new(programs.server())
            .arg("init")
            .arg(folder.path().join("k"))
            .args([
                "--organization-id",
                &organization.id.to_string(),
                "--organization",
                &organization.slug,
            ])
            .args([
                "--url",
                &format!("https://127.0.0.1:{port}"),
                "--listen",
                &format!("127.0.0.1:{port}"),
            ])
            .args(["--issuer", buildkite.issuer_url(), "--issuer-ca"])
            .arg(issuer_ca)
            .output()
            .expect("kubler-server init");
        assert!(
            output.status.success(),
            "init: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self {
            folder,
            programs,
            port,
            edits: Vec::new(),
            log_filter: LOG_FILTER.to_owned(),
        }
    }

    /// The folder of everything that it and its processes write.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it logs, instead of more than an operator would want: figures are taken as a server runs.
    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log_filter);
        self
    }

    /// Changes a text of the configuration that `init` wrote.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        self.edits.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Adds a line to the first profile, `ci-small`.
    pub fn profile_line(self, line: &str) -> Self {
        let name = "  - name: ci-small\n";
        self.edit(name, &format!("{name}    {line}\n"))
    }

    /// The lease of the first profile.
    pub fn lease_seconds(self, seconds: u64) -> Self {
        self.profile_line(&format!("lease_seconds: {seconds}"))
    }

    /// Adds a top-level section, such as `limits: {...}`.
    pub fn section(self, yaml: &str) -> Self {
        self.edit(
            "policies: policies\n",
            &format!("policies: policies\n{yaml}\n"),
        )
    }

    /// Makes environments as namespaces of host clusters, which are these lines of `hosts:`, instead of on this machine; with
    /// these lines in the first profile's `namespace:`.
    pub fn on_hosts(self, hosts: &str, namespace: &[&str]) -> Self {
        let lines = namespace.iter().map(|line| format!("\n      {line}"));
        self.edit("kubernetes:\n  \"1.34\": {}", &format!("hosts:\n{hosts}\nkubernetes: {{}}"))
            .edit(
                "    description: a cluster of its own for one job\n    kubernetes: \"1.34\"",
                &format!(
                    "    description: a namespace for one job\n    engine: namespace\n    namespace:\n      network: {{isolation: unverified}}{}",
                    lines.collect::<String>()
                ),
            )
            .edit("    kubernetes: \"1.34\"", "    engine: namespace")
    }

    /// Writes another file into the configuration's folder.
    pub fn file(self, path: &str, text: &str) -> Self {
        fs::write(self.folder.path().join("k").join(path), text).expect("a file");
        self
    }

    /// Starts it, and waits until it answers.
    ///
    /// # Panics
    /// With its log, when it does not.
    pub async fn start(self) -> Server {
        let config = self.folder.path().join("k/kubler.yaml");
        let mut text = fs::read_to_string(&config).expect("the configuration");
        for (from, to) in &self.edits {
            assert!(text.contains(from), "the configuration has no `{from}`");
            text = text.replacen(from, to, 1);
        }
        fs::write(&config, text).expect("the configuration");
        let ca = fs::read(self.folder.path().join("k/tls/ca.pem")).expect("the CA");
        let client = |identity: Option<reqwest::Identity>| {
            let builder = reqwest::Client::builder()
                .use_rustls_tls()
                .tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("a CA")])
                .pool_max_idle_per_host(0);
            identity
                .into_iter()
                .fold(builder, reqwest::ClientBuilder::identity)
                .build()
                .expect("a client")
        };
        let tls = self.folder.path().join("k/tls");
        let mut operator = fs::read(tls.join("operator.pem")).expect("the operator");
        operator.extend(fs::read(tls.join("operator.key")).expect("the operator's key"));
        let mut server = Server {
            url: format!("https://127.0.0.1:{}", self.port),
            client: client(None),
            operator: client(Some(
                reqwest::Identity::from_pem(&operator).expect("an identity"),
            )),
            programs: self.programs,
            folder: self.folder,
            log_filter: self.log_filter,
            child: None,
        };
        server.restart().await;
        server
    }
}
