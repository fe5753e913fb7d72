package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// advertised is what the socket claims to be: upstream's options insist on a
// TCP address.
var advertised = &net.TCPAddr{IP: net.ParseIP(advertisedAddress), Port: advertisedPort}

// socketListener accepts connections of this user (and root) only.
type socketListener struct{ *net.UnixListener }

// listenSocket binds the API server's socket, mode 0600.
func listenSocket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return socketListener{listener}, nil
}

func (socketListener) Addr() net.Addr { return advertised }

func (l socketListener) Accept() (net.Conn, error) {
	for {
		connection, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(connection); err != nil {
			fmt.Fprintln(os.Stderr, "connection refused:", err)
			_ = connection.Close()
			continue
		}
		return socketConnection{connection}, nil
	}
}

// checkPeer refuses other users: the second wall behind the folder's mode.
func checkPeer(connection *net.UnixConn) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(descriptor uintptr) {
		peer, failed = unix.GetsockoptUcred(int(descriptor), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Getuid() {
		return fmt.Errorf("peer is user %d", peer.Uid)
	}
	return nil
}

type socketConnection struct{ *net.UnixConn }

func (socketConnection) LocalAddr() net.Addr  { return advertised }
func (socketConnection) RemoteAddr() net.Addr { return advertised }

// dialSocket reaches the socket whatever address is asked for.
func dialSocket(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", path)
	}
}
