// Package libvirttest makes nodes with a libvirtd of their own on one machine, and
// guests that prove how often they were started: for tests, and for the lab.
//
// It needs root, the packages of packages.txt without their recommendations, and
// the user that libvirtd looks for at its start:
//
//	groupadd -r libvirt-qemu; useradd -r -g libvirt-qemu -d /nonexistent -s /usr/sbin/nologin libvirt-qemu
package libvirttest

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // the node's script and the guests
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed packages.txt
var packages string

//go:embed node.sh
var nodeScript string

// Missing says what this machine lacks for the nodes of this package; nil if nothing.
func Missing() error {
	var lacks []string
	if os.Geteuid() != 0 {
		lacks = append(lacks, "root")
	}
	for _, p := range []string{"/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64", "/usr/lib/libvirt/libvirt_lxc", "virsh", "unshare", "as", "ld", "busybox"} {
		if _, err := exec.LookPath(p); err != nil {
			lacks = append(lacks, p)
		}
	}
	if _, err := user.Lookup("libvirt-qemu"); err != nil {
		lacks = append(lacks, "the user libvirt-qemu (groupadd -r libvirt-qemu; useradd -r -g libvirt-qemu -d /nonexistent -s /usr/sbin/nologin libvirt-qemu)")
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("nodes with libvirt need %s; install with: apt-get install --no-install-recommends %s", strings.Join(lacks, ", "), strings.TrimSpace(packages))
}

// Node is a node with its own libvirtd, mounts and processes. All file systems
// of the machine are shared with the other nodes, but for libvirt's own places.
type Node struct {
	Name string
	Dir  string // all that the node owns

	wrapper *exec.Cmd
	gone    chan struct{}
	initPID int
}

// patience bounds what a busy machine may take for anything here.
const patience = 60 * time.Second

// Boot starts a node in dir, which is made and may be of a node of the past: its
// definitions are kept then, and its /run is empty, as after a reboot.
func Boot(ctx context.Context, name, dir string) (*Node, error) {
	n := &Node{Name: name, Dir: dir}
	if err := n.prepare(); err != nil {
		return nil, fmt.Errorf("prepare node %s: %w", name, err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts",
		"/bin/sh", "-c", nodeScript, "node-"+name, dir, name)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("boot node %s: %w", name, err)
	}
	n.wrapper, n.gone = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended does not matter, it is killed
		close(n.gone)
	}()
	err = n.await(ctx, "its first process", func() bool {
		kids := children(cmd.Process.Pid)
		if len(kids) > 0 {
			n.initPID = kids[0]
		}
		return len(kids) > 0
	})
	if err == nil {
		err = n.Ready(ctx)
	}
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(dir, "out"))
		n.Kill()
		return nil, fmt.Errorf("boot node %s: %w: %s", name, err, text)
	}
	return n, nil
}

func (n *Node) prepare() error {
	if err := os.RemoveAll(filepath.Join(n.Dir, "run")); err != nil {
		return err
	}
	for _, d := range []string{"etc/qemu", "run", "lib", "log", "cache"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return err
		}
	}
	conf := `unix_sock_dir = "/run/libvirt"
unix_sock_group = "root"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
host_uuid = "` + NewUUID() + `"
`
	// Without cgroups, as two nodes would make the same ones.
	qemu := `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
`
	return errors.Join(os.WriteFile(filepath.Join(n.Dir, "etc/libvirtd.conf"), []byte(conf), 0o644),
		os.WriteFile(filepath.Join(n.Dir, "etc/qemu.conf"), []byte(qemu), 0o644))
}

// Init is the node's first process: with it all of the node ends.
func (n *Node) Init() int { return n.initPID }

// Socket is that of the node's libvirtd, to be used from outside of the node.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "run/libvirt-sock") }

// URI is the node's libvirtd for virsh: of "qemu", "lxc" or "test".
func (n *Node) URI(hypervisor string) string {
	path := map[string]string{"qemu": "/system", "lxc": "/", "test": "/default"}[hypervisor]
	return hypervisor + "+unix://" + path + "?socket=" + n.Socket()
}

// Ready returns when libvirtd answers.
func (n *Node) Ready(ctx context.Context) error {
	return n.await(ctx, "an answer of its libvirtd", func() bool {
		_, err := n.Virsh(ctx, "qemu", "version")
		return err == nil
	})
}

func (n *Node) await(ctx context.Context, what string, cond func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !cond() {
		select {
		case <-n.gone:
			return errors.New("it has ended")
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Virsh runs virsh on the node's libvirtd and returns what it prints.
func (n *Node) Virsh(ctx context.Context, hypervisor string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", n.URI(hypervisor)}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("virsh %s on %s: %w: %s", strings.Join(args, " "), n.Name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Kill is a loss of power: libvirtd and all guests are gone when it returns.
func (n *Node) Kill() {
	if n.initPID != 0 {
		_ = syscall.Kill(n.initPID, syscall.SIGKILL) // it may have ended
	} else {
		_ = n.wrapper.Process.Kill()
	}
	<-n.gone
}

// Daemon is the process id of the node's libvirtd; 0 if there is none at the moment.
func (n *Node) Daemon() int {
	for _, pid := range children(n.initPID) {
		if name, _, _ := stat(pid); name == "libvirtd" {
			return pid
		}
	}
	return 0
}

// Hang stops the node's libvirtd from doing anything until resume is called,
// which may be called more than once.
func (n *Node) Hang() (resume func(), err error) {
	pid := n.Daemon()
	if pid == 0 {
		return nil, fmt.Errorf("node %s has no libvirtd now", n.Name)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }, nil
}

// KillDaemon ends libvirtd the hard way; the node starts another one.
func (n *Node) KillDaemon(ctx context.Context) error {
	pid := n.Daemon()
	if pid == 0 {
		return fmt.Errorf("node %s has no libvirtd now", n.Name)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return n.await(ctx, "another libvirtd", func() bool { p := n.Daemon(); return p != 0 && p != pid })
}

// Guest is the process id of a running guest: QEMU's, or the container's first
// process; 0 if it does not run here.
func (n *Node) Guest(uuid, name string) int {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.initPID))
	if err != nil {
		return 0
	}
	for _, pid := range processes() {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil || ns != own {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		args := strings.Split(string(line), "\x00")
		switch {
		case strings.HasSuffix(args[0], "/qemu-system-x86_64") && bytes.Contains(line, []byte("-uuid\x00"+uuid+"\x00")):
			return pid
		case strings.HasSuffix(args[0], "/libvirt_lxc") && bytes.Contains(line, []byte("--name\x00"+name+"\x00")):
			if kids := children(pid); len(kids) > 0 {
				return kids[0]
			}
		}
	}
	return 0
}

// NewUUID returns a random one.
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func processes() (out []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// stat returns a process's name and its parent.
func stat(pid int) (name string, parent int, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	open, end := strings.IndexByte(string(data), '('), strings.LastIndexByte(string(data), ')')
	if open < 0 || end < open {
		return "", 0, false
	}
	rest := strings.Fields(string(data[end+1:]))
	if len(rest) < 2 || rest[0] == "Z" {
		return "", 0, false
	}
	parent, err = strconv.Atoi(rest[1])
	return string(data[open+1 : end]), parent, err == nil
}

func children(of int) (out []int) {
	for _, pid := range processes() {
		if _, parent, ok := stat(pid); ok && parent == of {
			out = append(out, pid)
		}
	}
	return out
}
