package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// longestEvent is how long a watcher may wait for an event that was answered.
const longestEvent = 30 * time.Second

// arrival is an event of a watch, and when its last byte was read.
type arrival struct {
	version string
	at      time.Time
	err     error
}

// versioned is the part of an object that tells which event is which.
type versioned struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
}

// watch reads the events of one object.
func (t *target) watch(ctx context.Context) (<-chan arrival, error) {
	one, err := t.asker(ctx)
	if err != nil {
		return nil, err
	}
	one.client.Timeout = 0
	path, name := t.url[:strings.LastIndex(t.url, "/")], t.url[strings.LastIndex(t.url, "/")+1:]
	request := one.request.Clone(ctx)
	if request.URL, err = request.URL.Parse(path + "?watch=1&fieldSelector=metadata.name%3D" + name); err != nil {
		return nil, err
	}
	answer, err := one.client.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("watch: %s", answer.Status)
	}
	arrivals := make(chan arrival, 64)
	go func() {
		defer answer.Body.Close()
		lines := bufio.NewReaderSize(answer.Body, 1<<16)
		for {
			line, err := lines.ReadBytes('\n')
			seen := arrival{at: time.Now(), err: err}
			var event struct {
				Object versioned `json:"object"`
			}
			if err == nil {
				seen.err = json.Unmarshal(line, &event)
			}
			seen.version = event.Object.Metadata.ResourceVersion
			arrivals <- seen
			if seen.err != nil {
				return
			}
		}
	}()
	return arrivals, nil
}

// change patches the object and says its new version.
func (a *asker) change(ctx context.Context, number int) (string, error) {
	body := strings.NewReader(fmt.Sprintf(`{"data":{"number":"%d"}}`, number))
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, a.request.URL.String(), body)
	if err != nil {
		return "", err
	}
	request.Header = a.request.Header.Clone()
	request.Header.Set("Content-Type", "application/merge-patch+json")
	answer, err := a.client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("patch: %s", answer.Status)
	}
	var object versioned
	err = json.Unmarshal(text, &object)
	return object.Metadata.ResourceVersion, err
}

// measureWatch has one object watched in two ways at once, changes it again and again, and says by how many
// milliseconds each event came later on the second way than on the first.
func measureWatch(ctx context.Context, arguments []string) (any, error) {
	var direct, via target
	flags := flag.NewFlagSet("watch", flag.ContinueOnError)
	direct.flags(flags, "")
	via.flags(flags, "via-")
	count := flags.Int("count", 1000, "how many events")
	warmUp := flags.Int("warm-up", 100, "how many events before the first sample")
	if err := required(flags, arguments, "url", "via-url"); err != nil {
		return nil, err
	}
	writer, err := direct.asker(ctx)
	if err != nil {
		return nil, err
	}
	var ways [2]<-chan arrival
	for number, way := range []*target{&direct, &via} {
		if ways[number], err = way.watch(ctx); err != nil {
			return nil, err
		}
	}
	samples := make([]float64, 0, *count)
	for number := range *warmUp + *count {
		version, err := writer.change(ctx, number)
		if err != nil {
			return nil, err
		}
		var came [2]time.Time
		for way := range ways {
			if came[way], err = wait(ctx, ways[way], version); err != nil {
				return nil, err
			}
		}
		if number >= *warmUp {
			samples = append(samples, float64(came[1].Sub(came[0]).Nanoseconds())/1e6)
		}
	}
	return map[string][]float64{"milliseconds": samples}, nil
}

// wait waits for the event of a version; those of earlier ones are of before the watch.
func wait(ctx context.Context, arrivals <-chan arrival, version string) (time.Time, error) {
	late := time.After(longestEvent)
	for {
		select {
		case seen := <-arrivals:
			if seen.err != nil || seen.version == version {
				return seen.at, seen.err
			}
		case <-late:
			return time.Time{}, fmt.Errorf("no event of version %s", version)
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}
