package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// syncVEs is how many VEs a sync is measured with.
const syncVEs = 1000

// syncCase is one kind of drift, of all VEs at once.
type syncCase struct {
	name    string
	drift   func(*syncSite) error // what nobody told the daemon
	command []string
}

// syncSite is one node and its VEs.
type syncSite struct {
	*site
	node *member
}

func (s *syncSite) path(i int) string { return filepath.Join(s.mount(), "ves", veName(i)) }

// quietly changes the hypervisor's VEs without an event, so that the command finds
// what the daemon would find by itself a moment later.
func (s *syncSite) quietly(f func(d *instant)) {
	s.node.ves.mu.Lock()
	defer s.node.ves.mu.Unlock()
	f(s.node.ves)
}

var syncCases = []syncCase{
	{"a VE without a resource", func(s *syncSite) error {
		for i := range syncVEs {
			if err := os.MkdirAll(s.path(i), 0o755); err != nil {
				return err
			}
		}
		s.quietly(func(d *instant) {
			for i := range syncVEs {
				d.ves[s.path(i)] = cluster.VEStopped
			}
		})
		return nil
	}, []string{"sync"}},
	{"nothing to do", func(*syncSite) error { return nil }, []string{"sync"}},
	{"parameters that differ", func(s *syncSite) error {
		s.quietly(func(d *instant) { d.prio++ })
		return nil
	}, []string{"sync"}},
	{"not registered any more", func(s *syncSite) error {
		s.quietly(func(d *instant) { clear(d.ves) })
		return nil
	}, []string{"sync"}},
	{"a resource without a VE", func(s *syncSite) error {
		s.quietly(func(d *instant) { clear(d.ves) })
		for i := range syncVEs { // their directory stays: without it nothing is said to be gone
			if err := os.Remove(s.path(i)); err != nil {
				return err
			}
		}
		return nil
	}, []string{"sync", "--force"}},
	{"cleanup-broken of these", func(*syncSite) error { return nil }, []string{"cleanup-broken"}},
}

// benchSync measures the commands that make lists true, with as many differences
// as there are VEs. It includes the second that sync waits between its two looks
// before it takes a VE for gone.
func benchSync(ctx context.Context, o options) (err error) {
	base, err := newSite(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.close()) }()
	ms, err := base.start(ctx, 1, o.lock, nil)
	if err != nil {
		return err
	}
	s := &syncSite{site: base, node: ms[0]}
	rows := [][]string{{"drift", "seconds"}}
	for _, c := range syncCases {
		if err := c.drift(s); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		begin := time.Now()
		if err := shaman(ctx, s.node.conf, append([]string{"-q"}, c.command...)...); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		rows = append(rows, []string{c.name, seconds(time.Since(begin))})
	}
	table(fmt.Sprintf("sync and cleanup-broken with %d VEs, all of which differ in the same way", syncVEs), rows)
	return s.node.stop()
}
