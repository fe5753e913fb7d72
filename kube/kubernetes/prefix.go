package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcdTimeout bounds the one transaction, the dial included.
const etcdTimeout = 10 * time.Second

// fillResult says whether the prefix was empty and now holds the template.
type fillResult struct {
	prepared bool
	err      error
}

// fillPrefix writes the template into the prefix in one transaction, if there
// is a template and not a single key. A prefix that holds anything is left
// alone: its control plane starts with all hooks and repairs what is missing.
func fillPrefix(ctx context.Context, s settings) fillResult {
	if s.template == "" {
		return fillResult{}
	}
	text, err := os.ReadFile(s.template)
	if err != nil {
		return fillResult{err: err}
	}
	entries, err := decodeTemplate(text)
	if err != nil {
		return fillResult{err: fmt.Errorf("`%s`: %w", s.template, err)}
	}
	now := time.Now()
	writes := make([]clientv3.Op, 0, len(entries))
	for _, e := range entries {
		value, err := e.renewed(uuid.NewString(), now)
		if err != nil {
			return fillResult{err: err}
		}
		writes = append(writes, clientv3.OpPut(s.prefix+e.key, string(value)))
	}
	client, err := dialEtcd(s)
	if err != nil {
		return fillResult{err: err}
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	empty := clientv3.Compare(clientv3.CreateRevision(s.prefix+"/").WithPrefix(), "=", 0)
	answer, err := client.Txn(ctx).If(empty).Then(writes...).Commit()
	if err != nil {
		return fillResult{err: err}
	}
	return fillResult{prepared: answer.Succeeded}
}

// dialEtcd uses the environment's own certificate, if it has one.
func dialEtcd(s settings) (*clientv3.Client, error) {
	config := clientv3.Config{Endpoints: []string{s.etcd}, DialTimeout: etcdTimeout, Logger: zap.NewNop()}
	if s.folder.has(fileEtcdCertificate) {
		pair, err := tls.LoadX509KeyPair(s.folder.file(fileEtcdCertificate), s.folder.file(fileEtcdKey))
		if err != nil {
			return nil, err
		}
		authority, err := os.ReadFile(s.folder.file(fileEtcdAuthority))
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(authority) {
			return nil, errors.New("no certificate in " + fileEtcdAuthority)
		}
		config.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: pool}
	}
	return clientv3.New(config)
}

// readPrefix lists what a template takes of a prefix.
func readPrefix(ctx context.Context, client *clientv3.Client, prefix string) ([]entry, error) {
	answer, err := client.Get(ctx, prefix+"/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, pair := range answer.Kvs {
		key := strings.TrimPrefix(string(pair.Key), prefix)
		taken, err := choose(key)
		if err != nil {
			return nil, err
		}
		if !taken {
			continue
		}
		made, err := newEntry(key, pair.Value)
		if err != nil {
			return nil, err
		}
		entries = append(entries, made)
	}
	return entries, nil
}
