package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// logTestFolder makes the test binary a process with a bounded log.
const logTestFolder = "KUBLER_LOG_TEST_FOLDER"

const logTestBytes = 1 << 17

func TestMain(m *testing.M) {
	if name := os.Getenv(logTestFolder); name != "" {
		talkAndDie(folder(name))
	}
	os.Exit(m.Run())
}

// talkAndDie writes ten times what the log may hold, first in a burst, then
// slowly enough to be kept, and ends in a panic.
func talkAndDie(f folder) {
	if err := boundLog(f, logTestBytes); err != nil {
		os.Exit(3)
	}
	line := strings.Repeat("x", 1023) + "\n"
	for range 10 * logTestBytes / len(line) {
		_, _ = os.Stderr.WriteString(line)
	}
	for { // what a full file drops is said again after it was turned over
		fmt.Println("after the burst")
		text, err := os.ReadFile(f.file(fileLog))
		if err == nil && strings.Contains(string(text), "after the burst") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	panic("the last word")
}

func TestTheLogIsBoundedAndKeepsTheLastWord(t *testing.T) {
	f := folder(t.TempDir())
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), logTestFolder+"="+string(f))
	err := command.Run()
	if code := command.ProcessState.ExitCode(); code != 2 {
		t.Fatalf("the process did not panic: %v", err)
	}
	total := int64(0)
	for _, name := range []string{fileLog, fileLogBefore} {
		info, err := os.Stat(f.file(name))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > logTestBytes {
		t.Errorf("the log holds %d bytes, the bound is %d", total, logTestBytes)
	}
	text, err := os.ReadFile(f.file(fileLog))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"after the burst", "panic: the last word"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in the log", want)
		}
	}
}
