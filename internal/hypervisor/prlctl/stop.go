package prlctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// errRushed ends a graceful stop that a stop by force waits for.
var errRushed = errors.New("a stop by force does not wait")

// rushPoll is how soon a graceful stop notices that it is to give way.
const rushPoll = 20 * time.Millisecond

// Stop implements hypervisor.Driver.
func (d *Driver) Stop(ctx context.Context, path string, force bool) error {
	path = home(path)
	if force {
		end := d.turns.Rush(path)
		defer end()
	}
	return d.verb(ctx, "stop", path, func() error {
		s := stopping{Driver: d, path: path, force: force, until: time.Now().Add(d.o.StopTimeout)}
		return s.run(ctx)
	})
}

// stopping is a stop under way.
type stopping struct {
	*Driver
	path   string
	force  bool
	until  time.Time // of the graceful attempt
	asked  bool      // gracefully
	tried  bool
	polite bool  // it ended by our graceful stop
	said   error // by prlctl, at the last attempt
	quiet  quiet
}

// run returns when the VE is proven not to run. What the tool says is not
// enough, nor is one look if something that was asked for may still come.
func (s *stopping) run(ctx context.Context) error {
	for {
		e, err := s.find(ctx, s.path)
		if err != nil {
			return both(s.said, err)
		}
		if e == nil || e.state() == cluster.VEStopped {
			if _, start := s.doubted(s.path); !start || s.quiet.see(e) >= s.t.settle {
				s.settled(s.path)
				return s.over()
			}
			if err := s.pause(ctx); err != nil {
				return err
			}
			continue
		}
		s.quiet = quiet{}
		if e.status == statusInvalid && s.tried && s.said == nil {
			// Its state has no better word on this server, another one owns it by now:
			// that prlctl stopped it without an error is all that can be had.
			return s.over()
		}
		s.force = s.force || s.turns.Rushed(s.path)
		switch {
		case s.force || e.status == statusMounted || (!s.asked && !e.moving()):
			if err := s.attempt(ctx, *e); err != nil {
				return err
			}
		case time.Now().After(s.until):
			return fmt.Errorf("it is %s after %s", e.status, s.o.StopTimeout)
		case s.said != nil && !e.moving():
			return s.said
		}
		if err := s.pause(ctx); err != nil {
			return both(s.said, err)
		}
	}
}

// over remembers why it does not run.
func (s *stopping) over() error {
	if !s.polite || s.force {
		return nil
	}
	return s.causes.stopped(s.path)
}

// attempt asks once; an error ends the stop.
func (s *stopping) attempt(ctx context.Context, e entry) error {
	s.tried = true
	switch {
	case e.status == statusMounted:
		s.said = s.change(ctx, s.path, "umount", e.uuid)
	case s.force:
		s.polite = false
		s.said = s.change(ctx, s.path, "stop", e.uuid, "--kill")
	default:
		return s.gracefully(ctx, e)
	}
	if unknown(s.said) {
		return s.said
	}
	if s.said != nil && !e.moving() {
		// Unless it is down all the same, there is no use in asking again at once.
		now, err := s.find(ctx, s.path)
		if err != nil || (now != nil && now.state() == cluster.VERunning) {
			return both(s.said, err)
		}
	}
	return nil
}

// gracefully asks the guest to shut down, until it has, its time is over, or a
// stop by force waits.
func (s *stopping) gracefully(ctx context.Context, e entry) error {
	s.asked = true
	gctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(time.Until(s.until), func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for gctx.Err() == nil {
			if s.turns.Rushed(s.path) {
				cancel(errRushed)
			}
			select {
			case <-gctx.Done():
			case <-time.After(rushPoll):
			}
		}
	}()
	s.said = s.change(gctx, s.path, "stop", e.uuid)
	cause := context.Cause(gctx)
	cancel(nil)
	<-watching
	switch {
	case s.said == nil:
		s.polite = true
	case ctx.Err() != nil:
		return s.said
	case errors.Is(cause, errRushed):
		s.force, s.said = true, nil
	case errors.Is(cause, context.DeadlineExceeded):
		return fmt.Errorf("it did not shut down within %s; stop it by force", s.o.StopTimeout)
	case unknown(s.said):
		return s.said
	}
	return nil
}
