package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// longestReplay is how long one sequence may take.
const longestReplay = time.Minute

// call is one recorded request. DIGITS in its path and body stands for what is another one in each sequence.
type call struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Type   string `json:"type"`
	Body   string `json:"body"`
	// Until is a text that the answer has to have; before it has, the request is sent again.
	Until string `json:"until"`
}

// measureReplay sends the same sequence of requests again and again, each time about other objects, one after the other
// on one connection for each worker: what the platform itself takes for them.
func measureReplay(ctx context.Context, arguments []string) (any, error) {
	var aimed target
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	aimed.flags(flags, "")
	recorded := flags.String("calls", "", "file with a call as JSON on each line (required)")
	count := flags.Int("count", 200, "how many sequences")
	workers := flags.Int("workers", 1, "how many at once")
	if err := required(flags, arguments, "url", "calls"); err != nil {
		return nil, err
	}
	calls, err := readCalls(*recorded)
	if err != nil {
		return nil, err
	}
	var next atomic.Int64
	var working sync.WaitGroup
	samples, failures := make([]float64, *count), make([]error, *workers)
	began := time.Now()
	for worker := range *workers {
		one, err := aimed.asker(ctx)
		if err != nil {
			return nil, err
		}
		working.Go(func() {
			for failures[worker] == nil {
				number := int(next.Add(1)) - 1
				if number >= *count {
					return
				}
				started := time.Now()
				failures[worker] = one.replay(ctx, aimed.url, calls)
				samples[number] = float64(time.Since(started).Nanoseconds()) / 1e6
			}
		})
	}
	working.Wait()
	took := time.Since(began)
	for _, err := range failures {
		if err != nil {
			return nil, err
		}
	}
	return map[string]any{"milliseconds": samples, "per_second": float64(*count) / took.Seconds()}, nil
}

func readCalls(file string) ([]call, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var calls []call
	for decoder := json.NewDecoder(bytes.NewReader(text)); ; {
		var one call
		if err := decoder.Decode(&one); err == io.EOF {
			return calls, nil
		} else if err != nil {
			return nil, err
		}
		calls = append(calls, one)
	}
}

// replay sends every call once, or until its answer is as it should be.
func (a *asker) replay(ctx context.Context, url string, calls []call) error {
	ctx, cancel := context.WithTimeout(ctx, longestReplay)
	defer cancel()
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	fresh := strings.NewReplacer("DIGITS", hex.EncodeToString(random[:]))
	for _, one := range calls {
		for {
			answer, err := a.send(ctx, url+fresh.Replace(one.Path), one, fresh.Replace(one.Body))
			if err != nil {
				return err
			}
			if strings.Contains(answer, one.Until) {
				break
			}
		}
	}
	return nil
}

func (a *asker) send(ctx context.Context, url string, one call, body string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, one.Method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header = a.request.Header.Clone()
	if one.Type != "" {
		request.Header.Set("Content-Type", one.Type)
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode >= 300 {
		return "", fmt.Errorf("%s %s: %s: %.300s", one.Method, one.Path, answer.Status, text)
	}
	return string(text), nil
}
