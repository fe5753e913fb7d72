package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// What every control plane has in common. The template is made with the same
// values, so changing one changes the template with it.
const (
	// advertisedAddress is from a range reserved for documentation: whatever
	// might miss a hook and dial it cannot hit a neighbour's port.
	advertisedAddress = "192.0.2.1"
	advertisedPort    = 6443
	serviceRange      = "10.96.0.0/12"
	controllerQPS     = 500
	controllerBurst   = 1000
)

// settings is what the caller decides about one control plane.
type settings struct {
	environment string
	folder      folder
	etcd        string // URL
	prefix      string // without the final slash
	issuer      string // URL
	template    string // path, may be empty
	logBytes    int64
}

// parseSettings reads the flags of the main command.
func parseSettings(arguments []string) (settings, error) {
	var chosen settings
	var name string
	flags := flag.NewFlagSet("kubler-control-plane", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&chosen.environment, "environment", "", "name of the environment, as in env_x (required)")
	flags.StringVar(&name, "folder", "", "private folder of the environment, mode 0700 (required)")
	flags.StringVar(&chosen.etcd, "etcd-endpoint", "", "URL of etcd by address, as in https://127.0.0.1:2379 (required)")
	flags.StringVar(&chosen.prefix, "etcd-prefix", "", "where all keys of the environment live, as in /environments/env_x (required)")
	flags.StringVar(&chosen.issuer, "issuer", "", "issuer of service account tokens, one per environment (default https://<environment>.invalid)")
	flags.StringVar(&chosen.template, "template", "", "template file to fill an empty prefix from")
	flags.Int64Var(&chosen.logBytes, "log-bytes", 4<<20, "bound of the log, both of its files together")
	flags.Usage = func() {}
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "usage: kubler-control-plane --environment NAME --folder DIR --etcd-endpoint URL --etcd-prefix PATH [--template FILE] [--issuer URL] [--log-bytes N]\n       kubler-control-plane template --etcd-binary FILE --out FILE")
			flags.SetOutput(os.Stderr)
			flags.PrintDefaults()
		}
		return settings{}, err
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf("unexpected argument `%s`", flags.Arg(0))
	}
	for given, value := range map[string]string{
		"environment": chosen.environment, "folder": name, "etcd-endpoint": chosen.etcd, "etcd-prefix": chosen.prefix,
	} {
		if value == "" {
			return settings{}, fmt.Errorf("flag --%s is missing", given)
		}
	}
	chosen.prefix = strings.TrimRight(chosen.prefix, "/")
	if !strings.HasPrefix(chosen.prefix, "/") {
		return settings{}, errors.New("--etcd-prefix must begin with / and name something below it")
	}
	if chosen.logBytes < 1<<16 {
		return settings{}, errors.New("--log-bytes must be at least 65536")
	}
	if chosen.issuer == "" {
		chosen.issuer = "https://" + strings.ReplaceAll(chosen.environment, "_", "-") + ".invalid"
	}
	opened, err := openFolder(name)
	chosen.folder = opened
	return chosen, err
}

// apiServerFlags is the upstream command line of the API server.
func (s settings) apiServerFlags() []string {
	f := s.folder
	flags := []string{
		"--etcd-servers=" + s.etcd,
		"--etcd-prefix=" + s.prefix,
		// compact_rev_key lies outside every prefix: etcd compacts by itself.
		"--etcd-compaction-interval=0",
		fmt.Sprintf("--secure-port=%d", advertisedPort),
		"--bind-address=" + advertisedAddress,
		"--advertise-address=" + advertisedAddress,
		"--endpoint-reconciler-type=none",
		"--tls-cert-file=" + f.file(fileServingCertificate),
		"--tls-private-key-file=" + f.file(fileServingKey),
		"--anonymous-auth=false",
		"--token-auth-file=" + f.file(fileTokens),
		"--authorization-mode=RBAC",
		"--allow-privileged=true",
		"--service-account-issuer=" + s.issuer,
		"--service-account-signing-key-file=" + f.file(fileServiceAccountKey),
		"--service-account-key-file=" + f.file(fileServiceAccountKey),
		"--service-cluster-ip-range=" + serviceRange,
		"--egress-selector-config-file=" + f.file(fileEgressSelector),
		// The only in-tree volume plugin that would dial a name by itself.
		"--feature-gates=InTreePluginPortworxUnregister=true",
		"--profiling=false",
	}
	if f.has(fileClientAuthority) {
		flags = append(flags, "--client-ca-file="+f.file(fileClientAuthority))
	}
	if f.has(fileEtcdCertificate) {
		flags = append(flags,
			"--etcd-cafile="+f.file(fileEtcdAuthority),
			"--etcd-certfile="+f.file(fileEtcdCertificate),
			"--etcd-keyfile="+f.file(fileEtcdKey))
	}
	return flags
}

// controllerFlags is the upstream command line of the controller manager. It
// has no kubeconfig: it shares the API server's own loopback client.
func (s settings) controllerFlags() []string {
	f := s.folder
	return []string{
		fmt.Sprintf("--master=https://%s:%d", advertisedAddress, advertisedPort),
		"--service-account-private-key-file=" + f.file(fileServiceAccountKey),
		"--root-ca-file=" + f.file(fileAuthority),
		"--leader-elect=false",
		"--secure-port=0",
		"--profiling=false",
		fmt.Sprintf("--kube-api-qps=%d", controllerQPS),
		fmt.Sprintf("--kube-api-burst=%d", controllerBurst),
		// Drivers in this folder would be executed: it stays empty and ours.
		"--flex-volume-plugin-dir=" + f.file(folderPlugins),
	}
}

// egressSelector sends every connection a user can aim to the socket. `etcd`
// is left out on purpose: it stays direct.
func (s settings) egressSelector() []byte {
	socket := s.folder.file(fileEgressSocket)
	connection := fmt.Sprintf("  connection:\n    proxyProtocol: HTTPConnect\n    transport:\n      uds:\n        udsName: %q\n", socket)
	return []byte("apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n" +
		"- name: cluster\n" + connection + "- name: controlplane\n" + connection)
}
