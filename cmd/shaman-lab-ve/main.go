// shaman-lab-ve is what a VE of the lab runs: it writes down that it is alive,
// ten times a second, so that the lab can prove that no VE ever ran twice.
//
// SIGTERM is the guest's own shutdown. The log lies outside the shared mount, so
// that it tells the truth while the mount is cut.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const beat = 100 * time.Millisecond

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: shaman-lab-ve LOG-DIRECTORY (started by the lab)")
		return 64
	}
	f, err := os.OpenFile(filepath.Join(os.Args[1], os.Getenv("SHAMAN_VE_ID")+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "shaman-lab-ve:", err)
		return 1
	}
	node, pid := os.Getenv("SHAMAN_LAB_NAME"), os.Getpid()
	write := func(what string) bool {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			return false
		}
		_, err := fmt.Fprintf(f, "%d %d %s %d %s\n", ts.Nano(), time.Now().UnixNano(), node, pid, what)
		return err == nil
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	ok := write("start")
	tick := time.NewTicker(beat)
	for ok {
		select {
		case <-term:
			write("stop")
			return 0
		case <-tick.C:
			ok = write("beat")
		}
	}
	return 1
}
