package lab

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

func (l *Lab) memberDir(m Member) string {
	return filepath.Join(l.Dir, "etcd"+strconv.Itoa(m.Number))
}

// Member finds an etcd member by its number.
func (l *Lab) Member(number int) (Member, error) {
	for _, m := range l.Members {
		if m.Number == number {
			return m, nil
		}
	}
	return Member{}, fmt.Errorf("no etcd member %d in this lab; there are %d", number, len(l.Members))
}

// MemberPID is the pid of an etcd member; 0 = it does not run.
func (l *Lab) MemberPID(m Member) int {
	ps, err := find(envMember, l.memberDir(m))
	if err != nil || len(ps) == 0 {
		return 0
	}
	return ps[0].pid
}

// ServeEtcd is one etcd member, until the context ends. It does not flush to
// disk: the lab is over when the machine is, and a slow disk must not look like
// a slow cluster.
func (l *Lab) ServeEtcd(ctx context.Context, m Member) error {
	name := func(n int) string { return "etcd" + strconv.Itoa(n) }
	peer := func(m Member) url.URL { return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", m.Peer)} }
	client, err := url.Parse(m.Endpoint())
	if err != nil {
		return fmt.Errorf("etcd member %d: %w", m.Number, err)
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = name(m.Number), filepath.Join(l.memberDir(m), "data")
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer(m)}, []url.URL{peer(m)}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	var peers []string
	for _, o := range l.Members {
		u := peer(o)
		peers = append(peers, name(o.Number)+"="+u.String())
	}
	cfg.InitialCluster = strings.Join(peers, ",")
	cfg.InitialClusterToken = l.ClusterName
	cfg.UnsafeNoFsync = true
	cfg.LogLevel, cfg.LogOutputs = "warn", []string{"stderr"}
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "periodic", "1h"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("etcd member %d: %w", m.Number, err)
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("etcd member %d: %w", m.Number, err)
	}
}

// StartEtcd starts a member, unless it runs.
func (l *Lab) StartEtcd(m Member) error {
	if l.MemberPID(m) != 0 {
		return nil
	}
	if err := os.MkdirAll(l.memberDir(m), 0o755); err != nil {
		return fmt.Errorf("start etcd member %d: %w", m.Number, err)
	}
	cmd := exec.Command(filepath.Join(l.Bin, "shaman-lab"), "etcd-member", "--dir", l.Dir, strconv.Itoa(m.Number))
	cmd.Env = append(os.Environ(), envMember+"="+l.memberDir(m))
	return launch(cmd, filepath.Join(l.memberDir(m), "log"))
}

// StopEtcd ends a member.
func (l *Lab) StopEtcd(m Member) error {
	if pid := l.MemberPID(m); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop etcd member %d: %w", m.Number, err)
		}
		if waitFor("its end", 3*time.Second, func() (bool, error) { return l.MemberPID(m) == 0, nil }) == nil {
			return nil
		}
	}
	return killAll(envMember, l.memberDir(m))
}

// PauseEtcd stops a member as a machine that stalls does: it neither answers nor
// closes its connections. ResumeEtcd lets it go on.
func (l *Lab) PauseEtcd(m Member) error { return l.signalEtcd(m, syscall.SIGSTOP) }

// ResumeEtcd lets a member go on that was paused.
func (l *Lab) ResumeEtcd(m Member) error { return l.signalEtcd(m, syscall.SIGCONT) }

func (l *Lab) signalEtcd(m Member, sig syscall.Signal) error {
	pid := l.MemberPID(m)
	if pid == 0 {
		return fmt.Errorf("etcd member %d does not run", m.Number)
	}
	return syscall.Kill(pid, sig)
}

// AwaitEtcd waits until etcd answers.
func (l *Lab) AwaitEtcd(ctx context.Context) error {
	cl, err := l.Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	return waitFor("etcd", 60*time.Second, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := cl.Get(ctx, "ready")
		return err == nil, err
	})
}

// Client connects to the members directly, past the nodes' cables.
func (l *Lab) Client() (*clientv3.Client, error) {
	var eps []string
	for _, m := range l.Members {
		eps = append(eps, m.Endpoint())
	}
	return etcd.Dial(etcd.Options{Endpoints: eps, Logger: zap.NewNop()})
}
