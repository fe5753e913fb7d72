package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// The files of an environment's folder. Whoever starts the process writes the
// inputs before; README.md says who writes and who reads each.
const (
	// Inputs.
	fileServingCertificate = "serving.crt"
	fileServingKey         = "serving.key"
	fileAuthority          = "ca.crt"
	fileClientAuthority    = "client-ca.crt" // optional
	fileTokens             = "tokens.csv"
	fileServiceAccountKey  = "service-account.key"
	fileEtcdAuthority      = "etcd-ca.crt" // these three: all or none
	fileEtcdCertificate    = "etcd-client.crt"
	fileEtcdKey            = "etcd-client.key"
	fileEgressSocket       = "egress.sock" // served by whoever starts the process

	// Outputs.
	fileSocket         = "api.sock"
	fileState          = "state.json"
	fileLog            = "control-plane.log"
	fileLogBefore      = "control-plane.log.1"
	fileEgressSelector = "egress.yaml"
	folderPlugins      = "volume-plugins"
)

// socketPathBytesMax is what the kernel takes as the path of a Unix socket
// (108 bytes with the final zero).
const socketPathBytesMax = 107

// folder is the private folder of one environment, by absolute path.
type folder string

// openFolder checks that nobody else can reach what is inside.
func openFolder(name string) (folder, error) {
	absolute, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(absolute)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("`%s` is not a folder", absolute)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("`%s` is open to others (mode %#o); hint: chmod 0700", absolute, info.Mode().Perm())
	}
	opened := folder(absolute)
	if longest := opened.file(fileEgressSocket); len(longest) > socketPathBytesMax {
		return "", fmt.Errorf("`%s` is %d bytes long, a socket path may have %d; hint: choose a shorter folder",
			longest, len(longest), socketPathBytesMax)
	}
	return opened, nil
}

// file is the path of one of the names above.
func (f folder) file(name string) string {
	return filepath.Join(string(f), name)
}

// has says whether an optional input was given.
func (f folder) has(name string) bool {
	_, err := os.Stat(f.file(name))
	return err == nil
}

// replace writes a file so that a reader sees the old or the new text, never a
// part.
func (f folder) replace(name string, text []byte) error {
	temporary := f.file(name + ".new")
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, f.file(name))
}
