package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// measureSync appends lines to a file and makes each durable by itself: what a
// ledger costs without group commit.
func measureSync(_ context.Context, arguments []string) (any, error) {
	flags := flag.NewFlagSet("fdatasync", flag.ContinueOnError)
	folder := flags.String("folder", "", "folder to write in (required)")
	length := flags.Int("bytes", 1024, "length of one line")
	span := flags.Duration("for", time.Second, "how long")
	if err := required(flags, arguments, "folder"); err != nil {
		return nil, err
	}
	path := filepath.Join(*folder, "lines")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer os.Remove(path)
	defer file.Close()
	line := append(bytes.Repeat([]byte("x"), *length-1), '\n')
	began := time.Now()
	count := 0
	for time.Since(began) < *span {
		if _, err := file.Write(line); err != nil {
			return nil, err
		}
		if err := syscall.Fdatasync(int(file.Fd())); err != nil {
			return nil, err
		}
		count++
	}
	return map[string]float64{"per_second": float64(count) / time.Since(began).Seconds()}, nil
}
