package election_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// long is a lease that outlasts every wait of a test: what happens within a
// test's patience did not wait for the end of the lease.
const long = etcdtest.Patience + 5*time.Second

func TestACleanStopHandsMastershipOn(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := &chronicle{t: t}
	running := map[string]*candidate{}
	for i := range 4 {
		name := fmt.Sprintf("node%d", i)
		running[name] = c.run(name, long, s.Endpoint())
	}
	cl := s.Client(t)
	var former []string
	for range 4 {
		m := c.master(former...)
		if err := write(t, cl, m.term); err != nil {
			t.Errorf("the guarded write of a master: %v", err)
		}
		running[m.name].stop(errTestOver)
		if err := within(t, "Run ended", running[m.name].result); !errors.Is(err, errTestOver) {
			t.Errorf("Run returned %v, want the cause of its context", err)
		}
		if err := write(t, cl, m.term); !errors.Is(err, etcd.ErrDeposed) {
			t.Errorf("the guarded write of a master that resigned: %v, want ErrDeposed", err)
		}
		former = append(former, m.name)
	}
	if n := len(c.all()); n != 4 {
		t.Errorf("%d reigns of 4 candidates", n)
	}
	c.mustNeverOverlap()
}

func TestALeadThatReturnsCampaignsAgain(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := &chronicle{t: t}
	only := c.run("only", long, s.Endpoint())
	for i := range 3 {
		etcdtest.Eventually(t, "it leads again", func() bool { return len(c.all()) == i+1 })
		only.leave <- struct{}{}
	}
	etcdtest.Eventually(t, "it leads again", func() bool { return len(c.all()) == 4 })
	c.mustNeverOverlap()
}

func TestOnlyTheEligibleLead(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := &chronicle{t: t}
	why := errors.New("the mount is out of contact")
	a := c.run("a", long, s.Endpoint())
	c.master()
	b := c.run("b", long, s.Endpoint())
	b.key(t, s.Client(t))

	a.setUnfit(why)
	first := c.master("a")
	for _, r := range c.all() {
		if r.name == "a" && !errors.Is(r.cause, why) {
			t.Errorf("a's lead ended by %v, want the reason why it is unfit", r.cause)
		}
	}
	// One that lost its fitness while it queued does not lead either.
	a.setUnfit(nil)
	a.key(t, s.Client(t))
	a.setUnfit(why)
	b.stop(errTestOver)
	c.over(first)
	d := c.run("d", long, s.Endpoint())
	d.key(t, s.Client(t))
	c.master("a", "b")
	for _, r := range c.all() {
		if r.name == "a" && r.begin > first.begin {
			t.Error("an unfit candidate became master")
		}
	}
	c.mustNeverOverlap()
}

// TestACutMasterEndsBeforeTheNextBegins is the promise itself, on one clock.
func TestACutMasterEndsBeforeTheNextBegins(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	c := &chronicle{t: t}
	cables := map[string]*etcdtest.Cable{}
	candidates := map[string]*candidate{}
	for _, name := range []string{"a", "b", "c"} {
		cables[name] = s.Cable(t)
		candidates[name] = c.run(name, 2*time.Second, cables[name].Endpoint())
	}
	var former []string
	for i := range 2 {
		m := c.master(former...)
		if i == 0 {
			cables[m.name].Cut()
		} else {
			cables[m.name].Hang()
		}
		former = append(former, m.name)
		if was := c.over(m); !errors.Is(was.cause, election.ErrInvalid) {
			t.Errorf("a cut master ended by %v, want ErrInvalid", was.cause)
		}
		c.master(former...)
		if err := write(t, s.Client(t), m.term); !errors.Is(err, etcd.ErrDeposed) {
			t.Errorf("the guarded write of a replaced master: %v, want ErrDeposed", err)
		}
		cables[m.name].Heal()
		if err := within(t, "Run ended", candidates[m.name].result); !errors.Is(err, election.ErrLost) {
			t.Errorf("Run of a replaced master returned %v, want ErrLost", err)
		}
	}
	c.mustNeverOverlap()
}

// TestAHungMemberDeposesNobody: the master's renewals go another way, and a
// candidate with the same hung member among its own gets in too.
func TestAHungMemberDeposesNobody(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	hung, whole := s.Cable(t), s.Cable(t)
	c := &chronicle{t: t}
	a := c.run("a", 2*time.Second, hung.Endpoint(), whole.Endpoint())
	first := c.master()
	etcdtest.Eventually(t, "both ways are in use", func() bool { return hung.Connections() > 0 && whole.Connections() > 0 })
	hung.Hang()
	waitFor(t, 2500*time.Millisecond)
	if is := c.all(); len(is) != 1 || is[0].end != 0 {
		t.Fatalf("with one hung member of two the reigns are %+v, want the first one alone", is)
	}
	b := c.run("b", long, s.Endpoint())
	b.key(t, s.Client(t))
	a.stop(errTestOver)
	c.over(first)
	c.master("a")
	c.mustNeverOverlap()
}

// TestAStopOutOfReachOfEtcdEnds: resigning is a courtesy that must not hold up
// a daemon that stops.
func TestAStopOutOfReachOfEtcdEnds(t *testing.T) {
	t.Parallel()
	cable := etcdtest.Start(t).Cable(t)
	c := &chronicle{t: t}
	a := c.run("a", long, cable.Endpoint())
	first := c.master()
	cable.Hang()
	a.stop(errTestOver)
	if err := within(t, "Run ended", a.result); !errors.Is(err, errTestOver) {
		t.Errorf("Run returned %v, want the cause of its context", err)
	}
	c.over(first)
}

// TestNobodyLeadsUnderALeaseThatCannotBeProvenValid: etcd still has the lease
// and the key, and only the holder's own clock says that it must not act.
func TestNobodyLeadsUnderALeaseThatCannotBeProvenValid(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	l := grant(t, cl, 2*time.Second)
	etcdtest.Eventually(t, "validity has ended", func() bool {
		_, err := cl.KeepAliveOnce(t.Context(), clientv3.LeaseID(l.ID()))
		return err == nil && !l.Valid()
	})
	e := &election.Elector{
		Client: cl, Prefix: prefix, Lease: l, Eligible: func() error { return nil },
		Log: zap.NewNop(), Metrics: election.NewMetrics(prometheus.NewRegistry()),
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	led := make(chan bool, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- e.Run(ctx, func(ctx context.Context, _ cluster.Term) error {
			led <- l.Valid()
			<-ctx.Done()
			return nil
		})
	}()
	entered := time.Now()
	etcdtest.Eventually(t, "it had time to lead", func() bool {
		_, err := cl.KeepAliveOnce(t.Context(), clientv3.LeaseID(l.ID()))
		return err == nil && time.Since(entered) > 500*time.Millisecond
	})
	select {
	case <-led:
		t.Error("it leads while its lease is not valid")
	default:
	}
	renew(t, l)
	if !within(t, "it leads", led) {
		t.Error("it began to lead while its lease was not valid")
	}
	cancel(errTestOver)
	within(t, "Run ended", ended)
}
