package election_test

import (
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Somebody else revokes a lease or deletes an election key: nobody may lead by
// what was.

func TestACandidateWhoseLeaseWasRevokedNeverLeads(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	c := &chronicle{t: t}
	a := c.run("a", long, s.Endpoint())
	first := c.master()
	b := c.run("b", long, s.Endpoint())
	b.key(t, cl)
	if _, err := cl.Revoke(t.Context(), clientv3.LeaseID(b.lease.ID())); err != nil {
		t.Fatal(err)
	}
	a.stop(errTestOver)
	c.over(first)
	d := c.run("d", long, s.Endpoint())
	if m := c.master(); m.name != "d" {
		t.Errorf("%s leads, whose lease was revoked", m.name)
	}
	if err := within(t, "Run ended", b.result); !errors.Is(err, election.ErrLost) {
		t.Errorf("Run of the revoked candidate returned %v, want ErrLost", err)
	}
	d.stop(errTestOver)
	for _, r := range c.all() {
		if r.name == "b" {
			t.Error("a candidate without a lease became master")
		}
	}
	c.mustNeverOverlap()
}

func TestACandidateWhoseKeyWasDeletedQueuesAnew(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	c := &chronicle{t: t}
	a := c.run("a", long, s.Endpoint())
	first := c.master()
	b := c.run("b", long, s.Endpoint())
	was, err := cl.Get(t.Context(), b.key(t, cl))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Delete(t.Context(), b.key(t, cl)); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, "b is a candidate again", func() bool {
		resp, err := cl.Get(t.Context(), string(was.Kvs[0].Key))
		return err == nil && len(resp.Kvs) == 1 && resp.Kvs[0].CreateRevision > was.Kvs[0].CreateRevision
	})
	if len(c.all()) != 1 {
		t.Error("somebody else leads beside the master")
	}
	a.stop(errTestOver)
	c.over(first)
	if m := c.master(); m.name != "b" || int64(m.term.Epoch) <= was.Kvs[0].CreateRevision {
		t.Errorf("%s leads in epoch %d, want b in a later one than that of its deleted key", m.name, m.term.Epoch)
	}
	c.mustNeverOverlap()
}

func TestAMasterWhoseKeyWasDeletedEnds(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	c := &chronicle{t: t}
	c.run("a", long, s.Endpoint())
	first := c.master()
	if _, err := cl.Delete(t.Context(), first.term.Key); err != nil {
		t.Fatal(err)
	}
	c.over(first)
	if err := write(t, cl, first.term); !errors.Is(err, etcd.ErrDeposed) {
		t.Errorf("the guarded write of its former term: %v, want ErrDeposed", err)
	}
	etcdtest.Eventually(t, "it leads again", func() bool { return len(c.all()) == 2 })
	if again := c.master(); again.term.Epoch <= first.term.Epoch {
		t.Errorf("epoch %d follows epoch %d", again.term.Epoch, first.term.Epoch)
	}
}

func TestAMasterWhoseLeaseWasRevokedEnds(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := &chronicle{t: t}
	a := c.run("a", long, s.Endpoint())
	first := c.master()
	if _, err := s.Client(t).Revoke(t.Context(), clientv3.LeaseID(a.lease.ID())); err != nil {
		t.Fatal(err)
	}
	c.over(first)
	if err := within(t, "Run ended", a.result); !errors.Is(err, election.ErrLost) {
		t.Errorf("Run returned %v, want ErrLost", err)
	}
	if n := len(c.all()); n != 1 {
		t.Errorf("%d reigns under one lease that was revoked, want 1", n)
	}
}

// TestADeletionThatTheWatchMissed: the master is cut off for a moment, within
// which its key is deleted, somebody else is elected, and etcd compacts the
// deletion away. The watch cannot tell any more, and the lease is still valid.
func TestADeletionThatTheWatchMissed(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	cable := s.Cable(t)
	c := &chronicle{t: t}
	a := c.run("a", long, cable.Endpoint())
	first := c.master()
	cable.Cut()
	if _, err := cl.Delete(t.Context(), first.term.Key); err != nil {
		t.Fatal(err)
	}
	resp, err := cl.Put(t.Context(), "something-else", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 100*time.Millisecond)
	cable.Heal()
	c.over(first)
	if !a.lease.Valid() {
		t.Error("the lease is not valid, so something else ended the reign")
	}
}
