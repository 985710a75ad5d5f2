package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// line is the state of a cable.
type line struct {
	mu    sync.Mutex
	how   string // "", "error" or "hang"
	open  chan struct{}
	conns map[net.Conn]bool
}

func newLine() *line {
	l := &line{open: make(chan struct{}), conns: map[net.Conn]bool{}}
	close(l.open)
	return l
}

// set cuts or mends the cable. With "error" connections are closed and new ones
// refused; with "hang" nothing comes through any more and nobody is told.
func (l *line) set(how string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if how == l.how {
		return
	}
	if l.how == "hang" {
		close(l.open)
	}
	l.how = how
	switch how {
	case "hang":
		l.open = make(chan struct{})
	case "error":
		for c := range l.conns {
			_ = c.Close()
		}
	}
}

// pass waits while the cable hangs; it returns false when it is cut.
func (l *line) pass(ctx context.Context) bool {
	for {
		l.mu.Lock()
		how, open := l.how, l.open
		l.mu.Unlock()
		switch how {
		case "":
			return true
		case "error":
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-open:
		}
	}
}

func (l *line) add(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
}

func (l *line) drop(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	_ = c.Close()
}

// serve forwards connections to an address until the context ends.
func (l *line) serve(ctx context.Context, ln net.Listener, to string) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		go l.forward(ctx, c, to)
	}
}

func (l *line) forward(ctx context.Context, in net.Conn, to string) {
	l.add(in)
	defer l.drop(in)
	if !l.pass(ctx) {
		return
	}
	var d net.Dialer
	out, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	l.add(out)
	defer l.drop(out)
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			l.copy(ctx, way[1], way[0])
			done <- struct{}{}
		}()
	}
	<-done
}

func (l *line) copy(ctx context.Context, to io.Writer, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if !l.pass(ctx) {
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
