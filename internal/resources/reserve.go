package resources

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// reserved holds the names that a change is under way for. Looking that a name
// is free and renaming onto it are two steps, and rename replaces: two workers
// of this process that took the same name would lose a resource. Processes need
// no such care, since a directory has one writer.
type reserved struct {
	mu   *sync.Mutex
	held map[string]chan struct{} // closed when the name is free again
}

func newReserved() reserved {
	return reserved{mu: &sync.Mutex{}, held: map[string]chan struct{}{}}
}

// reserve waits until all names are free and takes them, all or none. The
// caller, or the worker that it hands them to, calls release once.
func (s *Store) reserve(ctx context.Context, what string, names []string) (release func(), err error) {
	timer := time.NewTimer(s.deadline)
	defer timer.Stop()
	for {
		busy := s.names.take(names)
		if busy == nil {
			return func() { s.names.free(names) }, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-timer.C:
			return nil, fmt.Errorf("%s: %w", what, ErrHung)
		}
	}
}

// take takes all names and returns nil, or returns what is closed when one that
// is held becomes free.
func (r *reserved) take(names []string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		if busy, ok := r.held[n]; ok {
			return busy
		}
	}
	freed := make(chan struct{}) // one for the whole set
	for _, n := range names {
		r.held[n] = freed
	}
	return nil
}

// all returns what is closed when the names held now become free.
func (r *reserved) all() []<-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]<-chan struct{}, 0, len(r.held))
	for _, freed := range r.held {
		out = append(out, freed)
	}
	return out
}

func (r *reserved) free(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(names) == 0 {
		return
	}
	close(r.held[names[0]])
	for _, n := range names {
		delete(r.held, n)
	}
}
