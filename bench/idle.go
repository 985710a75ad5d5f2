package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/hypervisor/process"
	"go.uber.org/zap"
)

const (
	idleVEs = 1_000
	// clockTicks is the unit of CPU times in /proc: sysconf(_SC_CLK_TCK) is 100 on
	// every architecture that Go runs on.
	clockTicks = 100
	// quiet is how long etcd must have seen no write before the daemon counts as idle.
	quiet = 5 * time.Second
)

// benchIdle watches a real daemon that has nothing to do.
func benchIdle(ctx context.Context, o options) (err error) {
	s, err := newSite(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	bin := filepath.Join(s.dir, "shaman-monitor")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/shaman-ha/shaman/cmd/shaman-monitor")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build shaman-monitor: %w: %s", err, bytes.TrimSpace(out))
	}
	id := cluster.NodeID("0000000000000001")
	conf, err := s.configure(id, "node1")
	if err != nil {
		return err
	}
	if err := shaman(ctx, conf, "join", "-q"); err != nil {
		return err
	}
	if err := settings(ctx, conf, 10*time.Second); err != nil { // the default lease
		return err
	}
	if err := s.idleVEs(ctx, conf, id); err != nil {
		return err
	}
	cmd := exec.Command(bin, "--config", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start shaman-monitor: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it has nothing to lose
		_ = cmd.Wait()         // says that it was killed
	}()
	if err := s.untilQuiet(ctx); err != nil {
		return err
	}
	return s.watchIdle(ctx, cmd.Process.Pid, o.idle)
}

// idleVEs registers stopped VEs with the process driver, and makes their resources.
func (s *site) idleVEs(ctx context.Context, conf string, id cluster.NodeID) error {
	local, _, err := config.LoadLocal(conf, nil)
	if err != nil {
		return err
	}
	for _, d := range []string{local.StateDir, local.RunDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make idle VEs: %w", err)
		}
	}
	d, err := process.New(process.Options{StateDir: local.StateDir, RunDir: local.RunDir, HostMemory: local.NodeMemory, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	for i := range idleVEs {
		dir := filepath.Join(s.mount(), "ves", veName(i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make idle VEs: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ve.conf"), fmt.Appendf(nil, "COMMAND=exec sleep 1000000\nMEMORY=%d\nHA_ENABLE=yes\n", veMemory), 0o644); err != nil {
			return fmt.Errorf("make idle VEs: %w", err)
		}
		if err := d.Register(ctx, dir); err != nil {
			return err
		}
		file := filepath.Join(s.repository(id), "ct-"+veName(i))
		if err := os.WriteFile(file, fmt.Appendf(nil, "%s\nSTATE=stopped\nMEMORY=%d\nLAST_NODE=%s\n", dir, veMemory, id), 0o644); err != nil {
			return fmt.Errorf("make idle VEs: %w", err)
		}
	}
	return flush(s.dir)
}

// untilQuiet waits until the node is admitted and its daemon has stopped to write.
func (s *site) untilQuiet(ctx context.Context) error {
	var last int64
	var since time.Time
	return until(ctx, 2*time.Minute, "the daemon is idle", func() (bool, error) {
		resp, err := s.client.Get(ctx, s.keys.Alive("0000000000000001"))
		if err != nil {
			return false, fmt.Errorf("watch the idle daemon: %w", err)
		}
		if len(resp.Kvs) == 0 || resp.Header.Revision != last {
			last, since = resp.Header.Revision, time.Now()
		}
		return time.Since(since) > quiet, nil
	})
}

func (s *site) watchIdle(ctx context.Context, pid int, long time.Duration) error {
	revision := func() (int64, error) {
		resp, err := s.client.Get(ctx, "/", nil...)
		if err != nil {
			return 0, fmt.Errorf("watch the idle daemon: %w", err)
		}
		return resp.Header.Revision, nil
	}
	rev, err := revision()
	if err != nil {
		return err
	}
	cpu, _, err := usage(pid)
	if err != nil {
		return err
	}
	begin := time.Now()
	var most int64
	for time.Since(begin) < long {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
		_, rss, err := usage(pid)
		if err != nil {
			return err
		}
		most = max(most, rss)
	}
	took := time.Since(begin)
	cpuAfter, rss, err := usage(pid)
	if err != nil {
		return err
	}
	revAfter, err := revision()
	if err != nil {
		return err
	}
	share := (cpuAfter - cpu).Seconds() / took.Seconds() * 100
	mib := func(b int64) string { return fmt.Sprintf("%.1f", float64(b)/(1<<20)) }
	table(fmt.Sprintf("An idle master with %d resources, watched for %s (target: 0.5 %% of a core, 40 MiB, no write)", idleVEs, took.Round(time.Second)), [][]string{
		{"CPU %", "RSS MiB", "most MiB", "etcd writes"},
		{fmt.Sprintf("%.2f", share), mib(rss), mib(most), fmt.Sprint(revAfter - rev)},
	})
	return nil
}

// usage reads what a process has used: CPU time, and resident memory in bytes.
func usage(pid int) (cpu time.Duration, rss int64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("the daemon ended: %w", err)
	}
	// The fields follow the program's name, which is in parentheses; the first of
	// them is the third of the line. Source: proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var n [3]int64
	for i, field := range []int{14 - 3, 15 - 3, 24 - 3} { // utime, stime, rss
		if n[i], err = strconv.ParseInt(fields[field], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("read what the daemon uses: %w", err)
		}
	}
	return time.Duration(n[0]+n[1]) * time.Second / clockTicks, n[2] * int64(os.Getpagesize()), nil
}
