package etcdtest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Cable is a TCP proxy in front of an endpoint, which a test can cut (as a
// crashed host or a rejecting firewall: connections end and new ones are reset)
// and hang (as a stopped process: connections stay, and bytes wait).
type Cable struct {
	listener net.Listener
	target   func() string
	running  sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond
	conns   map[net.Conn]bool
	tried   int
	cut     bool
	hung    bool
	delay   time.Duration
	closed  bool
}

// NewCable returns a cable to an address.
func NewCable(t testing.TB, address string) *Cable {
	t.Helper()
	return newCable(t, func() string { return address })
}

func newCable(t testing.TB, target func() string) *Cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("lay a cable: %v", err)
	}
	c := &Cable{listener: l, target: target, conns: map[net.Conn]bool{}}
	c.changed = sync.NewCond(&c.mu)
	c.running.Go(c.serve)
	t.Cleanup(c.close)
	return c
}

// Endpoint is what a client connects to.
func (c *Cable) Endpoint() string { return c.listener.Addr().String() }

// Cut ends all connections and resets new ones.
func (c *Cable) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	c.endAll()
}

// Hang holds all bytes back, in both directions; new connections are accepted.
func (c *Cable) Hang() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hung = true
}

// Slow holds all bytes for so long, in each direction.
func (c *Cable) Slow(delay time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = delay
}

// Heal makes the cable whole: bytes that were held back arrive now.
func (c *Cable) Heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut, c.hung, c.delay = false, false, 0
	c.changed.Broadcast()
}

// Tried is how many connections were asked for so far.
func (c *Cable) Tried() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tried
}

// Connections is how many connections go through the cable now.
func (c *Cable) Connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns) / 2
}

func (c *Cable) close() {
	_ = c.listener.Close() // nothing is written through it
	c.mu.Lock()
	c.closed = true
	c.endAll()
	c.mu.Unlock()
	c.running.Wait()
}

// endAll resets all connections; the caller holds the lock.
func (c *Cable) endAll() {
	for conn := range c.conns {
		reset(conn)
	}
	clear(c.conns)
	c.changed.Broadcast()
}

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // without it, what was written still arrives
	}
	_ = conn.Close() // the other side learns of it, which is all that matters
}

func (c *Cable) serve() {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return // closed
		}
		c.mu.Lock()
		c.tried++
		c.mu.Unlock()
		c.running.Go(func() { c.connect(client) })
	}
}

func (c *Cable) connect(client net.Conn) {
	server, err := net.Dial("tcp", c.target())
	if err != nil {
		reset(client)
		return
	}
	c.mu.Lock()
	if c.cut || c.closed {
		c.mu.Unlock()
		reset(client)
		reset(server)
		return
	}
	c.conns[client], c.conns[server] = true, true
	c.mu.Unlock()
	c.running.Go(func() { c.pump(client, server) })
	c.pump(server, client)
}

// pump carries bytes one way; the end of one way is the end of both.
func (c *Cable) pump(from, to net.Conn) {
	defer c.end(from, to)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		time.Sleep(c.latency())
		if !c.whole(to) {
			return
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *Cable) latency() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.delay
}

// whole waits while the cable hangs, and tells whether the connection is still there then.
func (c *Cable) whole(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.hung && !c.closed && c.conns[conn] {
		c.changed.Wait()
	}
	return !c.closed && c.conns[conn]
}

func (c *Cable) end(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		if c.conns[conn] {
			delete(c.conns, conn)
			_ = conn.Close() // the other side learns of it, which is all that matters
		}
	}
	c.changed.Broadcast()
}
