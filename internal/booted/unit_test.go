package booted_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/lab"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTheDaemonUnderItsUnit(t *testing.T) {
	// LOCK_TIMEOUT is the default, and so is the distance to WatchdogSec.
	s := newSite(t, "unit")
	for _, c := range []struct {
		name string
		test func(*site)
	}{
		{"it starts", (*site).itStarts},
		{"it is killed", func(s *site) { s.itEndsBadly("KILL", "code=killed, status=9/KILL") }},
		{"it hangs", func(s *site) { s.itEndsBadly("STOP", "Watchdog timeout") }},
		{"systemctl reload", (*site).itIsReloaded},
		{"systemctl restart", (*site).itIsRestarted},
		{"systemctl restart without a bus", (*site).itIsRestartedWithoutABus},
		{"systemctl restart without etcd", (*site).itIsRestartedWithoutEtcd},
		{"an upgrade", (*site).itIsUpgraded},
		{"systemctl stop and start", (*site).itIsStopped},
	} {
		// All with the same VEs: they have to live through all of it.
		t.Run(c.name, func(t *testing.T) {
			in := *s
			in.t = t
			c.test(&in)
		})
		if t.Failed() {
			return // what follows would only repeat it
		}
	}
}

// service is what systemd says of the unit.
type service struct {
	pid, restarts, active, status string
}

func (s *site) service() service {
	s.t.Helper()
	p := map[string]string{}
	for _, line := range strings.Split(s.exec("systemctl", "show", "-p", "MainPID,NRestarts,ActiveState,StatusText", unit), "\n") {
		k, v, _ := strings.Cut(line, "=")
		p[k] = v
	}
	return service{pid: p["MainPID"], restarts: p["NRestarts"], active: p["ActiveState"], status: p["StatusText"]}
}

// get asks a daemon itself; "" = it does not answer, or not with "ok".
func (s *site) get(n cluster.NodeID, path string) string {
	resp, err := http.Get("http://" + s.address(n) + path)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

func (s *site) ready() bool { return s.get(node1, "/readyz") != "" }

// moment is how things were before something happens.
type moment struct {
	revision int64
	service  service
	lives    []lab.Life
	lease    int64
	nonce    string
}

func (s *site) mark() moment {
	s.t.Helper()
	wait(s.t, "the daemon to be ready", s.ready)
	resp, err := s.cl.Get(s.ctx, s.keys.Alive(node1))
	must(s.t, err)
	if len(resp.Kvs) != 1 {
		s.t.Fatal("node1 is not alive")
	}
	var alive cluster.AliveRecord
	must(s.t, json.Unmarshal(resp.Kvs[0].Value, &alive))
	return moment{revision: resp.Header.Revision, service: s.service(), lives: s.lives(), lease: resp.Kvs[0].Lease, nonce: alive.Nonce}
}

// back waits until another daemon than that of the moment is at work.
func (s *site) back(m moment) cluster.AliveRecord {
	s.t.Helper()
	var alive cluster.AliveRecord
	wait(s.t, "another daemon to be at work", func() bool {
		resp, err := s.cl.Get(s.ctx, s.keys.Alive(node1))
		if err != nil || len(resp.Kvs) != 1 {
			return false
		}
		alive = cluster.AliveRecord{}
		return json.Unmarshal(resp.Kvs[0].Value, &alive) == nil && alive.Nonce != m.nonce && s.ready()
	})
	return alive
}

// history is what was written to etcd since then, in order and without gaps.
func (s *site) history(m moment) []*clientv3.Event {
	s.t.Helper()
	const end = "/test/end-of-history"
	_, err := s.cl.Put(s.ctx, end, "")
	must(s.t, err)
	var out []*clientv3.Event
	for resp := range s.cl.Watch(s.ctx, "/", clientv3.WithPrefix(), clientv3.WithRev(m.revision+1)) {
		must(s.t, resp.Err())
		for _, e := range resp.Events {
			if string(e.Kv.Key) == end {
				return out
			}
			out = append(out, e)
		}
	}
	s.t.Fatal("the watch ended")
	return nil
}

// beat waits until the latest life of each VE goes on.
func (s *site) beat() {
	s.t.Helper()
	for _, id := range s.ves.VEs {
		last := func() lab.Life {
			l, err := s.ves.Lives(id)
			must(s.t, err)
			return l[len(l)-1]
		}
		was := last()
		wait(s.t, id+" to beat", func() bool { return last().Last > was.Last })
	}
}

// untouched checks that since then no VE was stopped or started, all of them still
// run, and nobody ever thought that something of this node had to be taken over.
func (s *site) untouched(m moment) {
	s.t.Helper()
	s.beat()
	now := s.lives()
	if len(now) != len(m.lives) {
		s.t.Errorf("VEs were started %d times since", len(now)-len(m.lives))
	}
	for i, was := range m.lives {
		if now[i].PID != was.PID || now[i].Node != was.Node || now[i].Stopped {
			s.t.Errorf("%s was pid %d on %s and is pid %d on %s, stopped: %t", was.VE, was.PID, was.Node, now[i].PID, now[i].Node, now[i].Stopped)
		}
	}
	s.noFailover(m)
	st := s.waitStat("all to be well", func(st stat) bool {
		return st.status(node1) == "Active" && st.status(node2) == "Active" && st.Master != "" && len(st.Resources) == 2
	})
	if st.incarnation(node1) != 1 || st.incarnation(node2) != 1 {
		s.t.Errorf("incarnations %d and %d, want 1 and 1", st.incarnation(node1), st.incarnation(node2))
	}
	for _, r := range st.Resources {
		if r.HostID != string(node1) || r.State != "running" {
			s.t.Errorf("%s is %s on %s", r.ID, r.State, r.HostID)
		}
	}
}

// noFailover checks that since then nobody has opened a failover, or told a node
// to do something.
func (s *site) noFailover(m moment) {
	s.t.Helper()
	for _, e := range s.history(m) {
		if key := string(e.Kv.Key); strings.HasPrefix(key, s.keys.Failovers()) || strings.HasPrefix(key, s.keys.History()) || strings.HasPrefix(key, s.keys.Actions()) {
			s.t.Errorf("%s %s = %s", e.Type, key, e.Kv.Value)
		}
	}
}

// stayed checks that the node was a member all the time, under one lease.
func (s *site) stayed(m moment) {
	s.t.Helper()
	for _, e := range s.history(m) {
		switch string(e.Kv.Key) {
		case s.keys.Alive(node1):
			if e.Type == clientv3.EventTypeDelete || e.Kv.Lease != m.lease {
				s.t.Errorf("%s of the alive key under lease %x, want it kept under %x", e.Type, e.Kv.Lease, m.lease)
			}
		case s.keys.Node(node1):
			var rec cluster.NodeRecord
			must(s.t, json.Unmarshal(e.Kv.Value, &rec))
			if rec.Stopped != cluster.NotStopped {
				s.t.Errorf("the node was said to be %s", rec.Stopped)
			}
		case s.keys.Recovering(node1):
			s.t.Errorf("the node was recovering: %s %s", e.Type, e.Kv.Value)
		}
	}
}

func (s *site) itStarts() {
	m := s.mark()
	if m.service.active != "active" || m.service.restarts != "0" || m.service.status != "Active, incarnation 1" {
		s.t.Errorf("systemd says %+v, want active with the status %q", m.service, "Active, incarnation 1")
	}
	if out := s.exec("systemctl", "status", unit); !strings.Contains(out, `Status: "Active, incarnation 1"`) {
		s.t.Errorf("systemctl status prints\n%s", out)
	}
	s.untouched(m)
	s.stayed(m)
}

// itEndsBadly sends a signal to the daemon, for which systemd starts another one.
func (s *site) itEndsBadly(signal, reason string) {
	m := s.mark()
	begin := time.Now()
	s.exec("systemctl", "kill", "--kill-whom=main", "--signal="+signal, unit)
	s.back(m)
	if took, limit := time.Since(begin), 10*time.Second; took > limit {
		s.t.Errorf("back after %s, want less than SELF_FENCE_TIMEOUT, %s", took, limit)
	} else {
		s.t.Logf("back after %s", took.Round(time.Millisecond))
	}
	now := s.service()
	was, _ := strconv.Atoi(m.service.restarts)
	if now.active != "active" || now.restarts != strconv.Itoa(was+1) || now.pid == m.service.pid {
		s.t.Errorf("systemd says %+v after %+v", now, m.service)
	}
	journal, err := s.box.Journal(s.ctx, unit)
	must(s.t, err)
	if !strings.Contains(journal, reason) {
		s.t.Errorf("the journal does not have %q:\n%s", reason, tail(journal))
	}
	s.untouched(m)
	s.stayed(m)
}

func (s *site) itIsReloaded() {
	m := s.mark()
	count := func(what string) int {
		s.t.Helper()
		journal, err := s.box.Journal(s.ctx, unit)
		must(s.t, err)
		return strings.Count(journal, what)
	}
	const debug, reloaded = `"level":"debug"`, "configuration reloaded"
	if n := count(debug); n != 0 {
		s.t.Fatalf("%d lines of level debug with LOG_LEVEL=2", n)
	}
	s.configure(4)
	s.exec("systemctl", "reload", unit)
	wait(s.t, "the daemon to say that it has reloaded", func() bool { return count(reloaded) == 1 })
	s.shaman("set-config", "WATCHDOG_ACTION=reboot") // of no effect, which is worth a line of level debug
	wait(s.t, "a line of level debug", func() bool { return count(debug) > 0 })
	s.configure(2)
	s.exec("systemctl", "reload", unit)
	wait(s.t, "the daemon to say again that it has reloaded", func() bool { return count(reloaded) == 2 })
	wait(s.t, "the service to be as it was", func() bool { return s.service() == m.service })
	s.untouched(m)
	s.stayed(m)
}

func (s *site) itIsRestarted() {
	m := s.mark()
	s.exec("systemctl", "restart", unit)
	s.back(m)
	if now := s.service(); now.pid == m.service.pid {
		s.t.Errorf("systemd says %+v after %+v", now, m.service)
	}
	s.untouched(m)
	s.stayed(m)
}

func (s *site) itIsRestartedWithoutABus() {
	s.exec("systemctl", "stop", "dbus.socket", "dbus.service")
	s.itIsRestarted()
	s.exec("systemctl", "start", "dbus.socket")
}

func (s *site) itIsRestartedWithoutEtcd() {
	m := s.mark()
	s.etcd.Stop()
	s.exec("systemctl", "restart", unit)
	if now := s.service(); now.active != "active" || now.pid == m.service.pid {
		s.t.Errorf("systemd says %+v after %+v", now, m.service)
	}
	s.etcd.Restart()
	s.back(m)
	s.untouched(m)
	s.stayed(m)
}

func (s *site) itIsUpgraded() {
	m := s.mark()
	must(s.t, s.box.Copy(monitor(upgrade), "/usr/bin/shaman-monitor", 0o755))
	s.exec("systemctl", "restart", unit)
	if alive := s.back(m); alive.Version != upgrade {
		s.t.Errorf("the daemon says that it is version %s, want %s", alive.Version, upgrade)
	}
	s.untouched(m)
	s.stayed(m)
}

func (s *site) itIsStopped() {
	m := s.mark()
	s.exec("systemctl", "stop", unit)
	s.waitStat("node1 to be Inactive, and node2 to be master", func(st stat) bool { return st.status(node1) == "Inactive" && st.Master == string(node2) })
	if now := s.service(); now.active != "inactive" || now.pid != "0" {
		s.t.Errorf("systemd says %+v", now)
	}
	wait(s.t, "node2 to have looked at it as master", func() bool {
		return strings.Contains(s.get(node2, "/metrics"), `shaman_membership_nodes{status="Inactive"} 1`)
	})
	s.exec("systemctl", "start", unit)
	s.back(m)
	s.untouched(m)
}
