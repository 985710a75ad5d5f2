package election_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const prefix = "/shaman/lab/master/"

// reign is one mastership, from the start of lead to the end of its context.
type reign struct {
	name       string
	term       cluster.Term
	begin, end boottime.Time // end 0: it goes on
	cause      error
}

// chronicle records all reigns of a test.
type chronicle struct {
	t  *testing.T
	mu sync.Mutex
	is []reign
}

func (c *chronicle) begin(name string, term cluster.Term) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.is = append(c.is, reign{name: name, term: term, begin: boottime.Now()})
	return len(c.is) - 1
}

func (c *chronicle) end(i int, cause error) {
	now := boottime.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.is[i].end, c.is[i].cause = now, cause
}

func (c *chronicle) all() []reign {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.is)
}

// mustNeverOverlap checks the promise that everything rests on. Each reign is
// recorded as longer than it was at its begin, and at its end.
func (c *chronicle) mustNeverOverlap() {
	c.t.Helper()
	is := c.all()
	slices.SortFunc(is, func(a, b reign) int { return int(a.begin - b.begin) })
	for i := 1; i < len(is); i++ {
		was, next := is[i-1], is[i]
		if was.end == 0 || was.end > next.begin {
			c.t.Errorf("%s of epoch %d was still master when %s of epoch %d began", was.name, was.term.Epoch, next.name, next.term.Epoch)
		}
		if next.term.Epoch <= was.term.Epoch {
			c.t.Errorf("epoch %d follows epoch %d", next.term.Epoch, was.term.Epoch)
		}
	}
}

// master waits until somebody reigns who is not in the list, and returns the reign.
func (c *chronicle) master(not ...string) reign {
	c.t.Helper()
	var now reign
	etcdtest.Eventually(c.t, "there is a new master", func() bool {
		is := c.all()
		if len(is) == 0 {
			return false
		}
		now = is[len(is)-1]
		return now.end == 0 && !slices.Contains(not, now.name)
	})
	return now
}

// over waits until this reign has ended, and returns it.
func (c *chronicle) over(r reign) reign {
	c.t.Helper()
	etcdtest.Eventually(c.t, "the reign of "+r.name+" is over", func() bool {
		for _, now := range c.all() {
			if now.begin == r.begin && now.name == r.name && now.end != 0 {
				r = now
				return true
			}
		}
		return false
	})
	return r
}

// candidate is one daemon's part in an election.
type candidate struct {
	name   string
	client *clientv3.Client
	lease  *election.Lease
	lost   <-chan error // what the lease's Run returned
	result chan error   // what the elector's Run returned
	stop   context.CancelCauseFunc
	// leave makes the present lead return by itself.
	leave chan struct{}

	mu    sync.Mutex
	unfit error
}

func (c *candidate) eligible() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unfit
}

func (c *candidate) setUnfit(why error) {
	c.mu.Lock()
	c.unfit = why
	c.mu.Unlock()
}

// key is the candidate's election key.
func (c *candidate) key(t *testing.T, via *clientv3.Client) string {
	t.Helper()
	var key string
	etcdtest.Eventually(t, c.name+" is a candidate", func() bool {
		resp, err := via.Get(t.Context(), prefix, clientv3.WithPrefix())
		if err != nil {
			return false
		}
		for _, kv := range resp.Kvs {
			if kv.Lease == c.lease.ID() {
				key = string(kv.Key)
			}
		}
		return key != ""
	})
	return key
}

// run makes a candidate that campaigns until the test ends.
func (c *chronicle) run(name string, lease time.Duration, endpoints ...string) *candidate {
	c.t.Helper()
	cl := etcdtest.Dial(c.t, endpoints...)
	l := grant(c.t, cl, lease)
	can := &candidate{name: name, client: cl, lease: l, lost: renew(c.t, l), result: make(chan error, 1), leave: make(chan struct{})}
	ctx, stop := context.WithCancelCause(context.Background())
	can.stop = stop
	e := &election.Elector{
		Client: cl, Prefix: prefix, Lease: l, Self: election.Candidate{Node: cluster.NodeID(name), Name: name},
		Eligible: can.eligible, Log: zap.NewNop(), Metrics: election.NewMetrics(prometheus.NewRegistry()),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		can.result <- e.Run(ctx, func(ctx context.Context, term cluster.Term) error {
			i := c.begin(name, term)
			select {
			case <-ctx.Done():
			case <-can.leave:
			}
			c.end(i, context.Cause(ctx))
			return nil
		})
	}()
	c.t.Cleanup(func() {
		stop(errTestOver)
		<-ended
	})
	return can
}

// write tries a guarded write.
func write(t *testing.T, cl *clientv3.Client, term cluster.Term) error {
	t.Helper()
	_, err := etcd.CommitAs(t.Context(), cl, term, nil, []clientv3.Op{clientv3.OpPut("written-by-a-master", "")})
	return err
}
