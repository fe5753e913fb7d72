package main

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// logCheckInterval is how often the size of the log is looked at.
const logCheckInterval = 250 * time.Millisecond

// boundLog sends standard output and error, and so also what the Go runtime
// says when it dies, to the log of the folder, in two files which together
// never exceed bytesMax. They are turned over when the first reaches half of
// its share; the kernel drops what a burst writes past the whole of it.
func boundLog(f folder, bytesMax int64) error {
	share := bytesMax / 2
	// Past the limit a write fails; the signal that comes with it is not for us.
	signal.Ignore(unix.SIGXFSZ)
	limit := unix.Rlimit{Cur: uint64(share), Max: uint64(share)}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	current, err := openLog(f)
	if err != nil {
		return err
	}
	go func() {
		for range time.Tick(logCheckInterval) {
			info, err := current.Stat()
			if err != nil || info.Size() < share/2 {
				continue
			}
			if err := os.Rename(f.file(fileLog), f.file(fileLogBefore)); err != nil {
				continue
			}
			if next, err := openLog(f); err == nil {
				_ = current.Close()
				current = next
			}
		}
	}()
	return nil
}

// openLog opens the log for appending and puts it in the place of standard
// output and error.
func openLog(f folder) (*os.File, error) {
	file, err := os.OpenFile(f.file(fileLog), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	for _, descriptor := range []int{1, 2} {
		if err := unix.Dup3(int(file.Fd()), descriptor, 0); err != nil {
			_ = file.Close()
			return nil, err
		}
	}
	return file, nil
}
