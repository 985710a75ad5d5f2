package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// conn is a connection to libvirtd. One call at a time uses it, so that one that
// hangs holds up no other.
type conn struct {
	*golibvirt.Libvirt
	wire *wire
}

// wire knows when the connection has ended. The library's own Disconnected is
// not used: it can be missed if the connection ends while it is being opened.
type wire struct {
	net.Conn
	once sync.Once
	dead chan struct{}
	open chan struct{} // closed when the library has opened it, or has not been able to
}

// openWait bounds how long the end of a connection is kept from the library while
// it opens it: it notes a success without a lock, and the end of a connection
// reads that note. Where it waits for an answer that does not come, it waits this
// much longer.
const openWait = 200 * time.Millisecond

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.once.Do(func() { close(w.dead) })
		select {
		case <-w.open:
		case <-time.After(openWait):
		}
	}
	return n, err
}

func (w *wire) ended() bool {
	select {
	case <-w.dead:
		return true
	default:
		return false
	}
}

// Dial implements socket.Dialer of the library: the connection is there already.
func (w *wire) Dial() (net.Conn, error) { return w, nil }

// pool keeps connections for the next call.
type pool struct {
	uri     string
	sockets []string

	mu   sync.Mutex
	idle []*conn
}

// idleKept is how many connections are kept that nobody uses: about as many as
// calls are made at once on a quiet node.
const idleKept = 4

// dialTimeout bounds how long a new connection may take, for callers whose own
// deadline is far: a daemon that does not greet does not answer either.
const dialTimeout = 15 * time.Second

// open makes a new connection.
func (p *pool) open(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, errors.New("libvirtd did not answer a new connection in time"))
	defer cancel()
	var n net.Conn
	var errs []error
	for _, s := range p.sockets {
		var err error
		if n, err = new(net.Dialer).DialContext(ctx, "unix", s); err == nil {
			break
		}
		errs = append(errs, err)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if n == nil {
		return nil, fmt.Errorf("%w: connect to libvirtd: %w; see that it runs, and that LIBVIRT_URI is right", cluster.ErrCannotAsk, errors.Join(errs...))
	}
	w := &wire{Conn: n, dead: make(chan struct{}), open: make(chan struct{})}
	c := &conn{Libvirt: golibvirt.NewWithDialer(w), wire: w}
	done := make(chan error, 1)
	go func() {
		err := c.ConnectToURI(golibvirt.ConnectURI(p.uri))
		close(w.open)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("%w: libvirtd refuses %s: %w", cluster.ErrCannotAsk, p.uri, err)
		}
		return c, nil
	case <-ctx.Done():
		w.Close()
		return nil, driverkit.Ended(ctx)
	}
}

// take returns a connection that nobody else uses; fresh tells that it is new.
func (p *pool) take(ctx context.Context) (c *conn, fresh bool, err error) {
	if ctx.Err() != nil {
		return nil, false, driverkit.Ended(ctx)
	}
	p.mu.Lock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !c.wire.ended() {
			p.mu.Unlock()
			return c, false, nil
		}
		c.wire.Close()
	}
	p.mu.Unlock()
	c, err = p.open(ctx)
	return c, true, err
}

func (p *pool) put(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.wire.ended() || len(p.idle) >= idleKept {
		c.wire.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// ask runs a question, which changes nothing: it is given up when ctx ends. The
// connection is closed then, since the answer may come at any time.
func (p *pool) ask(ctx context.Context, f func(*golibvirt.Libvirt) error) error {
	for {
		c, fresh, err := p.take(ctx)
		if err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- f(c.Libvirt) }()
		select {
		case err = <-done:
		case <-ctx.Done():
			c.wire.Close()
			return driverkit.Ended(ctx)
		}
		if !lost(err) {
			p.put(c)
			return err
		}
		c.wire.Close()
		if fresh { // an old one may have ended since it was used last
			return fmt.Errorf("%w: libvirtd ended the connection: %w", cluster.ErrCannotAsk, err)
		}
	}
}

// question is ask with an answer, which is none if there is an error. One that was
// given up may still come to its end: nothing of it is shared with the caller.
func question[T any](ctx context.Context, p *pool, f func(*golibvirt.Libvirt) (T, error)) (answer T, err error) {
	answers := make(chan T, 1)
	err = p.ask(ctx, func(l *golibvirt.Libvirt) error {
		a, err := f(l)
		if err == nil {
			answers <- a
		}
		return err
	})
	if err == nil {
		answer = <-answers
	}
	return answer, err
}

// lost tells that a call has no answer because the connection ended.
func lost(err error) bool {
	var netErr *net.OpError
	return errors.Is(err, golibvirt.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EPIPE) || errors.As(err, &netErr)
}

// send carries out what has an effect, and waits for the answer: it is not given
// up, as it cannot be taken back. It is not begun after ctx has ended. impatient,
// if not nil, is called again and again while the answer does not come.
//
// unsure tells that the connection ended before the answer came.
func (p *pool) send(ctx context.Context, impatient func(), f func(*golibvirt.Libvirt) error) (unsure bool, err error) {
	for {
		c, fresh, err := p.take(ctx)
		if err != nil {
			return false, err
		}
		if !fresh { // an old connection that has ended is found out by a question, not by a verb whose fate is not known
			if err := c.ping(ctx); err != nil {
				c.wire.Close()
				if ctx.Err() != nil {
					return false, driverkit.Ended(ctx)
				}
				continue
			}
		}
		done := make(chan error, 1)
		go func() { done <- f(c.Libvirt) }()
		for {
			select {
			case err = <-done:
				if lost(err) {
					c.wire.Close()
					return true, err
				}
				p.put(c)
				return false, err
			case <-time.After(pollState):
				if impatient != nil {
					impatient()
				}
			}
		}
	}
}

// ping asks what any libvirtd can answer at once.
func (c *conn) ping(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		_, err := c.ConnectGetLibVersion()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return driverkit.Ended(ctx)
	}
}
