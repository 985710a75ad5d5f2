//go:build failpoint

package main

import (
	"os"
	"strconv"
	"syscall"
)

// failpoint kills this process, as a crash of the daemon would, when it reaches
// the step whose label stands in the file that SHAMAN_FAILPOINT names. The file
// is renamed to "<file>.<pid>" first, so exactly one process of the cluster dies.
func failpoint() func(string) {
	file := os.Getenv("SHAMAN_FAILPOINT")
	if file == "" {
		return nil
	}
	return func(at string) {
		if label, err := os.ReadFile(file); err != nil || string(label) != at {
			return
		}
		if err := os.Rename(file, file+"."+strconv.Itoa(os.Getpid())); err != nil {
			return
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal lands
	}
}
