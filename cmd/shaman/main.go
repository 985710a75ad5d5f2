// shaman is the command with which operators look at and steer a cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/shaman-ha/shaman/internal/cli"
	"github.com/shaman-ha/shaman/internal/daemon"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, daemon.Version)
}
