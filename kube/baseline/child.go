package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// child is a program that runs for this one and ends with it.
type child struct {
	command *exec.Cmd
	ended   chan struct{}
	log     string
}

// start runs a program in a folder; its output goes to NAME.log there.
func start(ctx context.Context, folder, program string, arguments ...string) (*child, error) {
	log := filepath.Join(folder, filepath.Base(program)+".log")
	output, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	command := exec.CommandContext(ctx, program, arguments...)
	command.Dir, command.Stdout, command.Stderr = folder, output, output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	started := &child{command: command, ended: make(chan struct{}), log: log}
	go func() {
		_ = command.Wait()
		close(started.ended)
	}()
	return started, nil
}

// end kills it and waits for its end. May be called twice.
func (c *child) end() {
	_ = c.command.Process.Kill()
	<-c.ended
}

// failed says why it ended by itself, or why what it should do did not happen.
func (c *child) failed(err error) error {
	text, _ := os.ReadFile(c.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	return fmt.Errorf("%s: %w\n%s", filepath.Base(c.command.Path), err, strings.Join(lines, "\n"))
}

// privateMebibytes is RssAnon + RssShmem of processes, in MiB.
func privateMebibytes(children ...*child) (float64, error) {
	var kibibytes int64
	for _, one := range children {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", one.command.Process.Pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) > 1 && (fields[0] == "RssAnon:" || fields[0] == "RssShmem:") {
				value, err := strconv.ParseInt(fields[1], 10, 64)
				if err != nil {
					return 0, err
				}
				kibibytes += value
			}
		}
	}
	return float64(kibibytes) / 1024, nil
}

// freePort is one that the kernel would give out now.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
