package main

import (
	"testing"
	"time"
)

func TestLongerTimersGoOffTogetherAndNeverEarly(t *testing.T) {
	c := calmClock{phase: 300 * time.Millisecond}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, after := range []time.Duration{0, time.Millisecond, 299 * time.Millisecond, 300 * time.Millisecond, 999 * time.Millisecond} {
		now := start.Add(after)
		for _, wait := range []time.Duration{calmShortest, time.Second, 1250 * time.Millisecond, 15 * time.Second} {
			got := c.until(now, wait)
			if got < wait || got >= wait+time.Second {
				t.Errorf("%v after %v: waits %v", wait, after, got)
			}
			if at := now.Add(got); at.Nanosecond() != int(c.phase) {
				t.Errorf("%v after %v: goes off at %v", wait, after, at)
			}
		}
		if got := c.until(now, 100*time.Millisecond); got != 100*time.Millisecond {
			t.Errorf("a short wait became %v", got)
		}
	}
}
