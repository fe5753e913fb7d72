//! How a cluster is reached: as its administrator, and as anybody else whom its authority vouches for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::{Authority, Pair, audit, kubeconfig, write_secret};
use crate::kubler::kubectl;

/// A way into a cluster that runs on this machine.
pub struct Access {
    url: String,
    folder: PathBuf,
    authority: Authority,
    client: reqwest::Client,
}

impl Access {
    /// To the cluster whose API server, at `url`, keeps its files in `folder`.
    ///
    /// # Panics
    /// When they are not those of a cluster.
    pub fn new(url: &str, folder: &Path) -> Self {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("cannot read `{}`: {error}", path.display()))
        };
        let administrator = Pair {
            certificate: read("admin.crt"),
            key: read("admin.key"),
        };
        let authority = Authority::of(&read("ca.crt"), &read("ca.key"));
        Self {
            url: url.to_owned(),
            folder: folder.to_owned(),
            client: client(authority.certificate(), &administrator),
            authority,
        }
    }

    /// `https://ADDRESS:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The authority of its serving and client certificates, PEM.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Signs certificates that it trusts.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Everything that it writes; short.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A kubeconfig of any user in at most two groups, with a client certificate: one user has one file, which is
    /// written anew.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn kubeconfig_of(&self, user: &str, groups: &[&str]) -> PathBuf {
        let pair = self.authority.client(user, groups);
        let text = kubeconfig(&self.url, self.authority.certificate(), &pair);
        let name = user.replace(['/', ':'], "-");
        let path = self.folder.join(format!("user-{name}.kubeconfig"));
        write_secret(&path, &text);
        path
    }

    /// A client of an administrator; a path of the API follows [`Self::url`].
    pub const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// A GET of this path as an administrator is answered well.
    pub async fn answers(&self, path: &str) -> bool {
        let asked = self.client.get(format!("{}{path}", self.url)).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    /// A kubectl of the pinned version as an administrator.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = kubectl(&self.kubeconfig(), &self.folder);
        command.args(arguments);
        command
    }

    /// Runs it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).output().expect("kubectl")
    }

    /// Runs it, and gives what it printed.
    ///
    /// # Panics
    /// With what it said, when it fails.
    pub fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// `kubectl get … --output json`.
    ///
    /// # Panics
    /// As [`Self::kubectl_ok`] does.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let all = [&["get", "--output", "json"], arguments].concat();
        serde_json::from_str(&self.kubectl_ok(&all)).expect("JSON")
    }

    /// `kubectl apply` of these objects, as YAML.
    ///
    /// # Panics
    /// As [`Self::kubectl_ok`] does.
    pub fn apply(&self, yaml: &str) -> String {
        let file = tempfile::NamedTempFile::new_in(&self.folder).expect("a file");
        fs::write(file.path(), yaml).expect("a file");
        let path = file.path().to_str().expect("a path that is text");
        self.kubectl_ok(&["apply", "--filename", path])
    }

    /// The audit log: one event as JSON on a line, stage `ResponseComplete` and what else the level has.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// What the audit log holds by now.
    ///
    /// # Panics
    /// When a whole line is no event.
    pub fn audit_events(&self) -> Vec<Value> {
        audit::events(&self.audit_log())
    }

    /// Waits until the audit log holds an event that satisfies a condition.
    ///
    /// # Panics
    /// With the last events, when none comes within `bound`.
    pub async fn wait_for_audit_event(
        &self,
        bound: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        audit::wait_for(&self.audit_log(), bound, condition).await
    }
}

fn client(ca: &str, user: &Pair) -> reqwest::Client {
    let identity = format!("{}{}", user.certificate, user.key);
    reqwest::Client::builder()
        .use_rustls_tls()
        .tls_certs_only([reqwest::Certificate::from_pem(ca.as_bytes()).expect("a CA")])
        .identity(reqwest::Identity::from_pem(identity.as_bytes()).expect("an identity"))
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client")
}
