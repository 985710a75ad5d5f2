package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Candidate is the value of an election key.
type Candidate struct {
	Node  cluster.NodeID `json:"node"`
	Name  string         `json:"name"`
	Nonce string         `json:"nonce"` // of the process
}

// Metrics of the election, one set a daemon.
type Metrics struct {
	IsMaster prometheus.Gauge
	Epoch    prometheus.Gauge
	Changes  prometheus.Counter
}

// NewMetrics registers the election's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	return &Metrics{
		IsMaster: f.NewGauge(prometheus.GaugeOpts{Name: "shaman_election_is_master", Help: "1 while this daemon is master. Alert if the sum over the cluster is not 1 for a minute."}),
		Epoch:    f.NewGauge(prometheus.GaugeOpts{Name: "shaman_election_epoch", Help: "Number of the mastership that this daemon held last; grows strictly over the cluster."}),
		Changes:  f.NewCounter(prometheus.CounterOpts{Name: "shaman_election_master_changes_total", Help: "Times that this daemon became master. Alert on more than a few an hour."}),
	}
}

// Elector campaigns under one lease.
type Elector struct {
	Client *clientv3.Client
	Prefix string // of all candidates' keys
	Lease  *Lease
	Self   Candidate
	// Eligible says why this node must not be master now (nil: it may). It must
	// not block. A master that stops being eligible resigns.
	Eligible func() error
	Log      *zap.Logger
	Metrics  *Metrics
}

const (
	// watchIdle bounds one wait for the candidate ahead, after which the list is read anew.
	watchIdle = 30 * time.Second
	// check bounds how long a master does not look whether it may go on; it looks
	// at the very end of its validity in any case. Timers stand still while the
	// machine is suspended, so it also bounds how long one acts on after that.
	check = 250 * time.Millisecond
)

// Run campaigns and leads, again and again, until the lease is lost (ErrLost) or
// the context ends. lead gets a context that ends when mastership can no longer
// be proven; it must then return soon, and Run waits for it, so two terms of one
// process never overlap. When the context ends cleanly Run resigns.
func (e *Elector) Run(ctx context.Context, lead func(ctx context.Context, term cluster.Term) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(lostContext(ctx, e.Lease), func() { cancel(ErrLost) })
	defer stop()

	key := fmt.Sprintf("%s%x", e.Prefix, e.Lease.ID())
	defer e.resign(ctx, key)
	for {
		err := e.once(ctx, key, lead)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			e.Log.Debug("election goes on", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50*time.Millisecond + rand.N(100*time.Millisecond)):
		}
	}
}

// lostContext ends when the lease is lost or ctx ends.
func lostContext(ctx context.Context, l *Lease) context.Context {
	c, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer cancel()
		select {
		case <-l.Lost():
		case <-ctx.Done():
		}
	}()
	return c
}

// once is one candidacy: from queueing up to the end of a mastership.
func (e *Elector) once(ctx context.Context, key string, lead func(context.Context, cluster.Term) error) error {
	if err := e.Eligible(); err != nil {
		return fmt.Errorf("not a candidate now: %w", err)
	}
	rev, err := e.enter(ctx, key)
	if err != nil {
		return err
	}
	if err := e.awaitTurn(ctx, key, rev); err != nil {
		return err
	}
	term := cluster.Term{Key: key, Epoch: cluster.Epoch(rev)}
	if err := e.verify(ctx, term); err != nil {
		return err
	}
	return e.lead(ctx, term, lead)
}

// enter puts our key, unless it is there already, and returns its create revision.
func (e *Elector) enter(ctx context.Context, key string) (int64, error) {
	val, err := json.Marshal(e.Self)
	if err != nil {
		return 0, fmt.Errorf("encode the candidacy: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := e.Client.Txn(ctx).
		If(etcd.Absent(key)).
		Then(clientv3.OpPut(key, string(val), clientv3.WithLease(clientv3.LeaseID(e.Lease.ID())))).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return 0, fmt.Errorf("enter the election: %w", err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) != 1 {
		return 0, errors.New("enter the election: the key came and went")
	}
	return kvs[0].CreateRevision, nil
}

// awaitTurn returns when no candidate is ahead of us; one that is unfit by then leaves the queue.
func (e *Elector) awaitTurn(ctx context.Context, key string, rev int64) error {
	for {
		gctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
		resp, err := e.Client.Get(gctx, e.Prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		cancel()
		if err != nil {
			return fmt.Errorf("list the candidates: %w", err)
		}
		mine, ahead := false, false
		for _, kv := range resp.Kvs {
			mine = mine || string(kv.Key) == key && kv.CreateRevision == rev
			ahead = ahead || kv.CreateRevision < rev
		}
		if !mine {
			return errors.New("our election key is gone")
		}
		// After the look, and before its answer counts: nobody who lost fitness
		// while the one ahead still led begins a mastership.
		if err := e.Eligible(); err != nil {
			e.resign(ctx, key)
			return fmt.Errorf("leave the election: %w", err)
		}
		if !ahead {
			return nil
		}
		if err := e.awaitDelete(ctx, resp.Header.Revision); err != nil {
			return err
		}
	}
}

// awaitDelete returns when some candidate's key was deleted after rev, or after
// a while in any case.
func (e *Elector) awaitDelete(ctx context.Context, rev int64) error {
	wctx, cancel := context.WithTimeout(ctx, watchIdle)
	defer cancel()
	for resp := range e.Client.Watch(clientv3.WithRequireLeader(wctx), e.Prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithFilterPut()) {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch the candidates: %w", err)
		}
		if len(resp.Events) > 0 {
			return nil
		}
	}
	return context.Cause(ctx)
}

// verify asks in one transaction whether our key is there, under our lease, and
// first: being told of the end of the one ahead is not enough, our own lease may
// have ended while we queued.
func (e *Elector) verify(ctx context.Context, t cluster.Term) error {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := e.Client.Txn(ctx).
		If(etcd.Guard(t), clientv3.Compare(clientv3.LeaseValue(t.Key), "=", e.Lease.ID())).
		Then(clientv3.OpGet(e.Prefix, clientv3.WithFirstCreate()...)).Commit()
	if err != nil {
		return fmt.Errorf("verify the election: %w", err)
	}
	if !resp.Succeeded {
		return errors.New("the election was not won: our key is gone or under another lease")
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) != 1 || kvs[0].CreateRevision != int64(t.Epoch) {
		return errors.New("the election was not won: somebody is ahead")
	}
	if !e.Lease.Valid() {
		return ErrInvalid
	}
	return nil
}

func (e *Elector) lead(ctx context.Context, t cluster.Term, lead func(context.Context, cluster.Term) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(e.guard(ctx, t))
	}()
	e.Metrics.IsMaster.Set(1)
	e.Metrics.Epoch.Set(float64(t.Epoch))
	e.Metrics.Changes.Inc()
	e.Log.Info("became master", zap.Int64("epoch", int64(t.Epoch)))
	err := lead(ctx, t)
	cause := context.Cause(ctx)
	cancel(nil)
	<-done
	e.Metrics.IsMaster.Set(0)
	e.Log.Info("is master no more", zap.Int64("epoch", int64(t.Epoch)), zap.NamedError("reason", errors.Join(cause, err)))
	if cause == nil || !errors.Is(cause, ErrInvalid) {
		// Of our own will, or unfit: let the next one in. With an unprovable lease
		// the key stays ours until etcd says otherwise.
		e.resign(ctx, t.Key)
	}
	return err
}

// guard returns why this mastership has to end.
func (e *Elector) guard(ctx context.Context, t cluster.Term) error {
	gone := make(chan struct{})
	watch := make(chan struct{})
	wctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); <-watch }()
	go func() {
		defer close(watch)
		e.watchOwn(wctx, t, gone)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-gone:
			return errors.New("the election key was taken away")
		case <-timer.C:
		}
		timer.Reset(max(time.Millisecond, min(check, e.Lease.ValidUntil().Sub(boottime.Now()))))
		if boottime.Now() >= e.Lease.ValidUntil() {
			return ErrInvalid
		}
		if err := e.Eligible(); err != nil {
			return fmt.Errorf("unfit to be master: %w", err)
		}
	}
}

// watchOwn closes gone when our key is deleted by anybody. Each watch begins
// with a look: what a broken watch missed may be compacted away.
func (e *Elector) watchOwn(ctx context.Context, t cluster.Term, gone chan<- struct{}) {
	for ctx.Err() == nil {
		rev, there, err := e.look(ctx, t)
		if err == nil {
			if !there || e.awaitOwnDelete(ctx, t.Key, rev) {
				close(gone)
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// look tells whether our key is still there, at a revision.
func (e *Elector) look(ctx context.Context, t cluster.Term) (rev int64, there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := e.Client.Get(ctx, t.Key, clientv3.WithKeysOnly())
	if err != nil {
		return 0, false, fmt.Errorf("look for the own election key: %w", err)
	}
	return resp.Header.Revision, len(resp.Kvs) == 1 && resp.Kvs[0].CreateRevision == int64(t.Epoch), nil
}

// awaitOwnDelete tells whether our key was deleted after rev; false: the watch ended before.
func (e *Elector) awaitOwnDelete(ctx context.Context, key string, rev int64) bool {
	for resp := range e.Client.Watch(clientv3.WithRequireLeader(ctx), key, clientv3.WithRev(rev+1), clientv3.WithFilterPut()) {
		if resp.Err() == nil && len(resp.Events) > 0 {
			return true
		}
	}
	return false
}

// resign deletes our key, so that the next candidate need not wait for the end
// of the lease. It works on after ctx has ended, for the time of one request.
func (e *Elector) resign(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := e.Client.Txn(ctx).
		If(clientv3.Compare(clientv3.LeaseValue(key), "=", e.Lease.ID())).
		Then(clientv3.OpDelete(key)).Commit(); err != nil {
		e.Log.Warn("could not resign; the others wait for the end of the lease", zap.Error(err))
	}
}
