package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hostWait bounds how long a node's host may take to do what it is told: far more
// than it needs, on a machine that is busy with other labs.
const hostWait = time.Minute

func (l *Lab) cutFile(n Node) string  { return filepath.Join(l.nodeDir(n), "cut") }
func (l *Lab) doneFile(n Node) string { return filepath.Join(l.nodeDir(n), "cut.done") }

// Cuts reads how a node's cables are.
func (l *Lab) Cuts(n Node) Cut {
	var c Cut
	if data, err := os.ReadFile(l.cutFile(n)); err == nil {
		_ = json.Unmarshal(data, &c) // written by replaceFile only
	}
	return c
}

// SetCut cuts or mends a node's cables, and returns when it is done. A node
// without power takes it over when it is switched on.
func (l *Lab) SetCut(n Node, c Cut) error {
	if c.Mount != "" && !l.Namespaces {
		return errors.New("cutting a node from the mount needs a mount of its own, and that needs root; run the lab as root")
	}
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the cut: %w", err)
	}
	if err := replaceFile(l.cutFile(n), data); err != nil {
		return err
	}
	pid := l.host(n)
	if pid == 0 || l.Paused(n) {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		return fmt.Errorf("tell %s about its cables: %w", n.Name, err)
	}
	return waitFor("the cables of "+n.Name, hostWait, func() (bool, error) {
		done, err := os.ReadFile(l.doneFile(n))
		return string(done) == string(data) || l.host(n) == 0, err
	})
}

// Host is the process that holds a node's mount and its cables to etcd, in the
// node's own mount namespace. It lives until it is killed.
func (l *Lab) Host(ctx context.Context, n Node) error {
	usr1 := make(chan os.Signal, 16)
	signal.Notify(usr1, syscall.SIGUSR1)
	var mount *gatedFS
	if l.Namespaces {
		backing := filepath.Join(l.nodeDir(n), "backing")
		if err := os.MkdirAll(backing, 0o755); err != nil {
			return fmt.Errorf("prepare the mount of %s: %w", n.Name, err)
		}
		if err := unix.Mount(l.Mount(), backing, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("prepare the mount of %s: %w", n.Name, err)
		}
		names, err := os.OpenFile(l.NamesLog(n), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("prepare the mount of %s: %w", n.Name, err)
		}
		if mount, err = mountGated(backing, l.Mount(), names); err != nil {
			return err
		}
	}
	closeOnExec() // who has the mount's device too keeps it from ending with this process
	guests, err := l.startCage(ctx, n)
	if err != nil {
		return err
	}
	if guests != nil {
		go l.witness(ctx, n, guests)
	}
	cable := newLine()
	for i, port := range n.Cables {
		ln, err := l.listen(ctx, guests, "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("make a cable of %s: %w", n.Name, err)
		}
		go func() { _ = cable.serve(ctx, ln, "127.0.0.1:"+strconv.Itoa(l.Members[i].Client)) }()
	}
	if err := replaceFile(filepath.Join(l.nodeDir(n), commLab+".pid"), []byte(strconv.Itoa(os.Getpid()))); err != nil {
		return err
	}
	for {
		c := l.Cuts(n)
		cable.set(c.Etcd)
		if mount != nil {
			mount.set(c.Mount)
		}
		data, err := os.ReadFile(l.cutFile(n))
		if err == nil {
			err = replaceFile(l.doneFile(n), data)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-usr1:
		}
	}
}

// closeOnExec keeps all open files but the standard ones from children.
func closeOnExec() {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, f := range fds {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// listen makes a listener where the node's daemon will look for it.
func (l *Lab) listen(ctx context.Context, guests *cage, addr string) (ln net.Listener, err error) {
	var lc net.ListenConfig
	if l.Driver != "lxc" {
		return lc.Listen(ctx, "tcp", addr)
	}
	err = inNamespaces(guests.init, []string{"net"}, func() (err error) {
		ln, err = lc.Listen(ctx, "tcp", addr)
		return err
	})
	return ln, err
}

// startHost starts a node's host and waits until its mount and cables are there.
func (l *Lab) startHost(n Node) error {
	for _, f := range []string{commLab + ".pid", "cut.done"} {
		if err := os.Remove(filepath.Join(l.nodeDir(n), f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("switch %s on: %w", n.Name, err)
		}
	}
	cmd := exec.Command(filepath.Join(l.Bin, "shaman-lab"), "host", "--dir", l.Dir, n.Name)
	cmd.Env = l.env(n)
	if l.Namespaces {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	log := filepath.Join(l.nodeDir(n), "host.log")
	if err := launch(cmd, log); err != nil {
		return err
	}
	if err := waitFor("the mount and cables of "+n.Name, hostWait, func() (bool, error) { return l.host(n) != 0, nil }); err != nil {
		return fmt.Errorf("switch %s on: %w; see %s", n.Name, err, log)
	}
	return nil
}

// env is the environment of everything that runs on a node.
func (l *Lab) env(n Node) []string {
	return append(append(os.Environ(), l.Env...), envNode+"="+l.nodeDir(n), envName+"="+n.Name)
}
