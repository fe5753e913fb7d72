//! What the roles of the node read.

use std::fs;
use std::path::Path;

use kubler_testkit::cluster::{ADMINISTRATORS, Authority, Pair, kubeconfig, write_secret};

use crate::images::PAUSE;
use crate::place::Place;

/// The node's name.
pub(crate) const NODE: &str = "lab";
/// Where pods have their addresses.
const POD_RANGE: &str = "10.78.0.0/24";

/// Certificates with which the API server and the kubelet know each other; before the API server starts.
pub(crate) fn certificates(folder: &Path, place: &Place, authority: &Authority) {
    let client = authority.client("kube-apiserver-kubelet-client", &[ADMINISTRATORS]);
    let serving = authority.serving(NODE, &[NODE, &place.node_address()]);
    let pairs: [(&str, &Pair); 2] = [("kubelet-client", &client), ("kubelet", &serving)];
    for (name, pair) in pairs {
        write_secret(&folder.join(format!("{name}.crt")), &pair.certificate);
        write_secret(&folder.join(format!("{name}.key")), &pair.key);
    }
}

/// A kubeconfig of each role.
pub(crate) fn kubeconfigs(folder: &Path, url: &str, authority: &Authority) {
    for (name, user, groups) in [
        (
            "kubelet",
            format!("system:node:{NODE}"),
            &["system:nodes"][..],
        ),
        ("scheduler", "system:kube-scheduler".to_owned(), &[]),
        ("proxy", "system:kube-proxy".to_owned(), &[]),
        ("router", "kube-router".to_owned(), &[ADMINISTRATORS]),
    ] {
        let text = kubeconfig(
            url,
            authority.certificate(),
            &authority.client(&user, groups),
        );
        write_secret(&folder.join(format!("{name}.kubeconfig")), &text);
    }
}

/// containerd's configuration and the network of pods: each has a wire of its own to the node, which routes, so that
/// the node's rules see every packet between two pods.
pub(crate) fn containerd(folder: &Path) {
    let folder_text = folder.display();
    let config = format!(
        r#"version = 2
root = "{folder_text}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder_text}/cni"
"#
    );
    let network = format!(
        r#"{{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {{"type": "ptp", "ipMasq": false, "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{POD_RANGE}"}}]],
    "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
]}}
"#
    );
    fs::create_dir_all(folder.join("cni")).expect("a folder");
    fs::write(folder.join("containerd.toml"), config).expect("a file");
    fs::write(folder.join("cni/lab.conflist"), network).expect("a file");
}

/// The kubelet's configuration.
pub(crate) fn kubelet(folder: &Path, place: &Place, cluster: &Path) {
    let (cluster, address, group) = (cluster.display(), place.node_address(), place.name());
    let config = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {cluster}/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {cluster}/kubelet.crt
tlsPrivateKeyFile: {cluster}/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{group}
failCgroupV1: false
failSwapOn: false
evictionHard: {{memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
volumePluginDir: {folder}/volume-plugins
resolvConf: {folder}/resolv.conf
"#,
        folder = folder.display(),
    );
    fs::write(folder.join("kubelet.yaml"), config).expect("a file");
}

/// kube-proxy's configuration. Limits of connection tracking belong to the machine: they stay as they are.
pub(crate) fn proxy(folder: &Path, cluster: &Path) {
    let config = format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {{kubeconfig: {cluster}/proxy.kubeconfig}}
hostnameOverride: {NODE}
clusterCIDR: {POD_RANGE}
detectLocalMode: ClusterCIDR
conntrack: {{maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}}
"#,
        cluster = cluster.display()
    );
    fs::write(folder.join("proxy.yaml"), config).expect("a file");
}
