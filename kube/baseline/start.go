package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	startTimeout = 60 * time.Second
	adminToken   = "baseline-admin"
	serverName   = "kubernetes.default.svc"
	newNamespace = "baseline"
)

// startResult is when things were there, counted from the start of the control
// plane's processes. etcd runs before.
type startResult struct {
	// Ready: /readyz passes and the service account default/default exists.
	// This is what Kubler calls Ready.
	Ready float64 `json:"ready_milliseconds"`
	// Namespace: an admin has created a namespace and its service account
	// `default` exists, so the controllers work.
	Namespace float64 `json:"namespace_milliseconds"`
	// Private memory of the processes after --idle, without etcd; absent without --idle.
	Private *float64 `json:"private_mebibytes,omitempty"`
}

// plan is one way to start a control plane.
type plan struct {
	folder string
	etcd   string
	idle   time.Duration
	// start runs its processes against etcd on this port, and says how to dial the API server.
	start func(ctx context.Context, etcdPort int) ([]*child, dialer, error)
}

type dialer func(context.Context) (net.Conn, error)

func startStock(ctx context.Context, arguments []string) (any, error) {
	var chosen plan
	flags := flag.NewFlagSet("start-stock", flag.ContinueOnError)
	startFlags(flags, &chosen)
	apiServer := flags.String("apiserver", "", "kube-apiserver (required)")
	controllers := flags.String("controller-manager", "", "kube-controller-manager (required)")
	if err := required(flags, arguments, "folder", "etcd", "apiserver", "controller-manager"); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(chosen.folder, name) }
	chosen.start = func(ctx context.Context, etcdPort int) ([]*child, dialer, error) {
		port, err := freePort()
		if err != nil {
			return nil, nil, err
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if err := writeKubeconfig(file("kubeconfig"), "https://"+address); err != nil {
			return nil, nil, err
		}
		server, err := start(ctx, chosen.folder, *apiServer,
			fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcdPort),
			fmt.Sprintf("--secure-port=%d", port), "--bind-address=127.0.0.1", "--endpoint-reconciler-type=none",
			"--tls-cert-file="+file("serving.crt"), "--tls-private-key-file="+file("serving.key"),
			"--token-auth-file="+file("tokens.csv"), "--authorization-mode=RBAC", "--allow-privileged=true",
			"--service-account-issuer=https://baseline.invalid",
			"--service-account-signing-key-file="+file("service-account.key"),
			"--service-account-key-file="+file("service-account.key"),
			"--service-cluster-ip-range=10.96.0.0/12")
		if err != nil {
			return nil, nil, err
		}
		manager, err := start(ctx, chosen.folder, *controllers,
			"--kubeconfig="+file("kubeconfig"), "--service-account-private-key-file="+file("service-account.key"),
			"--root-ca-file="+file("ca.crt"), "--leader-elect=false", "--secure-port=0")
		if err != nil {
			server.end()
			return nil, nil, err
		}
		dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) }
		return []*child{server, manager}, dial, nil
	}
	return chosen.measure(ctx)
}

func startVariant(ctx context.Context, arguments []string) (any, error) {
	var chosen plan
	flags := flag.NewFlagSet("start-variant", flag.ContinueOnError)
	startFlags(flags, &chosen)
	program := flags.String("control-plane", "", "kubler-control-plane (required)")
	template := flags.String("template", "", "template of the prefix (required)")
	if err := required(flags, arguments, "folder", "etcd", "control-plane", "template"); err != nil {
		return nil, err
	}
	chosen.start = func(ctx context.Context, etcdPort int) ([]*child, dialer, error) {
		plane, err := start(ctx, chosen.folder, *program,
			"--environment=env_baseline", "--folder="+chosen.folder,
			fmt.Sprintf("--etcd-endpoint=http://127.0.0.1:%d", etcdPort),
			"--etcd-prefix=/environments/env_baseline", "--template="+*template)
		if err != nil {
			return nil, nil, err
		}
		socket := filepath.Join(chosen.folder, "api.sock")
		dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", socket) }
		return []*child{plane}, dial, nil
	}
	return chosen.measure(ctx)
}

func startFlags(flags *flag.FlagSet, chosen *plan) {
	flags.StringVar(&chosen.folder, "folder", "", "empty private folder to work in (required)")
	flags.StringVar(&chosen.etcd, "etcd", "", "etcd (required)")
	flags.DurationVar(&chosen.idle, "idle", 0, "wait so long after the start, then measure memory")
}

// measure starts etcd, waits for it, and then times the control plane.
func (p plan) measure(ctx context.Context) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout+p.idle)
	defer cancel()
	if err := writeInputs(p.folder); err != nil {
		return nil, err
	}
	etcdPort, etcd, err := startEtcd(ctx, p.folder, p.etcd)
	if err != nil {
		return nil, err
	}
	defer etcd.end()
	began := time.Now()
	children, dial, err := p.start(ctx, etcdPort)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, one := range children {
			one.end()
		}
	}()
	// Whoever ends by itself is not waited for.
	alive, ended := context.WithCancel(ctx)
	defer ended()
	for _, one := range children {
		go func() {
			<-one.ended
			ended()
		}()
	}
	result, err := milestones(alive, apiClient(dial), began)
	if err != nil {
		for _, one := range children {
			err = one.failed(err)
		}
		return nil, err
	}
	if p.idle > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(p.idle):
		}
		private, err := privateMebibytes(children...)
		if err != nil {
			return nil, err
		}
		result.Private = &private
	}
	return result, nil
}

// milestones looks for both at once, each every 5 ms.
func milestones(ctx context.Context, client *http.Client, began time.Time) (startResult, error) {
	ask := func(method, path, body string, wanted int) bool {
		request, err := http.NewRequestWithContext(ctx, method, "https://"+serverName+path, bytes.NewBufferString(body))
		if err != nil {
			return false
		}
		request.Header.Set("Authorization", "Bearer "+adminToken)
		request.Header.Set("Content-Type", "application/json")
		answer, err := client.Do(request)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		_, _ = io.Copy(io.Discard, answer.Body)
		return answer.StatusCode == wanted
	}
	exists := func(path string) func() bool {
		return func() bool { return ask(http.MethodGet, path, "", http.StatusOK) }
	}
	account := func(namespace string) string { return "/api/v1/namespaces/" + namespace + "/serviceaccounts/default" }
	var result startResult
	made := make(chan error, 1)
	go func() {
		object := `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"` + newNamespace + `"}}`
		err := until(ctx, func() bool { return ask(http.MethodPost, "/api/v1/namespaces", object, http.StatusCreated) })
		if err == nil {
			err = until(ctx, exists(account(newNamespace)))
		}
		result.Namespace = milliseconds(time.Since(began))
		made <- err
	}()
	err := until(ctx, exists("/readyz"))
	if err == nil {
		err = until(ctx, exists(account("default")))
	}
	result.Ready = milliseconds(time.Since(began))
	if waited := <-made; err == nil {
		err = waited
	}
	return result, err
}

// apiClient trusts anything: what is measured is time, and nobody else can have the port's other end in a test.
func apiClient(dial dialer) *http.Client {
	transport := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		MaxIdleConnsPerHost: 4,
	}
	return &http.Client{Transport: transport, Timeout: 5 * time.Second}
}

// startEtcd runs one as envtest does, without waiting for the disk, and with
// room for a template in one transaction.
func startEtcd(ctx context.Context, folder, program string) (int, *child, error) {
	port, err := freePort()
	if err != nil {
		return 0, nil, err
	}
	peer, err := freePort()
	if err != nil {
		return 0, nil, err
	}
	client, peers := fmt.Sprintf("http://127.0.0.1:%d", port), fmt.Sprintf("http://127.0.0.1:%d", peer)
	etcd, err := start(ctx, folder, program, "--data-dir=etcd", "--unsafe-no-fsync", "--max-txn-ops=1024", "--log-level=error",
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peers,
		"--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers)
	if err != nil {
		return 0, nil, err
	}
	err = until(ctx, func() bool {
		answer, err := http.Get(client + "/health")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	if err != nil {
		etcd.end()
		return 0, nil, etcd.failed(err)
	}
	return port, etcd, nil
}

func writeKubeconfig(path, server string) error {
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",`+
		`"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":"ca.crt"}}],`+
		`"users":[{"name":"u","user":{"token":%q}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`,
		server, adminToken)
	return os.WriteFile(path, []byte(text), 0o600)
}
