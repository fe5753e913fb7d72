// Package early relaxes garbage collection before Kubernetes' own packages
// initialise: they allocate enough to collect several times before main.
//
// Packages initialise in the order of their import paths, as far as imports
// allow. This is why the module's name sorts before github.com and k8s.io.
package early

import "runtime/debug"

// CollectPercent is the relaxed setting.
const CollectPercent = 400

func init() {
	debug.SetGCPercent(CollectPercent)
}
