// Package prltest imitates Virtuozzo's prlctl for tests: a tool (cmd/prlctl) and
// the dispatcher that it talks to. What it does is what the facts in facts.go say.
//
// A server is a directory with the tool, the dispatcher's socket and what the
// dispatcher knows; servers that share a mount see the same VEs. A guest is a file
// in the server's directory: it outlives tool and dispatcher. Its definition, its
// owner's mark and the count of its starts lie in the VE's directory on the mount.
package prltest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest/wire"
)

// Build builds the tool into dir and returns its path.
func Build(dir string) (string, error) {
	tool := filepath.Join(dir, "prlctl")
	cmd := exec.Command("go", "build", "-o", tool, "github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest/cmd/prlctl")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the stand-in for prlctl: %w: %s", err, out)
	}
	return tool, nil
}

// Conf is the definition of a VE, in its directory.
type Conf struct {
	UUID      string
	Name      string
	Type      string // VM or CT
	Owner     string // UUID of the server that it is registered on: ServerUuid, .owner
	HA        string // yes or no
	Prio      uint64
	Autostart string // on, off or auto
	Memory    int    // MB
	CPUs      int
	Disk      string // of hdd0; "" = in its directory
	Stubborn  bool   // the guest ignores a shutdown
	Suspended bool   // its memory image lies with it
	Starts    int
}

// Server is one host.
type Server struct {
	Dir  string // of the tool
	UUID string

	mu     sync.Mutex
	cond   *sync.Cond
	ves    map[string]string // registered: home by UUID; kept in a file
	states map[string]string // by UUID, of what is between two states or odd; gone with the dispatcher
	run    int               // of the dispatcher: its jobs end with it
	ln     net.Listener
	conns  map[net.Conn]bool
	hung   bool
	faults map[string]wire.Answer // by verb
	noise  string                 // printed before a list
	raw    *wire.Answer           // answers every list
	late   time.Duration          // until a verb is begun
	delay  time.Duration          // that a start takes
	calls  []wire.Request
	wg     sync.WaitGroup
}

// NewServer starts a dispatcher. It is stopped, and all its guests ended, with the test.
func NewServer(t testing.TB, tool string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "prl") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(tool, filepath.Join(dir, "prlctl")); err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: dir, UUID: "server-" + filepath.Base(dir), conns: map[net.Conn]bool{}, faults: map[string]wire.Answer{}}
	s.cond = sync.NewCond(&s.mu)
	s.boot(t)
	t.Cleanup(func() {
		s.down()
		s.wg.Wait()
		os.RemoveAll(dir)
	})
	return s
}

// Program is the path of the tool.
func (s *Server) Program() string { return filepath.Join(s.Dir, "prlctl") }

// boot starts the dispatcher: it knows what is on disk, and drops what another
// server has registered meanwhile.
func (s *Server) boot(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ves, s.states, s.hung = map[string]string{}, map[string]string{}, false
	if data, err := os.ReadFile(filepath.Join(s.Dir, "registered")); err == nil {
		if err := json.Unmarshal(data, &s.ves); err != nil {
			t.Fatal(err)
		}
	}
	for id, home := range maps.Clone(s.ves) {
		if c, err := ReadConf(home); err == nil && c.Owner != s.UUID {
			delete(s.ves, id)
		}
	}
	s.save()
	ln, err := net.Listen("unix", filepath.Join(s.Dir, wire.Socket))
	if err != nil {
		t.Fatal(err)
	}
	s.ln = ln
	s.wg.Add(1)
	go s.accept(ln, s.run)
}

func (s *Server) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run++
	s.ln.Close()
	for c := range s.conns {
		c.Close()
	}
	s.cond.Broadcast()
}

// Kill ends the dispatcher the hard way, with all that it was doing, and starts it anew.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	s.down()
	s.wg.Wait()
	s.boot(t)
}

// Down ends the dispatcher until Up.
func (s *Server) Down() { s.down(); s.wg.Wait() }

// Up starts the dispatcher after Down.
func (s *Server) Up(t testing.TB) { t.Helper(); s.boot(t) }

// Hang lets the dispatcher take requests and begin none, until resume.
func (s *Server) Hang() (resume func()) {
	s.set(func() { s.hung = true })
	return func() { s.set(func() { s.hung = false }) }
}

func (s *Server) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.cond.Broadcast()
}

// Fail lets a verb end with an answer, with nothing done; code 0 takes that back.
func (s *Server) Fail(verb string, code int, text string) {
	s.set(func() {
		delete(s.faults, verb)
		if code != 0 {
			s.faults[verb] = wire.Answer{Code: code, Stderr: deprecated + text + "\n"}
		}
	})
}

// Noise is printed before each list.
func (s *Server) Noise(text string) { s.set(func() { s.noise = text }) }

// Raw answers every list; nil takes that back.
func (s *Server) Raw(a *wire.Answer) { s.set(func() { s.raw = a }) }

// Slow says how long the dispatcher takes to begin a verb, and to start a guest.
func (s *Server) Slow(begin, start time.Duration) {
	s.set(func() { s.late, s.delay = begin, start })
}

// Put puts a registered VE into a state, as prlctl names it; "" takes that back.
func (s *Server) Put(home, status string) {
	s.set(func() {
		for id, h := range s.ves {
			if h == home {
				s.states[id] = status
			}
		}
	})
}

// End ends a guest from inside.
func (s *Server) End(home string) error {
	c, err := ReadConf(home)
	if err != nil {
		return err
	}
	s.set(func() { err = os.Remove(s.guest(c.UUID)) })
	return err
}

// Calls are the requests that came in so far.
func (s *Server) Calls() []wire.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *Server) guest(id string) string { return filepath.Join(s.Dir, "guest-"+id) }

func (s *Server) runs(id string) bool {
	_, err := os.Stat(s.guest(id))
	return err == nil
}

// save is called with mu held.
func (s *Server) save() {
	data, err := json.Marshal(s.ves)
	if err == nil {
		err = writeFile(filepath.Join(s.Dir, "registered"), data)
	}
	if err != nil {
		panic(err) // of the stand-in, in a test
	}
}

func writeFile(file string, data []byte) error {
	if err := os.WriteFile(file+".tmp", data, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// accept takes requests one by one: a verb is begun before the next request is
// looked at, and goes on in the background.
func (s *Server) accept(ln net.Listener, run int) {
	defer s.wg.Done()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[conn] = true
		for s.hung && s.run == run {
			s.cond.Wait()
		}
		s.mu.Unlock()
		var q wire.Request
		if err := json.NewDecoder(conn).Decode(&q); err != nil {
			s.drop(conn)
			continue
		}
		finish := s.begin(q, run)
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer s.drop(conn)
			if a, ok := finish(); ok {
				_ = json.NewEncoder(conn).Encode(a) // the tool may be gone; the work is done all the same
			}
		}()
	}
}

func (s *Server) drop(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	conn.Close()
}

// ConfFile is the file that holds a VE's definition.
func ConfFile(home string) string {
	for _, name := range []string{"ve.conf", "config.pvs"} {
		if file := filepath.Join(home, name); exists(file) {
			return file
		}
	}
	return ""
}

func exists(file string) bool { _, err := os.Stat(file); return err == nil }

// ReadConf reads a VE's definition.
func ReadConf(home string) (c Conf, err error) {
	file := ConfFile(home)
	if file == "" {
		return c, errors.New("no configuration file in " + home)
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	return c, err
}

// Write writes a VE's definition, and makes its directory.
func (c Conf) Write(home string) error {
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	name := "config.pvs"
	if c.Type == "CT" {
		name = "ve.conf"
	}
	return writeFile(filepath.Join(home, name), data)
}

// States are the words that prlctl has for a VE's state.
var States = []string{
	"stopped", "starting", "restoring", "running", "paused", "resetting", "pausing", "suspending", "stopping", "compacting",
	"suspended", "snapshoting", "continuing", "migrating", "del_snapshot", "resuming", "syncing", "invalid", "reconnecting", "mounted",
}
