//go:build programs

// Package programs names what is built from this module.
package programs

import _ "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
