// shaman-lab runs a whole cluster on one machine, to see and to test failovers.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/shaman-ha/shaman/internal/lab"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return lab.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}
