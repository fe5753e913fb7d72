package main

import (
	"time"

	"github.com/google/uuid"
	noop "go.opentelemetry.io/otel/trace/noop"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericfeatures "k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/kubeapiserver"
)

// informerResync is upstream's.
const informerResync = 10 * time.Minute

// schemes are those of the three servers in the chain.
var schemes = []*runtime.Scheme{legacyscheme.Scheme, apiextensions.Scheme, aggregatorscheme.Scheme}

// composeServer is upstream's app.NewConfig, step by step the same but for
// the loopback certificate: upstream makes two RSA keys for it, which takes a
// sixth of the whole start. Compare with upstream for each new version.
func composeServer(o options.CompletedOptions) (*apiserver.Config, error) {
	generic, shared, storage, err := composeGeneric(o)
	if err != nil {
		return nil, err
	}
	kube, resolver, initializers, err := apiserver.CreateKubeAPIServerConfig(o, generic, shared, storage)
	if err != nil {
		return nil, err
	}
	plane := &kube.ControlPlane
	webhooks := webhook.NewDefaultAuthenticationInfoResolverWrapper(
		plane.ProxyTransport, plane.Generic.EgressSelector, plane.Generic.LoopbackClientConfig, plane.Generic.TracerProvider)
	extensions, err := controlplaneapiserver.CreateAPIExtensionsConfig(
		*plane.Generic, plane.VersionedInformers, initializers, o.CompletedOptions, o.MasterCount, resolver, webhooks)
	if err != nil {
		return nil, err
	}
	aggregator, err := controlplaneapiserver.CreateAggregatorConfig(
		*plane.Generic, o.CompletedOptions, plane.VersionedInformers, resolver, plane.ProxyTransport, plane.Extra.PeerProxy, initializers)
	if err != nil {
		return nil, err
	}
	return &apiserver.Config{Options: o, KubeAPIs: kube, ApiExtensions: extensions, Aggregator: aggregator}, nil
}

// composeGeneric is upstream's controlplane BuildGenericConfig.
func composeGeneric(o options.CompletedOptions) (
	*genericapiserver.Config, informers.SharedInformerFactory, *serverstorage.DefaultStorageFactory, error,
) {
	generic := genericapiserver.NewConfig(legacyscheme.Codecs)
	generic.Flagz = o.Flagz
	resources := controlplane.DefaultAPIResourceConfigSource()
	generic.MergedResourceConfig = resources
	if err := o.GenericServerRunOptions.ApplyTo(generic); err != nil {
		return nil, nil, nil, err
	}
	if err := serveWithLoopback(o, generic); err != nil {
		return nil, nil, nil, err
	}
	client, err := kubernetes.NewForConfig(generic.LoopbackClientConfig)
	if err != nil {
		return nil, nil, nil, err
	}
	shared := informers.NewSharedInformerFactoryWithOptions(client, informerResync, informers.WithTransform(trimManagedFields))
	if err := applyOptions(o, generic, resources, client, shared); err != nil {
		return nil, nil, nil, err
	}
	definitions := openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
	generic.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, openapinamer.NewDefinitionNamer(schemes...))
	generic.OpenAPIConfig.Info.Title = "Kubernetes"
	generic.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, openapinamer.NewDefinitionNamer(schemes...))
	generic.OpenAPIV3Config.Info.Title = "Kubernetes"
	generic.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	storage, err := composeStorage(o, generic)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx := wait.ContextForChannel(generic.DrainedNotify())
	if err := o.Authentication.ApplyTo(ctx, &generic.Authentication, generic.SecureServing, generic.EgressSelector,
		generic.OpenAPIConfig, generic.OpenAPIV3Config, client, shared, generic.APIServerID); err != nil {
		return nil, nil, nil, err
	}
	// RBAC is always on here, so its hook is never left out on that account.
	generic.Authorization.Authorizer, generic.RuleResolver, _, err = controlplaneapiserver.BuildAuthorizer(
		ctx, o.CompletedOptions, generic.EgressSelector, generic.APIServerID, shared)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := o.Audit.ApplyTo(generic); err != nil {
		return nil, nil, nil, err
	}
	generic.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	return generic, shared, storage, nil
}

// serveWithLoopback is upstream's SecureServingOptionsWithLoopback.ApplyTo with
// a P-256 certificate.
func serveWithLoopback(o options.CompletedOptions, generic *genericapiserver.Config) error {
	if err := o.SecureServing.SecureServingOptions.ApplyTo(&generic.SecureServing); err != nil {
		return err
	}
	name := genericapiserver.LoopbackClientServerNameOverride
	certificate, key, err := selfSigned(name, loopbackLife)
	if err != nil {
		return err
	}
	provider, err := dynamiccertificates.NewStaticSNICertKeyContent("self-signed loopback", certificate, key, name)
	if err != nil {
		return err
	}
	generic.SecureServing.SNICerts = append([]dynamiccertificates.SNICertKeyContentProvider{provider}, generic.SecureServing.SNICerts...)
	loopback, err := generic.SecureServing.NewLoopbackClientConfig(uuid.NewString(), certificate)
	if err != nil {
		return err
	}
	loopback.ContentConfig.ContentType = runtime.ContentTypeProtobuf
	loopback.DisableCompression = true
	generic.LoopbackClientConfig = loopback
	return nil
}

// applyOptions applies the options between the clients and OpenAPI.
func applyOptions(
	o options.CompletedOptions, generic *genericapiserver.Config, resources *serverstorage.ResourceConfig,
	client kubernetes.Interface, shared informers.SharedInformerFactory,
) error {
	if err := o.Features.ApplyTo(generic, client, shared); err != nil {
		return err
	}
	if err := o.APIEnablement.ApplyTo(generic, resources, legacyscheme.Scheme); err != nil {
		return err
	}
	if err := o.EgressSelector.ApplyTo(generic); err != nil {
		return err
	}
	if utilfeature.DefaultFeatureGate.Enabled(genericfeatures.APIServerTracing) {
		return o.Traces.ApplyTo(generic.EgressSelector, generic)
	}
	return nil
}

// composeStorage prepares the storage of all resources.
func composeStorage(o options.CompletedOptions, generic *genericapiserver.Config) (*serverstorage.DefaultStorageFactory, error) {
	transport := &o.Etcd.StorageConfig.Transport
	if generic.EgressSelector != nil {
		transport.EgressLookup = generic.EgressSelector.Lookup
	}
	transport.TracerProvider = noop.NewTracerProvider()
	if utilfeature.DefaultFeatureGate.Enabled(genericfeatures.APIServerTracing) {
		transport.TracerProvider = generic.TracerProvider
	}
	config := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(generic.EffectiveVersion)
	config.APIResourceConfig = generic.MergedResourceConfig
	config.DefaultResourceEncoding.SetEffectiveVersion(generic.EffectiveVersion)
	storage, err := config.Complete(o.Etcd).New()
	if err != nil {
		return nil, err
	}
	storage.StorageConfig.StorageObjectCountTracker = generic.StorageObjectCountTracker
	if err := o.Etcd.ApplyWithStorageFactoryTo(storage, generic); err != nil {
		return nil, err
	}
	generic.RESTOptionsGetter = calm(generic.RESTOptionsGetter)
	return storage, nil
}

// trimManagedFields keeps the API server's own caches small.
func trimManagedFields(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}
