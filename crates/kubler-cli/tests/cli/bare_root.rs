//! The released `kubler` in a root that holds nothing but busybox, the plugin and a CA. Run by `make dist-check`, which
//! says in `KUBLER_STATIC` which program; needs root.

use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kubler_testkit::leaks::Mark;
use serde_json::json;

use crate::desk::{Desk, token};

/// Where the name server of the root answers: a loopback address that nobody else uses for port 53.
const NAME_SERVER: &str = "127.53.7.19";

/// Answers every question for an address with 127.0.0.1, and every other with nothing.
fn name_server() {
    let socket = UdpSocket::bind((NAME_SERVER, 53)).expect("port 53 needs root");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let end = 12
                + question[12..length]
                    .iter()
                    .position(|byte| *byte == 0)
                    .unwrap()
                + 5;
            let is_address = question[end - 4..end] == [0, 1, 0, 1];
            let mut answer = question[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
            if is_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

struct Root {
    folder: tempfile::TempDir,
    desk: Desk,
    mark: Mark,
}

impl Root {
    fn new(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Self {
            folder,
            desk: Desk::open(),
            mark: Mark::new(),
        };
        for name in [
            "bin",
            "etc",
            "dev",
            "proc",
            "tmp",
            "usr/local/bin",
            "plugin/hooks",
        ] {
            std::fs::create_dir_all(root.path(name)).unwrap();
        }
        let busybox = root.path("bin/busybox");
        std::fs::copy("/bin/busybox", &busybox).unwrap();
        let applets = Command::new(&busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines() {
            let _ = symlink("busybox", root.path("bin").join(applet));
        }
        std::fs::copy(program, root.path("usr/local/bin/kubler")).unwrap();
        let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/buildkite");
        for file in ["hooks/environment", "hooks/pre-command", "hooks/pre-exit"] {
            std::fs::copy(plugin.join(file), root.path("plugin").join(file)).unwrap();
        }
        std::fs::copy(root.desk.ca(), root.path("etc/ca.pem")).unwrap();
        let agent = format!(
            "#!/bin/sh\n[ \"$1\" = oidc ] && echo {}\nexit 0\n",
            token("j")
        );
        std::fs::write(root.path("bin/buildkite-agent"), agent).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(root.path("bin/buildkite-agent"), executable).unwrap();
        std::fs::write(root.path("etc/hosts"), "127.0.0.1 in-hosts.test\n").unwrap();
        std::fs::write(
            root.path("etc/resolv.conf"),
            format!("nameserver {NAME_SERVER}\n"),
        )
        .unwrap();
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A script in the root, with busybox as its shell, in the environment of a job with the plugin.
    fn sh(&self, script: &str) -> Output {
        let configuration =
            json!({ "server": self.desk.url(), "ca": "/etc/ca.pem", "profile": "ci-small" });
        // A mount namespace of its own, so that /proc goes with it. Every container has these two.
        Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg("mount -t proc proc \"$0/proc\" && { [ -e \"$0/dev/null\" ] || mknod -m 666 \"$0/dev/null\" c 1 3; } && exec chroot \"$0\" /bin/sh -c \"$1\"")
            .arg(self.folder.path())
            .arg(script)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env(Mark::VARIABLE, self.mark.as_str())
            .env("BUILDKITE_JOB_ID", "j")
            .env("BUILDKITE_PLUGIN_NAME", "KUBLER")
            .env("BUILDKITE_PLUGIN_CONFIGURATION", configuration.to_string())
            .output()
            .unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.mark.kill_processes(std::time::Duration::from_secs(20));
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
#[ignore = "needs a static `kubler` in KUBLER_STATIC, root and busybox: run by `make dist-check`"]
fn the_released_kubler_works_in_a_root_with_nothing_but_busybox() {
    let program = std::env::var_os("KUBLER_STATIC").expect("KUBLER_STATIC names the program");
    let root = Root::new(Path::new(&program));

    let version = root.sh("kubler --version");
    assert!(
        text(&version).contains(env!("CARGO_PKG_VERSION")),
        "{version:?}"
    );

    // Names, by file and by question: the certificate is for another name, so that the answer comes from behind both.
    name_server();
    for name in ["in-hosts.test", "in-dns.test"] {
        let url = root.desk.url().replace("127.0.0.1", name);
        let asked = text(&root.sh(&format!("kubler --server {url} --ca /etc/ca.pem env list")));
        assert!(!asked.contains("cannot be resolved"), "{name}: {asked}");
        assert!(asked.contains("certificate"), "{name}: {asked}");
    }
    std::fs::write(root.path("etc/resolv.conf"), "").unwrap();
    let url = root.desk.url().replace("127.0.0.1", "in-dns.test");
    let asked = text(&root.sh(&format!("kubler --server {url} --ca /etc/ca.pem env list")));
    assert!(
        asked.contains("cannot be resolved") || !asked.contains("certificate"),
        "{asked}"
    );

    let job = root.sh(
        "for hook in environment pre-command; do BUILDKITE_HOOK_PATH=/plugin/hooks/$hook; . $BUILDKITE_HOOK_PATH; done
        set -e
        stat -c %a \"$KUBECONFIG\"; kubler env show; kubler credential | grep -c ExecCredential
        kubler doctor || echo \"doctor says $?\"
        BUILDKITE_HOOK_PATH=/plugin/hooks/pre-exit; . $BUILDKITE_HOOK_PATH",
    );
    let told = text(&job);
    assert!(job.status.success(), "{told}");
    assert!(
        told.contains("600\n") && told.contains("is released"),
        "{told}"
    );
    assert!(
        told.contains("clock") && !told.contains("not found"),
        "{told}"
    );
    assert_eq!(root.desk.alive(), Vec::<String>::new());
    println!("{told}");
}
