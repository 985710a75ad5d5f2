package election

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
)

// maxCouriers bounds the streams that ask for the same renewal at once.
const maxCouriers = 3

// reply is what a courier brings back.
type reply struct {
	from *courier
	sent boottime.Time
	ttl  int64
	err  error
}

// courier asks for renewals over one stream of its own, one at a time.
type courier struct {
	ask    chan struct{} // capacity 1
	cancel context.CancelFunc
}

// Run renews until etcd says that the lease is gone (ErrLost), Revoke was
// called, or the context ends. A member that does not answer within
// timing.Attempt is left in peace while another one is asked too: one hung
// member must not end the leases of a whole cluster.
func (l *Lease) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	r := renewal{lease: l, replies: make(chan reply)}
	defer r.wait()
	defer cancel()
	return r.run(ctx)
}

// renewal is the state of one Run; only its goroutine touches it.
type renewal struct {
	lease    *Lease
	replies  chan reply
	couriers []*courier // the last one that answered first
	running  int        // goroutines that have not ended
	started  int
	ended    chan struct{}
}

func (r *renewal) run(ctx context.Context) error {
	l := r.lease
	r.ended = make(chan struct{}, 64)
	timer := time.NewTimer(0) // the first renewal is due at once
	defer timer.Stop()
	waiting := false // a renewal is asked for and not answered
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.lost:
			return ErrLost
		case <-r.ended:
			r.running--
		case <-timer.C:
			if waiting || len(r.couriers) == 0 {
				r.hire(ctx) // silence for the time of one attempt: ask another member too
			}
			for _, c := range r.couriers {
				select {
				case c.ask <- struct{}{}:
				default: // it still waits for an answer
				}
			}
			waiting = true
			timer.Reset(l.timing.Attempt)
		case re := <-r.replies:
			switch {
			case re.err != nil:
				r.dismiss(re.from)
				l.log.Debug("a lease renewal was not answered", zap.Error(re.err))
				if len(r.couriers) == 0 {
					waiting = false
					timer.Reset(min(l.timing.Attempt, 100*time.Millisecond))
				}
			case re.ttl <= 0:
				l.end()
				return ErrLost
			default:
				l.renewed(re.sent)
				r.keepOnly(re.from)
				waiting = false
				timer.Reset(max(0, l.timing.Renew-boottime.Since(re.sent)))
			}
		}
	}
}

// hire starts one more courier; of too many the oldest goes.
func (r *renewal) hire(ctx context.Context) {
	if len(r.couriers) >= maxCouriers {
		r.dismiss(r.couriers[0])
	}
	cctx, cancel := context.WithCancel(ctx)
	c := &courier{ask: make(chan struct{}, 1), cancel: cancel}
	r.couriers = append(r.couriers, c)
	r.running++
	r.started++
	// Every third one uses the client's own unary call, which also renews an
	// authentication token that the server has forgotten.
	unary := r.started%maxCouriers == 0
	go func() {
		defer func() { r.ended <- struct{}{} }()
		defer cancel()
		var err error
		if unary {
			err = r.lease.callEach(cctx, c, r.replies)
		} else {
			err = r.lease.streamEach(cctx, c, r.replies)
		}
		select {
		case r.replies <- reply{from: c, err: err}:
		case <-cctx.Done():
		}
	}()
}

func (r *renewal) dismiss(c *courier) {
	c.cancel()
	for i, have := range r.couriers {
		if have == c {
			r.couriers = append(r.couriers[:i], r.couriers[i+1:]...)
			return
		}
	}
}

func (r *renewal) keepOnly(winner *courier) {
	kept := false
	for _, c := range r.couriers {
		if c != winner {
			c.cancel()
		} else {
			kept = true
		}
	}
	r.couriers = r.couriers[:0]
	if kept {
		r.couriers = append(r.couriers, winner)
	}
}

func (r *renewal) wait() {
	for _, c := range r.couriers {
		c.cancel()
	}
	for r.running > 0 {
		select {
		case <-r.ended:
			r.running--
		case <-r.replies:
		}
	}
}

func (l *Lease) streamEach(ctx context.Context, c *courier, replies chan<- reply) error {
	stream, err := pb.NewLeaseClient(l.client.ActiveConnection()).LeaseKeepAlive(ctx)
	if err != nil {
		return fmt.Errorf("open a renewal stream: %w", err)
	}
	return each(ctx, c, replies, func() (int64, error) {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(l.id)}); err != nil {
			return 0, fmt.Errorf("send a renewal: %w", err)
		}
		resp, err := stream.Recv()
		if err != nil {
			return 0, fmt.Errorf("receive the answer to a renewal: %w", err)
		}
		return resp.TTL, nil
	})
}

func (l *Lease) callEach(ctx context.Context, c *courier, replies chan<- reply) error {
	return each(ctx, c, replies, func() (int64, error) {
		cctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
		defer cancel()
		resp, err := l.client.KeepAliveOnce(cctx, l.id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("renew by a single call: %w", err)
		}
		return resp.TTL, nil
	})
}

// each answers every ask with one round trip; its time is taken before it is sent.
func each(ctx context.Context, c *courier, replies chan<- reply, trip func() (int64, error)) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ask:
		}
		sent := boottime.Now()
		ttl, err := trip()
		if err != nil {
			return err
		}
		select {
		case replies <- reply{from: c, sent: sent, ttl: ttl}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
