package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// target is where requests go; the same for every side of a comparison.
type target struct {
	url        string
	socket     string
	authority  string
	serverName string
	tokenFile  string
	pair       string
	http2      bool
}

// flags declares what says where; a second target of one command has a prefix.
func (t *target) flags(flags *flag.FlagSet, prefix string) {
	flags.StringVar(&t.url, prefix+"url", "", "what to get (required)")
	flags.StringVar(&t.socket, prefix+"socket", "", "dial this Unix socket instead of the URL's host")
	flags.StringVar(&t.authority, prefix+"ca", "", "PEM file of the CA to trust")
	flags.StringVar(&t.serverName, prefix+"server-name", "", "name in the server's certificate, if not the URL's host")
	flags.StringVar(&t.tokenFile, prefix+"token-file", "", "file with a bearer token")
	flags.StringVar(&t.pair, prefix+"pair", "", "PEM file with a client certificate and its key")
	flags.BoolVar(&t.http2, prefix+"http2", false, "offer HTTP/2")
}

// asker is one client with one kept-alive connection.
type asker struct {
	client  *http.Client
	request *http.Request
}

func (t *target) asker(ctx context.Context) (*asker, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, nil)
	if err != nil {
		return nil, err
	}
	if t.tokenFile != "" {
		token, err := os.ReadFile(t.tokenFile)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	// What any Go client sends when it does not want compression it must undo.
	request.Header.Set("Accept", "application/json")
	transport := &http.Transport{
		MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1, DisableCompression: true, ForceAttemptHTTP2: t.http2,
		TLSClientConfig: &tls.Config{ServerName: t.serverName},
	}
	if !t.http2 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	if t.pair != "" {
		pair, err := tls.LoadX509KeyPair(t.pair, t.pair)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	if t.socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", t.socket)
		}
	}
	if t.authority != "" {
		text, err := os.ReadFile(t.authority)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("no certificate in `%s`", t.authority)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &asker{client: &http.Client{Transport: transport, Timeout: 10 * time.Second}, request: request}, nil
}

// ask sends the request once and reads all of the answer.
func (a *asker) ask() error {
	answer, err := a.client.Do(a.request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	length, err := io.Copy(io.Discard, answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || length == 0 {
		return fmt.Errorf("status %d with %d bytes", answer.StatusCode, length)
	}
	return nil
}

// measureGet asks one after the other on one connection.
func measureGet(ctx context.Context, arguments []string) (any, error) {
	var aimed target
	flags := flag.NewFlagSet("get", flag.ContinueOnError)
	aimed.flags(flags, "")
	count := flags.Int("count", 1000, "how many samples")
	warmUp := flags.Int("warm-up", 100, "how many requests before the first sample")
	if err := required(flags, arguments, "url"); err != nil {
		return nil, err
	}
	one, err := aimed.asker(ctx)
	if err != nil {
		return nil, err
	}
	samples := make([]float64, 0, *count)
	for number := range *warmUp + *count {
		began := time.Now()
		if err := one.ask(); err != nil {
			return nil, err
		}
		if took := time.Since(began); number >= *warmUp {
			samples = append(samples, float64(took.Nanoseconds())/1e6)
		}
	}
	return map[string][]float64{"milliseconds": samples}, nil
}

// measureThroughput asks on many connections at once, each one after the other.
func measureThroughput(ctx context.Context, arguments []string) (any, error) {
	var aimed target
	flags := flag.NewFlagSet("throughput", flag.ContinueOnError)
	aimed.flags(flags, "")
	connections := flags.Int("connections", 32, "how many connections")
	span := flags.Duration("for", 5*time.Second, "how long")
	warmUp := flags.Duration("warm-up", time.Second, "how long before counting begins")
	if err := required(flags, arguments, "url"); err != nil {
		return nil, err
	}
	var counting, over atomic.Bool
	var answered atomic.Int64
	var working sync.WaitGroup
	failures := make([]error, *connections)
	for number := range *connections {
		one, err := aimed.asker(ctx)
		if err != nil {
			return nil, err
		}
		working.Go(func() {
			for !over.Load() && failures[number] == nil {
				failures[number] = one.ask()
				if counting.Load() && !over.Load() {
					answered.Add(1)
				}
			}
		})
	}
	time.Sleep(*warmUp)
	counting.Store(true)
	began := time.Now()
	time.Sleep(*span)
	over.Store(true)
	took := time.Since(began)
	working.Wait()
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	return map[string]float64{"requests_per_second": float64(answered.Load()) / took.Seconds()}, nil
}
