package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/version"
)

const (
	pollInterval = 10 * time.Millisecond

	// Garbage collection is relaxed while the server is built (see early/),
	// usual while caches fill, as what stays must not be strewn among what goes,
	// and tight once there is nothing left to start.
	collectPercentServe = 100
	collectPercentIdle  = 50
	collectDelay        = time.Second
	collectAgainDelay   = 2 * time.Second
)

// stage is how far a start has come; each includes those before.
type stage string

const (
	stageStarting    stage = "starting"
	stageServing     stage = "serving"     // an admin can create objects
	stageReady       stage = "ready"       // /readyz passes, the default service account exists
	stageControllers stage = "controllers" // the root CA is published: controllers are at work
)

// state is what the state file says.
type state struct {
	Environment string          `json:"environment"`
	Process     int             `json:"process"`
	Kubernetes  string          `json:"kubernetes"`
	Prepared    bool            `json:"prepared"`
	Stage       stage           `json:"stage"`
	Reached     map[stage]int64 `json:"reached_milliseconds"`
}

// progress writes the state file at each stage.
type progress struct {
	folder  folder
	started time.Time
	state   state
}

func newProgress(s settings, started time.Time) *progress {
	return &progress{folder: s.folder, started: started, state: state{
		Environment: s.environment,
		Process:     os.Getpid(),
		Kubernetes:  version.Get().GitVersion,
		Reached:     map[stage]int64{},
	}}
}

func (p *progress) reach(reached stage) error {
	p.state.Stage = reached
	p.state.Reached[reached] = time.Since(p.started).Milliseconds()
	text, err := json.Marshal(p.state)
	if err != nil {
		return err
	}
	return p.folder.replace(fileState, append(text, '\n'))
}

// follow waits for the stages in turn.
func (p *progress) follow(ctx context.Context, client kubernetes.Interface, authority []byte) error {
	steps := []struct {
		reached stage
		passed  func(context.Context, kubernetes.Interface) bool
	}{
		{stageServing, canCreate},
		{stageReady, func(ctx context.Context, c kubernetes.Interface) bool {
			_, err := c.CoreV1().ServiceAccounts(corev1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
			return err == nil && answers(ctx, c, "/readyz")
		}},
		{stageControllers, func(ctx context.Context, c kubernetes.Interface) bool {
			published, err := c.CoreV1().ConfigMaps(corev1.NamespaceDefault).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			return err == nil && published.Data["ca.crt"] == string(authority)
		}},
	}
	for _, step := range steps {
		if err := until(ctx, func() bool { return step.passed(ctx, client) }); err != nil {
			return err
		}
		if err := p.reach(step.reached); err != nil {
			return err
		}
	}
	return nil
}

// canCreate asks for the whole path of a change, without changing anything.
func canCreate(ctx context.Context, client kubernetes.Interface) bool {
	_, err := client.CoreV1().ConfigMaps(corev1.NamespaceDefault).Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "kubler-"}},
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err == nil
}

// answers says whether a health path says yes.
func answers(ctx context.Context, client kubernetes.Interface, path string) bool {
	var status int
	client.Discovery().RESTClient().Get().AbsPath(path).Do(ctx).StatusCode(&status)
	return status == http.StatusOK
}

// until polls; the only error is the context's end.
func until(ctx context.Context, passed func() bool) error {
	for !passed() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
	return nil
}

// tightenMemory gives back what the start needed. The second round returns
// what the first one's concurrent work still held.
func tightenMemory() {
	time.Sleep(collectDelay)
	debug.SetGCPercent(collectPercentIdle)
	debug.FreeOSMemory()
	time.Sleep(collectAgainDelay)
	debug.FreeOSMemory()
}
