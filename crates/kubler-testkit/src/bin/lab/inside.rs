//! Inside its own world: mounts, network, then the roles, one after the other as they need each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use kubler_testkit::cluster::{Child, Cluster, SERVICE_RANGE, program};
use kubler_testkit::leaks::Mark;
use rustix::process::{WaitOptions, wait};

use crate::place::{Place, ip};
use crate::{files, images};

/// How long a step may take, on a machine that does much else.
const STEP_BOUND: Duration = Duration::from_secs(180);
/// How often a condition is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often the roles are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What the kubelet wants of the kernel. These belong to the whole machine: the kubelet sees them as it wants them, and
/// they stay as they are.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The first process: starts the rest, reaps orphans, and ends when the rest does.
pub(crate) fn first(number: &str) -> ExitCode {
    let own = std::env::current_exe().expect("this program's path");
    let started = Command::new(own).args(["inside", number]).spawn();
    let main = started.expect("the rest").id().cast_signed();
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == main => {
                let ended_well = status.exit_status() == Some(0);
                return ExitCode::from(u8::from(!ended_well));
            }
            _ => (),
        }
    }
}

/// Brings all of it up, and watches it.
pub(crate) async fn run(number: u8) -> ExitCode {
    let began = Instant::now();
    let say = |what: &str| println!("{:5.1} s  {what}", began.elapsed().as_secs_f32());
    let place = Place::of(number);
    let folder = place.folder();
    say("a world of its own: mounts, network, process ids");
    mounts(&folder);
    network(&place).await;
    let mark = place.mark();
    let node = Node {
        place: &place,
        folder: &folder,
        mark: &mark,
    };
    let mut roles = vec![("containerd", node.containerd())];
    say("containerd, and the images made by hand");
    node.import().await;
    say("etcd, kube-apiserver, kube-controller-manager");
    let cluster = node.control_plane().await;
    say("kube-scheduler, kubelet, kube-proxy");
    roles.extend(node.roles(&cluster));
    while !has_node(&cluster) {
        look(&mut roles);
        assert!(began.elapsed() < STEP_BOUND, "no node");
        tokio::time::sleep(LOOK_INTERVAL * 4).await;
    }
    say("kube-router, which enforces network policies");
    roles.push(("kube-router", node.enforcer(&cluster)));
    while !is_ready(&cluster) {
        look(&mut roles);
        assert!(began.elapsed() < STEP_BOUND, "the node is not ready");
        tokio::time::sleep(LOOK_INTERVAL * 4).await;
    }
    say("the node is ready");
    let ready = serde_json::json!({
        "kubeconfig": cluster.kubeconfig(),
        "folder": cluster.folder(),
        "url": cluster.url(),
        "number": number,
    });
    println!("ready {ready}");
    loop {
        look(&mut roles);
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Stops everything when a role has ended.
fn look(roles: &mut [(&str, Child)]) {
    for (name, role) in roles {
        assert!(!role.has_ended(), "{name} has ended: {}", role.log());
    }
}

fn has_node(cluster: &Cluster) -> bool {
    cluster
        .kubectl(&["get", "node", files::NODE])
        .status
        .success()
}

fn is_ready(cluster: &Cluster) -> bool {
    let condition = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    let asked = cluster.kubectl(&["get", "node", files::NODE, "--output", condition]);
    asked.stdout == b"True"
}

struct Node<'a> {
    place: &'a Place,
    folder: &'a Path,
    mark: &'a Mark,
}

impl Node<'_> {
    fn start(&self, name: &str, program: &Path, arguments: &[String]) -> Child {
        let log = self.folder.join(format!("{name}.log"));
        Child::start(program, arguments, self.folder, &log, self.mark)
    }

    fn containerd(&self) -> Child {
        files::containerd(self.folder);
        let config = format!("--config={}/containerd.toml", self.folder.display());
        self.start("containerd", Path::new("/usr/bin/containerd"), &[config])
    }

    /// Gives containerd its images, as soon as it listens.
    async fn import(&self) {
        let archive = images::write(self.folder);
        let deadline = Instant::now() + STEP_BOUND;
        loop {
            let imported = Command::new("ctr")
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(&archive)
                .output()
                .expect("ctr");
            if imported.status.success() {
                break;
            }
            let said = String::from_utf8_lossy(&imported.stderr).into_owned();
            assert!(Instant::now() < deadline, "no images: {said}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        fs::remove_file(archive).expect("an archive");
    }

    async fn control_plane(&self) -> Cluster {
        let draft = Cluster::draft()
            .address(&self.place.node_address())
            .folder_in(self.folder);
        let draft = [
            "--endpoint-reconciler-type=lease",
            "--kubelet-client-certificate=FOLDER/kubelet-client.crt",
            "--kubelet-client-key=FOLDER/kubelet-client.key",
            "--kubelet-certificate-authority=FOLDER/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
        ]
        .into_iter()
        .fold(
            draft,
            kubler_testkit::cluster::ClusterDraft::api_server_argument,
        );
        draft
            .start_with(|folder, authority| files::certificates(folder, self.place, authority))
            .await
    }

    fn roles(&self, cluster: &Cluster) -> Vec<(&'static str, Child)> {
        let (own, its) = (self.folder, cluster.folder());
        files::kubeconfigs(its, cluster.url(), cluster.authority());
        files::kubelet(own, self.place, its);
        files::proxy(own, its);
        let scheduler = [
            format!("--kubeconfig={}/scheduler.kubeconfig", its.display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        let kubelet = [
            format!("--config={}/kubelet.yaml", own.display()),
            format!("--kubeconfig={}/kubelet.kubeconfig", its.display()),
            format!("--root-dir={}/kubelet", own.display()),
            format!("--hostname-override={}", files::NODE),
            format!("--node-ip={}", self.place.node_address()),
        ];
        let proxy = [format!("--config={}/proxy.yaml", own.display())];
        vec![
            ("kube-scheduler", &scheduler[..]),
            ("kubelet", &kubelet[..]),
            ("kube-proxy", &proxy[..]),
        ]
        .into_iter()
        .map(|(name, arguments)| (name, self.start(name, &program(name), arguments)))
        .collect()
    }

    /// It looks for its node when it starts, and does not wait for it.
    fn enforcer(&self, cluster: &Cluster) -> Child {
        let its = cluster.folder();
        let router = [
            format!("--kubeconfig={}/router.kubeconfig", its.display()),
            format!("--hostname-override={}", files::NODE),
            "--run-router=false".to_owned(),
            "--run-service-proxy=false".to_owned(),
            "--run-firewall=true".to_owned(),
            "--run-loadbalancer=false".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        ];
        self.start("kube-router", &program("kube-router"), &router)
    }
}

/// Everything that upstream writes to fixed places goes to this world's own.
fn mounts(folder: &Path) {
    // Pods see mounts that are made later only where mounts spread.
    mount(&["--make-rshared", "/"]);
    for path in ["/run", "/var/lib"] {
        mount(&["-t", "tmpfs", "-o", "mode=0755", "lab", path]);
    }
    let logs = folder.join("log");
    fs::create_dir(&logs).expect("a folder");
    mount(&["--bind", text(&logs), "/var/log"]);
    let resolver = folder.join("resolv.conf");
    fs::write(&resolver, "# no names are resolved in the lab\n").expect("a file");
    mount(&["--bind", text(&resolver), "/etc/resolv.conf"]);
    for (name, value) in SETTINGS {
        let file = folder.join(format!("setting-{}", name.replace('/', "-")));
        fs::write(&file, format!("{value}\n")).expect("a file");
        let setting = PathBuf::from("/proc/sys").join(name);
        if setting.exists() {
            mount(&["--bind", text(&file), text(&setting)]);
        }
    }
}

async fn network(place: &Place) {
    ip(&["link", "set", "lo", "up"]);
    let deadline = Instant::now() + STEP_BOUND;
    let has_come = || {
        let shown = Command::new("ip").args(["link", "show", "eth0"]).output();
        shown.expect("ip").status.success()
    };
    while !has_come() {
        assert!(Instant::now() < deadline, "no wire to the machine");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let address = format!("{}/30", place.node_address());
    ip(&["address", "add", &address, "dev", "eth0"]);
    ip(&["link", "set", "eth0", "up"]);
    // The node's own packets to services must have a way before they are rewritten. There is none to anywhere else.
    ip(&["route", "add", SERVICE_RANGE, "dev", "eth0"]);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1\n").expect("a node that routes");
}

fn mount(arguments: &[&str]) {
    let output = Command::new("mount").args(arguments).output();
    let output = output.expect("mount");
    assert!(
        output.status.success(),
        "mount {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}
