// Command baseline is what Kubler's figures are compared with: the same things
// done without Kubler, and a client that is aimed at either side. It shares no
// code with Kubler and uses the standard library only. Every sub-command
// prints one line of JSON.
//
// It must never outlive whoever started it, nor may anything that it starts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// poll is how often a condition is looked at, on both sides of a comparison.
const poll = 5 * time.Millisecond

// command measures one thing; what it returns is printed as JSON.
type command func(context.Context, []string) (any, error)

var commands = map[string]command{
	"start-stock":   startStock,
	"start-variant": startVariant,
	"get":           measureGet,
	"throughput":    measureThroughput,
	"watch":         measureWatch,
	"replay":        measureReplay,
	"forward":       forward,
	"fdatasync":     measureSync,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "baseline:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 || commands[arguments[0]] == nil {
		return fmt.Errorf("usage: baseline start-stock|start-variant|get|throughput|watch|replay|forward|fdatasync [FLAGS]")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	result, err := commands[arguments[0]](ctx, arguments[1:])
	if err != nil || result == nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// required parses flags and insists on a value for each that is named.
func required(flags *flag.FlagSet, arguments []string, names ...string) error {
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	for _, name := range names {
		if flags.Lookup(name).Value.String() == "" {
			return fmt.Errorf("flag --%s is missing", name)
		}
	}
	return nil
}

// until looks every 5 ms until a condition holds.
func until(ctx context.Context, condition func() bool) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

func milliseconds(duration time.Duration) float64 {
	return float64(duration.Microseconds()) / 1000
}
