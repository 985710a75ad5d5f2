package watchdog

import (
	"context"
	"os"
	"os/exec"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// resetCommandTime bounds RESET_COMMAND.
const resetCommandTime = 5 * time.Second

// Resetter returns what resets the machine: command, run by a shell, if there is
// one, else the kernel. A command that fails is told, and the watchdog has to do it.
func Resetter(command string, log *zap.Logger) func(why string) {
	return func(why string) {
		log.Error("resetting this machine", zap.String("reason", why))
		_ = log.Sync() // stderr cannot always be synced
		if command == "" {
			kernelReset(log)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), resetCommandTime)
		defer cancel()
		out, err := exec.CommandContext(ctx, "/bin/sh", "-c", command).CombinedOutput()
		log.Error("RESET_COMMAND has ended, and this machine still runs", zap.Error(err), zap.ByteString("output", out))
	}
}

// kernelReset does not sync: what is not on the disks by now may hang on a mount.
func kernelReset(log *zap.Logger) {
	if f, err := os.OpenFile("/proc/sysrq-trigger", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString("b") // returns only if it does not work
		_ = f.Close()
	}
	log.Error("this machine could not be reset; the watchdog has to", zap.Error(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)))
}
