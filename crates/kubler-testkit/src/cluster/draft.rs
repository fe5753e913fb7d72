//! A cluster before it starts: its folder, and how its roles are called.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;

use super::{ADMINISTRATORS, Access, Authority, Child, Cluster, Pair, audit, kubeconfig};
use crate::agent::kube_folder;
use crate::leaks::Mark;

/// Where services have their addresses.
pub const SERVICE_RANGE: &str = "10.96.0.0/24";
/// The first of them, which is the API server's.
const FIRST_SERVICE: &str = "10.96.0.1";

/// A cluster that is not started yet.
#[must_use]
#[derive(Clone)]
pub struct ClusterDraft {
    address: String,
    port: u16,
    parent: PathBuf,
    api_server: Vec<String>,
    controller_manager: Vec<String>,
}

impl Default for ClusterDraft {
    fn default() -> Self {
        Self {
            address: "127.0.0.1".to_owned(),
            port: 0,
            parent: "/tmp".into(),
            api_server: Vec::new(),
            controller_manager: Vec::new(),
        }
    }
}

impl ClusterDraft {
    /// Where the API server listens, instead of on loopback; the address must be there.
    pub fn address(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    /// The folder that its own folder will be in; its path must be short.
    pub fn folder_in(mut self, parent: &Path) -> Self {
        parent.clone_into(&mut self.parent);
        self
    }

    /// One more argument of the API server. `FOLDER` in it becomes the cluster's folder.
    pub fn api_server_argument(mut self, argument: &str) -> Self {
        self.api_server.push(argument.to_owned());
        self
    }

    /// One more argument of the controllers.
    pub fn controller_manager_argument(mut self, argument: &str) -> Self {
        self.controller_manager.push(argument.to_owned());
        self
    }

    /// Starts it, and waits until it works.
    ///
    /// # Panics
    /// With the logs, when it does not.
    pub async fn start(self) -> Cluster {
        self.start_with(|_, _| ()).await
    }

    /// The same, with files of one's own in its folder before anything runs.
    ///
    /// # Panics
    /// With the logs, when it does not start.
    pub async fn start_with(mut self, prepare: impl FnOnce(&Path, &Authority)) -> Cluster {
        let mark = Mark::new();
        let folder = tempfile::Builder::new()
            .prefix(mark.as_str())
            .rand_bytes(0)
            .tempdir_in(&self.parent)
            .expect("a folder");
        // Free at this moment, and chosen by the kernel from a range where the next choice is another one.
        self.port = TcpListener::bind((self.address.as_str(), 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let url = format!("https://{}:{}", self.address, self.port);
        let authority = Authority::new();
        self.write(folder.path(), &url, &authority);
        prepare(folder.path(), &authority);
        let etcd = start_etcd(folder.path(), &mark);
        let api_server = self.api_server(folder.path(), &mark);
        let mut cluster = Cluster {
            access: Access::new(&url, folder.path()),
            draft: self,
            etcd,
            api_server: Some(api_server),
            controller_manager: None,
            mark,
            folder,
        };
        // Controllers that are there before would look once a second for what is not.
        cluster.wait_until("/healthz").await;
        cluster.start_controller_manager();
        cluster.wait_until("/readyz").await;
        cluster
            .wait_until("/api/v1/namespaces/default/serviceaccounts/default")
            .await;
        cluster
    }

    /// Writes what the roles read.
    fn write(&self, folder: &Path, url: &str, authority: &Authority) {
        let serving = authority.serving(
            "kube-apiserver",
            &[
                &self.address,
                "127.0.0.1",
                "localhost",
                FIRST_SERVICE,
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
        );
        let administrator = authority.client("admin", &[ADMINISTRATORS]);
        let controllers = authority.client("system:kube-controller-manager", &[]);
        // Who may say on whose behalf a request comes to an aggregated API: an authority of its own.
        let front = Authority::new();
        let proxy = front.client("front-proxy-client", &[]);
        let signer = KeyPair::generate().expect("a key");
        let of = |pair: &Pair| kubeconfig(url, authority.certificate(), pair);
        for (name, text) in [
            ("ca.crt", authority.certificate()),
            ("ca.key", authority.key()),
            ("front-ca.crt", front.certificate()),
            ("proxy.crt", &proxy.certificate),
            ("proxy.key", &proxy.key),
            ("serving.crt", &serving.certificate),
            ("serving.key", &serving.key),
            ("service-account.key", &signer.serialize_pem()),
            // Upstream looks for a public key and takes no private one of this form for it.
            ("service-account.pub", &signer.public_key_pem()),
            ("audit-policy.yaml", audit::POLICY),
            ("admin.crt", &administrator.certificate),
            ("admin.key", &administrator.key),
            ("admin.kubeconfig", &of(&administrator)),
            ("controller-manager.kubeconfig", &of(&controllers)),
        ] {
            write_secret(&folder.join(name), text);
        }
    }

    /// Starts the API server.
    pub(super) fn api_server(&self, folder: &Path, mark: &Mark) -> Child {
        let path = folder.to_str().expect("a path that is text");
        let mut arguments = vec![
            format!("--etcd-servers=unix://{path}/etcd/127.0.0.1:1"),
            format!("--bind-address={}", self.address),
            format!("--advertise-address={}", self.address),
            format!("--secure-port={}", self.port),
            "--tls-cert-file=FOLDER/serving.crt".to_owned(),
            "--tls-private-key-file=FOLDER/serving.key".to_owned(),
            "--client-ca-file=FOLDER/ca.crt".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-account-signing-key-file=FOLDER/service-account.key".to_owned(),
            "--service-account-key-file=FOLDER/service-account.pub".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--requestheader-client-ca-file=FOLDER/front-ca.crt".to_owned(),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--proxy-client-cert-file=FOLDER/proxy.crt".to_owned(),
            "--proxy-client-key-file=FOLDER/proxy.key".to_owned(),
            "--audit-policy-file=FOLDER/audit-policy.yaml".to_owned(),
            "--audit-log-path=FOLDER/audit.log".to_owned(),
            // As installers do: whether a pod may be privileged is for Pod Security to say.
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ];
        // Later ones of a kind win over earlier ones.
        if !self
            .api_server
            .iter()
            .any(|argument| argument.starts_with("--endpoint-reconciler-type"))
        {
            arguments.push("--endpoint-reconciler-type=none".to_owned());
        }
        arguments.extend(self.api_server.iter().cloned());
        start_role("kube-apiserver", arguments, folder, mark)
    }

    /// Starts the controllers.
    pub(super) fn controller_manager(&self, folder: &Path, mark: &Mark) -> Child {
        let mut arguments = [
            "--kubeconfig=FOLDER/controller-manager.kubeconfig",
            "--service-account-private-key-file=FOLDER/service-account.key",
            "--root-ca-file=FOLDER/ca.crt",
            "--cluster-signing-cert-file=FOLDER/ca.crt",
            "--cluster-signing-key-file=FOLDER/ca.key",
            "--use-service-account-credentials",
            // They start one after the other: at the default rate the last of them waits for seconds.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--leader-elect=false",
            "--secure-port=0",
            "--profiling=false",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(self.controller_manager.iter().cloned());
        start_role("kube-controller-manager", arguments, folder, mark)
    }
}

fn start_role(name: &str, arguments: Vec<String>, folder: &Path, mark: &Mark) -> Child {
    let path = folder.to_str().expect("a path that is text");
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| argument.replace("FOLDER", path))
        .collect();
    let log = folder.join(format!("{name}.log"));
    Child::start(&program(name), &arguments, folder, &log, mark)
}

/// etcd without any port. Its data end with the cluster, so that nothing waits for a disk.
fn start_etcd(folder: &Path, mark: &Mark) -> Child {
    let own = folder.join("etcd");
    fs::create_dir(&own).expect("a folder");
    let arguments = [
        "--name=host",
        "--data-dir=data",
        "--log-level=error",
        "--unsafe-no-fsync",
        "--listen-client-urls=unix://127.0.0.1:1",
        "--advertise-client-urls=http://127.0.0.1:1",
        "--listen-peer-urls=unix://127.0.0.1:2",
        "--initial-advertise-peer-urls=http://127.0.0.1:2",
        "--initial-cluster=host=http://127.0.0.1:2",
    ];
    let log = folder.join("etcd.log");
    Child::start(&program("etcd"), &arguments, &own, &log, mark)
}

/// A program of upstream that `kube/build` built.
///
/// # Panics
/// When it has not.
pub fn program(name: &str) -> PathBuf {
    let program = kube_folder().join(name);
    assert!(
        program.is_file(),
        "`{}` is missing: run `kube/build`",
        program.display()
    );
    program
}

/// Writes a file that only its owner reads.
///
/// # Panics
/// When it cannot be written.
pub fn write_secret(path: &Path, text: &str) {
    let file = fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot write `{}`: {error}", path.display()));
}
