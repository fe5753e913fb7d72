package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestTheSocketIsPrivateAndLooksLikeAnAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second time over a leftover
		listener, err := listenSocket(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, %v", info.Mode(), err)
		}
		client, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		accepted, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		for _, address := range []net.Addr{listener.Addr(), accepted.RemoteAddr()} {
			if _, ok := address.(*net.TCPAddr); !ok || address.String() != "192.0.2.1:6443" {
				t.Errorf("address %v", address)
			}
		}
		listener.(socketListener).SetUnlinkOnClose(false)
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnOpenFolderIsRefused(t *testing.T) {
	name := t.TempDir()
	if err := os.Chmod(name, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := openFolder(name); err == nil {
		t.Error("a folder open to the group was accepted")
	}
}
