// Command requestinfo says what upstream's API server reads in a request: one request a line on standard input
// (`GET /api/v1/pods?watch=1`), one JSON object a line on standard output.
//
// Kubler reads requests by itself, to decide and to record; a test compares the two readings. It stands two folders
// deep so that kube/build does not count it among the sources of kubler-control-plane.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

type answer struct {
	Error         string `json:"error,omitempty"`
	IsResource    bool   `json:"is_resource"`
	Path          string `json:"path"`
	Verb          string `json:"verb"`
	Group         string `json:"group"`
	Version       string `json:"version"`
	Resource      string `json:"resource"`
	Subresource   string `json:"subresource"`
	Namespace     string `json:"namespace"`
	Name          string `json:"name"`
	FieldSelector string `json:"field_selector"`
	LabelSelector string `json:"label_selector"`
	// Whether a list with these parameters is refused, because they cannot be read.
	Undecodable bool `json:"undecodable"`
}

func main() {
	// As the API server does for its own groups: k8s.io/apiserver/pkg/server.NewRequestInfoResolver.
	factory := &request.RequestInfoFactory{
		APIPrefixes:          sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api"),
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		if err := out.Encode(read(factory, lines.Text())); err != nil {
			fail(err)
		}
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
}

// read takes the request as Go's server takes it from a connection.
func read(factory *request.RequestInfoFactory, line string) answer {
	text := line + " HTTP/1.1\r\nHost: kubernetes\r\n\r\n"
	got, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return answer{Error: err.Error()}
	}
	info, err := factory.NewRequestInfo(got)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{
		IsResource: info.IsResourceRequest, Path: info.Path, Verb: info.Verb,
		Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource, Subresource: info.Subresource,
		Namespace: info.Namespace, Name: info.Name,
		FieldSelector: info.FieldSelector, LabelSelector: info.LabelSelector,
		Undecodable: undecodable(got),
	}
}

func undecodable(got *http.Request) bool {
	var options internalversion.ListOptions
	return scheme.ParameterCodec.DecodeParameters(got.URL.Query(), metav1.SchemeGroupVersion, &options) != nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}
