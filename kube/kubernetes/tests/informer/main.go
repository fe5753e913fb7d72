// Command informer is a program as people write them with client-go: it keeps the config maps of one namespace in
// memory with a shared informer. It prints a line for each event (`added NAME`, `updated NAME`, `deleted NAME`) and for
// each watch that broke (`broke REASON`), and ends when its standard input does.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

var printing sync.Mutex

func say(format string, arguments ...any) {
	printing.Lock()
	defer printing.Unlock()
	fmt.Println(strings.ReplaceAll(fmt.Sprintf(format, arguments...), "\n", " "))
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(namespace string) error {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	if err := informer.SetWatchErrorHandler(func(_ *cache.Reflector, err error) { say("broke %v", err) }); err != nil {
		return err
	}
	name := func(object any) string {
		if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
			return last.Key
		}
		return object.(metav1.Object).GetName()
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { say("added %s", name(object)) },
		UpdateFunc: func(before, after any) {
			if before.(*corev1.ConfigMap).ResourceVersion != after.(*corev1.ConfigMap).ResourceVersion {
				say("updated %s", name(after))
			}
		},
		DeleteFunc: func(object any) { say("deleted %s", name(object)) },
	}); err != nil {
		return err
	}
	stop := make(chan struct{})
	factory.Start(stop)
	if !cache.WaitForCacheSync(stop, informer.HasSynced) {
		return fmt.Errorf("the informer did not synchronise")
	}
	say("synchronised")
	_, err = io.Copy(io.Discard, os.Stdin)
	close(stop)
	return err
}
