// Command kubler-control-plane runs one environment's kube-apiserver and
// kube-controller-manager in one process, on a Unix socket and without any
// port. README.md in the folder above describes its flags and files.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	_ "control-plane/early" // see there why it must sort first

	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

func main() {
	started := time.Now()
	closeDoors()
	var err error
	if len(os.Args) > 1 && os.Args[1] == "template" {
		err = makeTemplate(os.Args[2:])
	} else {
		err = run(os.Args[1:], started)
	}
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubler-control-plane:", err)
		os.Exit(1)
	}
}

// run is the main command: it returns only with an error.
func run(arguments []string, started time.Time) error {
	chosen, err := parseSettings(arguments)
	if err != nil {
		return err
	}
	if err := boundLog(chosen.folder, chosen.logBytes); err != nil {
		return err
	}
	syscall.Umask(0o077)
	exitOnSignal()
	if err := chosen.folder.replace(fileEgressSelector, chosen.egressSelector()); err != nil {
		return err
	}
	progress := newProgress(chosen, started)
	if err := progress.reach(stageStarting); err != nil {
		return err
	}
	return serve(context.Background(), chosen, progress)
}

// serve starts both roles and stays.
func serve(ctx context.Context, chosen settings, progress *progress) error {
	authority, err := os.ReadFile(chosen.folder.file(fileAuthority))
	if err != nil {
		return err
	}
	parsed, err := parseRoles(chosen)
	if err != nil {
		return err
	}
	filled := make(chan fillResult, 1)
	go func() { filled <- fillPrefix(ctx, chosen) }()
	config, err := configureServer(ctx, parsed, chosen)
	if err != nil {
		return err
	}
	result := <-filled
	if result.err != nil {
		return fmt.Errorf("filling the prefix: %w", result.err)
	}
	if result.prepared {
		leaveOutSlowHooks(config)
	}
	progress.state.Prepared = result.prepared
	shared := sharedClient(config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig)
	client, err := kubernetes.NewForConfig(shared)
	if err != nil {
		return err
	}
	ended := make(chan error, 3)
	go func() { ended <- fmt.Errorf("API server ended: %w", runServer(ctx, config)) }()
	go func() {
		if err := until(ctx, func() bool { return answers(ctx, client, "/healthz") }); err != nil {
			ended <- err
			return
		}
		ended <- fmt.Errorf("controller manager ended: %w", runControllers(ctx, parsed, shared))
	}()
	go func() {
		if err := progress.follow(ctx, client, authority); err != nil {
			ended <- err
			return
		}
		tightenMemory()
	}()
	return <-ended
}

// exitOnSignal ends the process at once: the controllers' own watches would
// hold a graceful stop until its deadline, and nothing here is worth keeping
// that is not in etcd already.
func exitOnSignal() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		received := <-signals
		klog.InfoS("ending", "signal", received)
		os.Exit(0)
	}()
}
