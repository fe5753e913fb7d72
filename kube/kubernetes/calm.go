package main

import (
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// calmOptions gives every watch cache a clock whose timers go off together.
// Each of some eighty caches looks once a second whether somebody wants a
// bookmark; upstream spreads them, so that an idle process wakes eighty times
// a second, which is half of what it uses.
type calmOptions struct {
	generic.RESTOptionsGetter
	clock calmClock
}

// calm wraps what makes the storage of resources.
func calm(inner generic.RESTOptionsGetter) generic.RESTOptionsGetter {
	// Not all processes of a machine at the same moment.
	return calmOptions{inner, calmClock{phase: rand.N(time.Second)}}
}

// GetRESTOptions leaves events alone, which upstream keeps without a cache.
func (c calmOptions) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := c.RESTOptionsGetter.GetRESTOptions(resource, example)
	if err == nil && resource.Resource != "events" {
		options.Decorator = c.cached
	}
	return options, err
}

// cached is upstream's registry.StorageWithCacher with our clock.
func (c calmOptions) cached(
	config *storagebackend.ConfigForResource,
	prefix string,
	key func(obj runtime.Object) (string, error),
	newOne, newList func() runtime.Object,
	attributes storage.AttrFunc,
	triggers storage.IndexerFuncs,
	indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := generic.NewRawStorage(config, newOne, newList, prefix)
	if err != nil {
		return raw, destroy, err
	}
	made, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage:             raw,
		Versioner:           storage.APIObjectVersioner{},
		GroupResource:       config.GroupResource,
		EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix:      prefix,
		KeyFunc:             key,
		NewFunc:             newOne,
		NewListFunc:         newList,
		GetAttrsFunc:        attributes,
		IndexerFuncs:        triggers,
		Indexers:            indexers,
		Codec:               config.Codec,
		Clock:               c.clock,
	})
	if err != nil {
		return nil, func() {}, err
	}
	delegator := cacher.NewCacheDelegator(made, raw)
	return delegator, sync.OnceFunc(func() {
		delegator.Stop()
		made.Stop()
		destroy()
	}), nil
}

// calmShortest is the shortest wait that is made longer: what is shorter is
// somebody's who waits.
const calmShortest = 500 * time.Millisecond

// calmClock is the real clock, but for longer timers, which go off at the next
// of its seconds.
type calmClock struct {
	clock.RealClock
	phase time.Duration
}

func (c calmClock) NewTimer(wait time.Duration) clock.Timer {
	return calmTimer{c.RealClock.NewTimer(c.until(time.Now(), wait)), c}
}

// until is the wait from now on until the first of its seconds after the wait.
func (c calmClock) until(now time.Time, wait time.Duration) time.Duration {
	if wait < calmShortest {
		return wait
	}
	due := now.Add(wait)
	second := due.Add(-c.phase).Truncate(time.Second).Add(c.phase)
	if second.Before(due) {
		second = second.Add(time.Second)
	}
	return second.Sub(now)
}

type calmTimer struct {
	clock.Timer
	clock calmClock
}

func (t calmTimer) Reset(wait time.Duration) bool {
	return t.Timer.Reset(t.clock.until(time.Now(), wait))
}
