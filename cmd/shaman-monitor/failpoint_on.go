//go:build failpoint

package main

import (
	"os"
	"syscall"
)

// failpoint kills this process, as a power cut of the daemon would, when the
// step that SHAMAN_FAILPOINT names is reached for the first time in the cluster:
// the file SHAMAN_FAILPOINT_ONCE, made exclusively, sees to that.
func failpoint() func(string) {
	label, once := os.Getenv("SHAMAN_FAILPOINT"), os.Getenv("SHAMAN_FAILPOINT_ONCE")
	if label == "" {
		return nil
	}
	return func(at string) {
		if at != label {
			return
		}
		f, err := os.OpenFile(once, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		_ = f.Close()
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal lands
	}
}
