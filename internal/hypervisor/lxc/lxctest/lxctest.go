// Package lxctest makes LXC containers and nodes for tests. A node is a process
// in network, pid and mount namespaces of its own: to LXC it is another machine.
package lxctest

import (
	_ "embed" // for the list of packages
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed packages.txt
var packages string

// Packages are the names of the Debian packages that the tests need.
func Packages() []string { return strings.Fields(packages) }

// Missing says what keeps this machine from running containers; nil = nothing.
func Missing() error {
	var missing []error
	if os.Getuid() != 0 {
		missing = append(missing, errors.New("the tests need root"))
	}
	for _, tool := range []string{"lxc-start", "lxc-stop", "unshare", "ip", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, err)
		}
	}
	return errors.Join(missing...)
}

// Need skips the test, or fails it where CI is set, if this machine cannot run containers.
func Need(t *testing.T) {
	t.Helper()
	err := Missing()
	if err == nil {
		return
	}
	text := fmt.Sprintf("NOT TESTED: containers cannot run here: %v; as root: apt-get install -y --no-install-recommends %s", err, strings.Join(Packages(), " "))
	if os.Getenv("CI") == "true" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// initScript is process 1 of a test's container. It counts its boots on its own
// root, and shuts down at SIGPWR or when somebody makes the file /end; the files
// /reboot and /poweroff have it call reboot(2).
const initScript = `#!/bin/busybox sh
trap '%s' PWR
echo boot >>/boots
while [ ! -e /end ]; do
	for how in reboot poweroff; do
		[ ! -e /$how ] || { /bin/busybox rm -f /$how; /bin/busybox $how -f; }
	done
	/bin/busybox sleep 0.05
done
/bin/busybox rm -f /end
exit 0
`

// Container is one that is to be made.
type Container struct {
	Path     string
	Stubborn bool   // ignores a graceful stop
	Config   string // more lines of its config
	HA       bool
}

// Make makes a container's directory.
func Make(c Container) error {
	root := filepath.Join(c.Path, "rootfs")
	for _, dir := range []string{"bin", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	act := "exit 0"
	if c.Stubborn {
		act = ""
	}
	config := fmt.Sprintf(`# made for a test
lxc.uts.name = guest
lxc.rootfs.path = dir:%s
lxc.init.cmd = /bin/init
lxc.net.0.type = empty
lxc.mount.auto = proc:mixed sys:mixed
lxc.apparmor.profile = unconfined
%s`, root, c.Config)
	errs := []error{
		os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755),
		os.WriteFile(filepath.Join(root, "bin/init"), fmt.Appendf(nil, initScript, act), 0o755),
		os.WriteFile(filepath.Join(c.Path, "config"), []byte(config), 0o640),
	}
	if c.HA {
		errs = append(errs, os.WriteFile(filepath.Join(c.Path, "shaman.conf"), []byte("HA_ENABLE=yes\n"), 0o644))
	}
	return errors.Join(errs...)
}

// RemoveGroups removes the empty control groups that a container of this name left
// when its monitor was killed.
func RemoveGroups(name string) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, kind := range []string{"payload", "monitor"} {
			groups, err := filepath.Glob(filepath.Join(dir, "lxc."+kind+".*"))
			if err != nil {
				return
			}
			for _, g := range groups {
				if rest, ok := strings.CutPrefix(filepath.Base(g), "lxc."+kind+"."+name); ok && strings.Trim(rest, "-0123456789") == "" {
					_ = os.Remove(g) // one that is in use stays
				}
			}
		}
	}
}

// Boots counts how often a container was booted.
func Boots(path string) int {
	data, err := os.ReadFile(filepath.Join(path, "rootfs/boots"))
	if err != nil {
		return 0
	}
	return strings.Count(string(data), "boot\n")
}

// Shutdown has the guest end by itself.
func Shutdown(path string) error {
	return os.WriteFile(filepath.Join(path, "rootfs/end"), nil, 0o644)
}

// Inits are the process ids, on this machine, of the first processes of a
// container on any node.
func Inits(path string) (pids []int) {
	files, err := filepath.Glob("/proc/[0-9]*/root")
	if err != nil {
		return nil
	}
	for _, f := range files {
		// A process that is in the rootfs and is process 1 of its namespace.
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/root", &pid); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.Contains(string(cmdline), "/bin/init") {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		root := strings.NewReplacer(" ", `\040`, `\`, `\134`).Replace(filepath.Join(path, "rootfs"))
		if err != nil || !rootedAt(string(info), root) {
			continue
		}
		pids = append(pids, pid)
	}
	return pids
}

// rootedAt tells whether a mountinfo has a root whose name within its file system
// is the end of path: the file system may be mounted anywhere.
func rootedAt(mountinfo, path string) bool {
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == "/" && f[3] != "/" && strings.HasSuffix(path, f[3]) {
			return true
		}
	}
	return false
}
