// shaman-monitor is the daemon that runs on every node of a cluster.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/shaman-ha/shaman/internal/config"
	shaman "github.com/shaman-ha/shaman/internal/daemon"
	"github.com/shaman-ha/shaman/internal/watchdog"
	"go.uber.org/zap"
)

// exitUsage is the exit code for a configuration that cannot be used.
const exitUsage = 64

func main() { os.Exit(run()) }

func run() int {
	file := flag.String("config", "/etc/shaman/shaman.conf", "this node's configuration `file`")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *version {
		fmt.Println("shaman-monitor", shaman.Version)
		return 0
	}
	local, warnings, err := config.LoadLocal(*file, os.Environ())
	if err != nil {
		fmt.Fprintln(os.Stderr, "shaman-monitor:", err)
		return exitUsage
	}
	log, level := shaman.NewLogger(local, os.Stderr)
	for _, w := range warnings {
		log.Warn(string(w))
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	// SIGPWR is the word of init systems without logind for "this host is going down".
	var down, again atomic.Bool
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR)
	go func() {
		down.Store(<-end == syscall.SIGPWR)
		stop()
	}()
	leaving := func() shaman.Leaving {
		switch {
		case down.Load():
			return shaman.LeaveDown
		case again.Load():
			return shaman.LeaveRestart
		}
		why := shaman.AskSystemd()
		if _, _, err := config.LoadLocal(*file, os.Environ()); err != nil && why == shaman.LeaveRestart {
			// The next daemon would not come up, and the watchdog not wait for it.
			log.Error("the configuration cannot be used: this node is Inactive until it is mended; its VEs run on", zap.Error(err))
			return shaman.LeaveInactive
		}
		return why
	}
	d, err := shaman.New(shaman.Options{
		Local: local, Logger: log, At: failpoint(), Leaving: leaving,
		Reset:  watchdog.Resetter(local.ResetCommand, log),
		Notify: func(state string) { _, _ = daemon.SdNotify(false, state) }, // outside systemd there is nobody to tell
	})
	if err == nil {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		go d.ReloadOn(ctx, hup, *file, level)
		if os.Getenv("NOTIFY_SOCKET") != "" {
			go shaman.WatchShutdown(ctx, d.ShutDown, func() {
				log.Warn("the shutdown of this host was given up; the daemon begins anew, and comes back with the next incarnation")
				again.Store(true)
				stop()
			}, log)
		}
		err = d.Run(ctx)
	}
	if err != nil {
		log.Error("shaman-monitor ends: " + err.Error())
		return 1
	}
	return 0
}
