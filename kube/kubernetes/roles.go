package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	manageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
)

// slowHooks sleep a second before they write what a template already holds.
var slowHooks = []string{"rbac/bootstrap-roles", "scheduling/bootstrap-system-priority-classes"}

// roles holds the options of both roles, parsed and set.
type roles struct {
	server      *apiserveroptions.ServerRunOptions
	controllers *manageroptions.KubeControllerManagerOptions
}

// parseRoles parses both derived command lines. The controller manager's flags
// are built first: building them changes the default of a feature gate, which
// the API server's flags close.
func parseRoles(s settings) (roles, error) {
	controllers, err := manageroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return roles{}, err
	}
	controllerFlags := controllers.Flags(manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases())
	server := apiserveroptions.NewServerRunOptions()
	serverFlags := server.Flags()
	if err := parseFlags(controllerFlags, s.controllerFlags()); err != nil {
		return roles{}, fmt.Errorf("controller manager: %w", err)
	}
	if err := parseFlags(serverFlags, s.apiServerFlags()); err != nil {
		return roles{}, fmt.Errorf("API server: %w", err)
	}
	if err := server.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return roles{}, err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if err := logsapi.ValidateAndApply(server.Logs, utilfeature.DefaultFeatureGate); err != nil {
		return roles{}, err
	}
	return roles{server: server, controllers: controllers}, nil
}

func parseFlags(named cliflag.NamedFlagSets, arguments []string) error {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, set := range named.FlagSets {
		all.AddFlagSet(set)
	}
	return all.Parse(arguments)
}

// configureServer builds the API server's configuration on the socket. The
// configuration it returns dials nothing but the socket and etcd.
func configureServer(ctx context.Context, r roles, s settings) (*apiserver.Config, error) {
	listener, err := listenSocket(s.folder.file(fileSocket))
	if err != nil {
		return nil, err
	}
	r.server.SecureServing.Listener = listener
	completed, err := r.server.Complete(ctx)
	if err != nil {
		return nil, err
	}
	if failures := completed.Validate(); len(failures) > 0 {
		return nil, utilerrors.NewAggregate(failures)
	}
	config, err := composeServer(completed)
	if err != nil {
		return nil, err
	}
	generic := config.KubeAPIs.ControlPlane.Generic
	if err := hookLoopback(generic.LoopbackClientConfig, s.folder.file(fileSocket)); err != nil {
		return nil, err
	}
	// This API dials fixed ports of the host around the egress selector.
	resources, ok := config.KubeAPIs.ControlPlane.APIResourceConfigSource.(*serverstorage.ResourceConfig)
	if !ok {
		return nil, errors.New("cannot switch off component statuses: unknown resource configuration")
	}
	resources.DisableResources(corev1.SchemeGroupVersion.WithResource("componentstatuses"))
	return config, nil
}

// hookLoopback points the API server's clients of itself at the socket: those
// already built share one cached transport, and a dialler in the configuration
// serves webhooks and conversions aimed at `default/kubernetes`.
func hookLoopback(loopback *rest.Config, socket string) error {
	wrapped, err := rest.TransportFor(loopback)
	if err != nil {
		return err
	}
	for {
		if transport, ok := wrapped.(*http.Transport); ok {
			transport.DialContext = dialSocket(socket)
			transport.Proxy = nil
			break
		}
		wrapper, ok := wrapped.(utilnet.RoundTripperWrapper)
		if !ok {
			return fmt.Errorf("loopback transport is hidden in a %T", wrapped)
		}
		wrapped = wrapper.WrappedRoundTripper()
	}
	loopback.Dial = dialSocket(socket)
	return nil
}

// leaveOutSlowHooks is right only for a prefix which was just filled from a
// template.
func leaveOutSlowHooks(config *apiserver.Config) {
	for _, generic := range []*genericapiserver.Config{
		config.KubeAPIs.ControlPlane.Generic,
		&config.ApiExtensions.GenericConfig.Config,
		&config.Aggregator.GenericConfig.Config,
	} {
		generic.DisabledPostStartHooks.Insert(slowHooks...)
	}
}

// runServer serves until the context ends.
func runServer(ctx context.Context, config *apiserver.Config) error {
	completed, err := config.Complete()
	if err != nil {
		return err
	}
	chain, err := apiserver.CreateServerChain(completed)
	if err != nil {
		return err
	}
	prepared, err := chain.PrepareRun()
	if err != nil {
		return err
	}
	debug.SetGCPercent(collectPercentServe)
	return prepared.Run(ctx)
}

// runControllers runs all default controllers through the given client
// configuration until the context ends.
func runControllers(ctx context.Context, r roles, client *rest.Config) error {
	config, err := r.controllers.Config(ctx, manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases())
	if err != nil {
		return err
	}
	rated := rest.CopyConfig(client)
	rated.ContentConfig = config.Kubeconfig.ContentConfig
	rated.QPS, rated.Burst = config.Kubeconfig.QPS, config.Kubeconfig.Burst
	config.Kubeconfig = rated
	config.Client, err = kubernetes.NewForConfig(rest.AddUserAgent(rated, manageroptions.KubeControllerManagerUserAgent))
	if err != nil {
		return err
	}
	return manager.Run(ctx, config.Complete())
}

// sharedClient is a copy of the loopback configuration which uses its cached
// transport: a dialler of its own would give every client a connection.
func sharedClient(loopback *rest.Config) *rest.Config {
	shared := rest.CopyConfig(loopback)
	shared.Dial = nil
	return shared
}
