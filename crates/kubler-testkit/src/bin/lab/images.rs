//! Images made by hand, as none can be pulled: one layer with busybox, one with upstream's test program.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use kubler_testkit::cluster::program;
use kubler_testkit::lab::{IMAGES_VARIABLE, TEST_IMAGES};
use serde_json::{Value, json};

/// What every pod's sandbox runs.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10.1";

/// Waits for the end and nothing else.
const PAUSE_SCRIPT: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";

/// A layer: the file of its archive, and the digest of that.
struct Layer {
    file: String,
    digest: String,
}

/// Writes one archive with all of them into `folder`, for `ctr images import`.
pub(crate) fn write(folder: &Path) -> PathBuf {
    let work = folder.join("images");
    fs::create_dir_all(&work).expect("a folder");
    let base = layer(&work, "base", busybox);
    let shell = json!({ "Cmd": ["sh"] });
    let pause = json!({ "Entrypoint": ["/bin/sh", "-c", PAUSE_SCRIPT] });
    let mut manifest = vec![
        image(&work, "pause", &pause, &[&base], &[PAUSE]),
        image(
            &work,
            "busybox",
            &shell,
            &[&base],
            &[
                "docker.io/library/busybox:1.37",
                "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
                "registry.k8s.io/e2e-test-images/busybox:1.36.1-1",
            ],
        ),
    ];
    if std::env::var(IMAGES_VARIABLE).is_ok_and(|images| images == TEST_IMAGES) {
        manifest.extend(of_tests(&work, &base));
    }
    let text = serde_json::to_string(&manifest).expect("JSON");
    fs::write(work.join("manifest.json"), text).expect("a file");
    let archive = folder.join("images.tar");
    let files = fs::read_dir(&work).expect("a folder").flatten();
    let files = files.map(|entry| entry.file_name().into_string().expect("text"));
    let files: Vec<String> = files
        .filter(|name| {
            let extension = Path::new(name).extension();
            extension.is_some_and(|it| it == "json" || it == "tar")
        })
        .collect();
    tar(&archive, &work, &files);
    fs::remove_dir_all(&work).expect("a folder");
    archive
}

/// Those that upstream's tests ask for: its own programs, and busybox in the place of two servers.
fn of_tests(work: &Path, base: &Layer) -> Vec<Value> {
    let with = |name: &str, path: &str, config: &Value, image_name: &str| {
        let layer = layer(work, name, |root| {
            let to = root.join(path);
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            fs::copy(program(name), to).expect("a program");
        });
        image(
            work,
            &format!("{name}-image"),
            config,
            &[base, &layer],
            &[image_name],
        )
    };
    let entry = |words: &[&str]| json!({ "Entrypoint": words });
    let serves = |name: &str, pages: &str, names: &[&str]| {
        let layer = layer(work, name, |root| {
            let folder = root.join(pages);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(
                folder.join("index.html"),
                "<html><body>It works!</body></html>\n",
            )
            .expect("a file");
        });
        let pages = format!("/{pages}");
        let config = entry(&["/bin/httpd", "-f", "-p", "80", "-h", &pages]);
        image(
            work,
            &format!("{name}-image"),
            &config,
            &[base, &layer],
            names,
        )
    };
    let mut test_program = entry(&["/agnhost"]);
    test_program["Cmd"] = json!(["pause"]);
    vec![
        with(
            "agnhost",
            "agnhost",
            &test_program,
            "registry.k8s.io/e2e-test-images/agnhost:2.56",
        ),
        with(
            "sample-apiserver",
            "sample-apiserver",
            &entry(&["/sample-apiserver"]),
            "registry.k8s.io/e2e-test-images/sample-apiserver:1.29.2",
        ),
        with(
            "etcd",
            "usr/local/bin/etcd",
            &entry(&["/usr/local/bin/etcd"]),
            "registry.k8s.io/etcd:3.6.4-0",
        ),
        serves(
            "httpd",
            "usr/local/apache2/htdocs",
            &[
                "registry.k8s.io/e2e-test-images/httpd:2.4.38-4",
                "registry.k8s.io/e2e-test-images/httpd:2.4.39-4",
            ],
        ),
        serves(
            "nginx",
            "usr/share/nginx/html",
            &[
                "registry.k8s.io/e2e-test-images/nginx:1.14-4",
                "registry.k8s.io/e2e-test-images/nginx:1.15-4",
            ],
        ),
        image(
            work,
            "nonroot",
            &json!({ "Cmd": ["sh"], "User": "1234" }),
            &[base],
            &["registry.k8s.io/e2e-test-images/nonroot:1.4"],
        ),
    ]
}

/// An image of these layers under these names, as one entry of the manifest.
fn image(work: &Path, name: &str, config: &Value, layers: &[&Layer], names: &[&str]) -> Value {
    let mut config = config.clone();
    config["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let digests: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let text = json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    fs::write(work.join(format!("{name}.json")), text.to_string()).expect("a file");
    let files: Vec<&str> = layers.iter().map(|layer| layer.file.as_str()).collect();
    json!({ "Config": format!("{name}.json"), "RepoTags": names, "Layers": files })
}

fn layer(work: &Path, name: &str, fill: impl FnOnce(&Path)) -> Layer {
    let root = work.join(format!("{name}-root"));
    fs::create_dir(&root).expect("a folder");
    fill(&root);
    let file = format!("{name}.tar");
    let archive = work.join(&file);
    tar(&archive, &root, &[".".to_owned()]);
    let bytes = fs::read(&archive).expect("an archive");
    Layer {
        file,
        digest: format!("sha256:{}", hex::encode(digest(&SHA256, &bytes))),
    }
}

/// The same archive from the same files.
fn tar(archive: &Path, root: &Path, files: &[String]) {
    let mut command = Command::new("tar");
    command
        .args(["--create", "--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mtime=@0", "--sort=name", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(root)
        .args(files);
    assert!(command.status().expect("tar").success(), "{command:?}");
}

/// A root with busybox under all its names, and what programs expect of any root.
fn busybox(root: &Path) {
    for name in ["bin", "etc", "root", "home", "var", "tmp"] {
        fs::create_dir(root.join(name)).expect("a folder");
    }
    let open = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(root.join("tmp"), open).expect("a mode");
    let program = find_busybox();
    fs::copy(&program, root.join("bin/busybox")).expect("busybox");
    let listed = Command::new(&program)
        .arg("--list")
        .output()
        .expect("busybox");
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        // Debian's is linked statically against a library whose resolver cannot be: it ends by SIGSEGV.
        if !["busybox", "wget"].contains(&name) {
            symlink("busybox", root.join("bin").join(name)).expect("a link");
        }
    }
    for (name, text) in [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        ),
        ("group", "root:x:0:\nnobody:x:65534:\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ] {
        fs::write(root.join("etc").join(name), text).expect("a file");
    }
    File::create(root.join("etc/resolv.conf")).expect("a file");
}

fn find_busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file());
    found.expect("busybox: scripts/need busybox:busybox-static")
}
