package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"net"
	"os"
)

// forward carries bytes from a TCP port to a Unix socket, for clients that
// cannot dial one, such as kubectl. It says its address and stays until
// standard input ends.
func forward(ctx context.Context, arguments []string) (any, error) {
	flags := flag.NewFlagSet("forward", flag.ContinueOnError)
	socket := flags.String("socket", "", "Unix socket to carry to (required)")
	if err := required(flags, arguments, "socket"); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"address": listener.Addr().String()}); err != nil {
		return nil, err
	}
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("unix", *socket)
			if err != nil {
				from.Close()
				continue
			}
			go carry(from, to)
			go carry(to, from)
		}
	}()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return nil, nil
}

func carry(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	from.Close()
	to.Close()
}
