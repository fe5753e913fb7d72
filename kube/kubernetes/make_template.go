package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/grpclog"
)

const (
	templateTimeout = 90 * time.Second
	templatePrefix  = "/environments/template"
	// etcdSocket is a file name to etcd, which wants it to look like an address.
	etcdSocket = "127.0.0.1:1"
)

// systemNamespaces get a service account and a root CA before all is quiet.
var systemNamespaces = []string{"default", "kube-node-lease", "kube-public", "kube-system"}

// makeTemplate runs a control plane of this very program on an etcd of its
// own, both without a port, and keeps what it writes into an empty prefix.
func makeTemplate(arguments []string) error {
	flags := flag.NewFlagSet("kubler-control-plane template", flag.ContinueOnError)
	binary := flags.String("etcd-binary", "", "etcd to run (required)")
	out := flags.String("out", "", "file to write (required)")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if *binary == "" || *out == "" {
		return errors.New("flags --etcd-binary and --out are required")
	}
	// What etcd's client says while etcd is still starting is of no interest.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	ctx, cancel := context.WithTimeout(context.Background(), templateTimeout)
	defer cancel()
	ctx, stop := signalContext(ctx)
	defer stop()
	work, err := os.MkdirTemp("", "kubler-template-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	entries, err := collectTemplate(ctx, folder(work), *binary)
	if err != nil {
		return err
	}
	temporary := *out + ".new"
	if err := os.WriteFile(temporary, encodeTemplate(entries), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, *out)
}

// collectTemplate starts both programs, waits until nothing is missing, and
// ends both before it returns.
func collectTemplate(ctx context.Context, work folder, binary string) ([]entry, error) {
	absolute, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	stopEtcd, err := startChild(ctx, string(work), io.Discard, absolute,
		"--data-dir=etcd", "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls=unix://"+etcdSocket, "--advertise-client-urls=http://127.0.0.1:1",
		"--listen-peer-urls=unix://127.0.0.1:2", "--initial-advertise-peer-urls=http://127.0.0.1:2",
		"--initial-cluster=default=http://127.0.0.1:2")
	if err != nil {
		return nil, err
	}
	defer stopEtcd()
	if err := until(ctx, func() bool { return work.has(etcdSocket) }); err != nil {
		return nil, fmt.Errorf("etcd did not start: %w", err)
	}
	endpoint := "unix://" + work.file(etcdSocket)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if err := writeThrowawayInputs(work); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	stopPlane, err := startChild(ctx, string(work), os.Stderr, self,
		"--environment=template", "--folder="+string(work), "--etcd-endpoint="+endpoint, "--etcd-prefix="+templatePrefix)
	if err != nil {
		return nil, err
	}
	defer stopPlane()
	err = until(ctx, func() bool { return settled(ctx, work, client) })
	if err != nil {
		log, _ := os.ReadFile(work.file(fileLog))
		return nil, fmt.Errorf("the control plane did not settle: %w\n%s", err, log)
	}
	stopPlane()
	return readPrefix(ctx, client, templatePrefix)
}

// settled says whether the last things a fresh control plane makes are there.
func settled(ctx context.Context, work folder, client *clientv3.Client) bool {
	text, err := os.ReadFile(work.file(fileState))
	var now state
	if err != nil || json.Unmarshal(text, &now) != nil || now.Stage != stageControllers {
		return false
	}
	for _, namespace := range systemNamespaces {
		for _, key := range []string{"/configmaps/" + namespace + "/kube-root-ca.crt", "/serviceaccounts/" + namespace + "/default"} {
			answer, err := client.Get(ctx, templatePrefix+key, clientv3.WithCountOnly())
			if err != nil || answer.Count == 0 {
				return false
			}
		}
	}
	return true
}

// startChild starts a program which cannot outlive this one; the returned
// function ends it and waits for its end, and may be called twice.
func startChild(ctx context.Context, directory string, output io.Writer, program string, arguments ...string) (func(), error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Dir, command.Stdout, command.Stderr = directory, output, output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}, nil
}

// writeThrowawayInputs writes an identity for the minute the template takes;
// nothing of it goes into the template.
func writeThrowawayInputs(work folder) error {
	certificate, key, err := selfSigned("template", time.Hour)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		fileServingCertificate: certificate, fileServingKey: key,
		fileAuthority: certificate, fileServiceAccountKey: key,
		fileTokens: []byte(rand.Text() + ",template,template,\"system:masters\"\n"),
	} {
		if err := os.WriteFile(work.file(name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// signalContext ends with the first signal that asks for the end, so that what
// was started and written is removed.
func signalContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
}
