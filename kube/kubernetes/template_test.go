package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

const (
	uidBefore = "c303ae90-ea47-4397-afe2-f06983c513b6"
	uidAfter  = "00000000-1111-4222-8333-444444444444"
)

func namespaceValues(t *testing.T) map[string][]byte {
	t.Helper()
	namespace := &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "default", UID: types.UID(uidBefore), CreationTimestamp: metav1.Unix(1_700_000_000, 0),
			Labels: map[string]string{"kept": "yes"},
		},
	}
	raw, err := namespace.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{Kind: "Namespace", APIVersion: "v1"}, Raw: raw}
	wrapped, err := unknown.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(namespace)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"protobuf": append(bytes.Clone(protobufPrefix), wrapped...), "json": text}
}

func TestACopyHasItsOwnUIDAndAge(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for form, value := range namespaceValues(t) {
		made, err := newEntry("/namespaces/default", value)
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		read, err := decodeTemplate(encodeTemplate([]entry{made, made}))
		if err != nil || len(read) != 2 {
			t.Fatalf("%s: %d entries, %v", form, len(read), err)
		}
		copied, err := read[1].renewed(uidAfter, now)
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		var namespace corev1.Namespace
		if encoded, ok := bytes.CutPrefix(copied, protobufPrefix); ok {
			var unknown runtime.Unknown
			if err := unknown.Unmarshal(encoded); err != nil {
				t.Fatalf("%s: %v", form, err)
			}
			err = namespace.Unmarshal(unknown.Raw)
		} else {
			err = json.Unmarshal(copied, &namespace)
		}
		if err != nil || namespace.UID != uidAfter || namespace.CreationTimestamp.Unix() != now.Unix() || namespace.Labels["kept"] != "yes" {
			t.Errorf("%s: got %v, %v", form, namespace.ObjectMeta, err)
		}
		if strings.Contains(string(copied), uidBefore) {
			t.Errorf("%s: the old UID is still there", form)
		}
	}
}

func TestADamagedTemplateIsRefused(t *testing.T) {
	made, err := newEntry("/namespaces/default", namespaceValues(t)["protobuf"])
	if err != nil {
		t.Fatal(err)
	}
	whole := encodeTemplate([]entry{made})
	for cut := range len(whole) {
		if cut == len(templateMagic) {
			continue // a template without entries
		}
		if _, err := decodeTemplate(whole[:cut]); err == nil {
			t.Errorf("accepted after %d of %d bytes", cut, len(whole))
		}
	}
	made.uid = len(made.value) - 1
	if _, err := decodeTemplate(encodeTemplate([]entry{made})); err == nil {
		t.Error("accepted an offset outside the value")
	}
}

func TestATemplateTakesNothingOfAnEnvironmentsOwn(t *testing.T) {
	for key, want := range map[string]bool{
		"/clusterroles/admin": true, "/namespaces/default": true,
		"/configmaps/default/kube-root-ca.crt": false, "/leases/kube-system/x": false, "/events/default/x": false,
	} {
		if taken, err := choose(key); err != nil || taken != want {
			t.Errorf("%s: %v, %v", key, taken, err)
		}
	}
	if _, err := choose("/secrets/default/token"); err == nil {
		t.Error("a secret was not refused")
	}
}
