// Package etcdtest runs a real etcd inside a test, and the cables to it that a
// test can cut. It is imported by tests only.
package etcdtest

import (
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Patience bounds every wait of a test for something that has to happen: far
// more than it takes, since the machine may be busy with other things.
const Patience = 20 * time.Second

// Server is one etcd member. Its endpoint stays the same over a restart.
type Server struct {
	t      testing.TB
	config *embed.Config
	front  *Cable

	mu   sync.Mutex
	etcd *embed.Etcd
}

// Start runs a member until the test ends. Leases of one second and more can be
// granted. change may adapt the configuration before the first start.
func Start(t testing.TB, change ...func(*embed.Config)) *Server {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4     // The least: the race detector makes a password of the default cost take seconds.
	cfg.LogLevel = "fatal" // Close logs errors that are none.
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = anyPort, anyPort
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = anyPort, anyPort
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	for _, f := range change {
		f(cfg)
	}
	s := &Server{t: t, config: cfg}
	s.front = newCable(t, s.address)
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

// address is where the member listens now, "" while it is stopped.
func (s *Server) address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.etcd == nil {
		return ""
	}
	return s.etcd.Clients[0].Addr().String()
}

// Endpoint is what a client connects to.
func (s *Server) Endpoint() string { return s.front.Endpoint() }

// Stop ends the member, as a crash would for its clients; what it stored stays.
func (s *Server) Stop() {
	s.mu.Lock()
	e := s.etcd
	s.etcd = nil
	s.mu.Unlock()
	s.front.Cut() // else Close waits for clients that have streams open
	if e != nil {
		e.Close()
	}
}

// Restart runs the stopped member on, with what it had stored, and returns when it serves.
func (s *Server) Restart() {
	s.t.Helper()
	e, err := embed.StartEtcd(s.config)
	if err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(Patience):
		e.Close()
		s.t.Fatal("etcd did not become ready")
	}
	s.mu.Lock()
	s.etcd = e
	s.mu.Unlock()
	s.front.Heal()
}

// Cable returns a new cable to the member.
func (s *Server) Cable(t testing.TB) *Cable {
	t.Helper()
	return NewCable(t, s.Endpoint())
}

// Client returns a client of the member, made as the daemon makes its own.
func (s *Server) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	return Dial(t, s.Endpoint())
}

// Dial returns a client of these endpoints, made as the daemon makes its own.
func Dial(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	cl, err := etcd.Dial(etcd.Options{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cl.Close() // it returns the end of its own context
	})
	return cl
}

// Eventually waits until a condition holds, and ends the test if it never does.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
