package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// A template is what a control plane writes into an empty prefix, without what
// must be an environment's own. File: the magic, then for each key in order
//
//	uvarint length, key relative to the prefix (begins with "/")
//	uvarint length, value as etcd holds it
//	uvarint offset of the object's UID in the value (36 bytes of text)
//	uvarint offset of its creation time: a uvarint of Unix seconds, or RFC 3339
//	        text where the value is JSON
//
// The two offsets let a copy get a UID and an age of its own without decoding.
const templateMagic = "kubler template 1\n"

const (
	uidBytes = 36
	// secondsBytes is the length of any Unix time from 1978 to 2106 as a varint.
	secondsBytes = 5
	timeBytes    = len(time.RFC3339) - len("07:00") // as in 2006-01-02T15:04:05Z
)

var protobufPrefix = []byte("k8s\x00")

// entry is one key of a template.
type entry struct {
	key     string
	value   []byte
	uid     int // offset
	created int // offset
}

// copied are the resources (first parts of keys) a template takes.
var copied = []string{
	"/apiregistration.k8s.io/", "/clusterrolebindings/", "/clusterroles/", "/flowschemas/", "/ipaddresses/",
	"/namespaces/", "/priorityclasses/", "/prioritylevelconfigurations/", "/rolebindings/", "/roles/",
	"/serviceaccounts/", "/servicecidrs/", "/services/specs/",
}

// own are those each environment makes by itself: they hold its CA, hang on an
// etcd lease, or say when it was made.
var own = []string{"/configmaps/", "/events/", "/leases/", "/masterleases/", "/ranges/", "/deviceclasses/", "/csinodes/"}

// choose says whether a template takes a key. An unknown one is an error, so
// that a new Kubernetes version cannot add one unnoticed.
func choose(key string) (bool, error) {
	has := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
	switch {
	case slices.ContainsFunc(copied, has):
		return true, nil
	case slices.ContainsFunc(own, has):
		return false, nil
	}
	return false, fmt.Errorf("unexpected key `%s`: decide in template.go whether a template takes it", key)
}

// newEntry finds what a copy must change in a value.
func newEntry(key string, value []byte) (entry, error) {
	made := entry{key: key, value: value}
	var object metav1.PartialObjectMetadata
	if encoded, ok := bytes.CutPrefix(value, protobufPrefix); ok {
		var unknown runtime.Unknown
		if err := unknown.Unmarshal(encoded); err != nil {
			return entry{}, fmt.Errorf("`%s`: %w", key, err)
		}
		if err := object.Unmarshal(unknown.Raw); err != nil {
			return entry{}, fmt.Errorf("`%s`: %w", key, err)
		}
		seconds := binary.AppendUvarint(nil, uint64(object.CreationTimestamp.Unix()))
		// Field 8 of the metadata, its length, field 1 of the time.
		pattern := append([]byte{8<<3 | 2, byte(len(seconds) + 3), 1 << 3}, seconds...)
		at := bytes.Index(value, pattern)
		if at < 0 || len(seconds) != secondsBytes {
			return entry{}, fmt.Errorf("`%s`: creation time not found", key)
		}
		made.created = at + 3
	} else {
		if err := json.Unmarshal(value, &object); err != nil {
			return entry{}, fmt.Errorf("`%s`: %w", key, err)
		}
		field := []byte(`"creationTimestamp":"`)
		at := bytes.Index(value, field)
		if at < 0 {
			return entry{}, fmt.Errorf("`%s`: creation time not found", key)
		}
		made.created = at + len(field)
	}
	uid := []byte(object.UID)
	if len(uid) != uidBytes || bytes.Count(value, uid) != 1 {
		return entry{}, fmt.Errorf("`%s`: UID `%s` is not there exactly once", key, uid)
	}
	made.uid = bytes.Index(value, uid)
	if !made.sound() {
		return entry{}, fmt.Errorf("`%s`: metadata in an unexpected place", key)
	}
	return made, nil
}

// timeLength is how many bytes of the value hold the creation time.
func (e entry) timeLength() int {
	if bytes.HasPrefix(e.value, protobufPrefix) {
		return secondsBytes
	}
	return timeBytes
}

// sound says whether both offsets lie inside the value.
func (e entry) sound() bool {
	return strings.HasPrefix(e.key, "/") && e.uid > 0 && e.uid <= len(e.value)-uidBytes &&
		e.created > 0 && e.created <= len(e.value)-e.timeLength()
}

// renewed is the value for a new environment.
func (e entry) renewed(uid string, now time.Time) ([]byte, error) {
	created := []byte(now.UTC().Format(time.RFC3339))
	if e.timeLength() == secondsBytes {
		created = binary.AppendUvarint(nil, uint64(now.Unix()))
	}
	if len(uid) != uidBytes || len(created) != e.timeLength() {
		return nil, errors.New("a UID or a time of unexpected length")
	}
	value := bytes.Clone(e.value)
	copy(value[e.uid:], uid)
	copy(value[e.created:], created)
	return value, nil
}

// encodeTemplate writes entries in the order given.
func encodeTemplate(entries []entry) []byte {
	text := []byte(templateMagic)
	for _, e := range entries {
		text = binary.AppendUvarint(text, uint64(len(e.key)))
		text = append(text, e.key...)
		text = binary.AppendUvarint(text, uint64(len(e.value)))
		text = append(text, e.value...)
		text = binary.AppendUvarint(text, uint64(e.uid))
		text = binary.AppendUvarint(text, uint64(e.created))
	}
	return text
}

// decodeTemplate is the inverse; it checks every length and offset.
func decodeTemplate(text []byte) ([]entry, error) {
	rest, ok := bytes.CutPrefix(text, []byte(templateMagic))
	if !ok {
		return nil, errors.New("not a template of this version")
	}
	reader := bytes.NewReader(rest)
	var entries []entry
	for reader.Len() > 0 {
		key, err := readBytes(reader)
		if err != nil {
			return nil, err
		}
		value, err := readBytes(reader)
		if err != nil {
			return nil, err
		}
		uid, err := binary.ReadUvarint(reader)
		if err != nil {
			return nil, err
		}
		created, err := binary.ReadUvarint(reader)
		if err != nil {
			return nil, err
		}
		if uid > uint64(len(value)) || created > uint64(len(value)) {
			return nil, errors.New("damaged template")
		}
		read := entry{key: string(key), value: value, uid: int(uid), created: int(created)}
		if !read.sound() {
			return nil, errors.New("damaged template")
		}
		entries = append(entries, read)
	}
	return entries, nil
}

func readBytes(reader *bytes.Reader) ([]byte, error) {
	length, err := binary.ReadUvarint(reader)
	if err != nil {
		return nil, err
	}
	if length > uint64(reader.Len()) {
		return nil, errors.New("damaged template")
	}
	text := make([]byte, length)
	_, err = io.ReadFull(reader, text)
	return text, err
}
