package agent

import (
	"container/heap"
	"context"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// job is the work for one resource after it lies in the own repository.
type job struct {
	id       cluster.ResourceID
	kind     cluster.Kind // with path, of the VE, once its resource was read
	path     string
	action   *cluster.Versioned[cluster.Action] // nil for a start after boot
	start    bool
	boot     bool
	priority uint32
	order    int64
	reason   string
}

// queue hands out jobs by priority, then in order of arrival.
type queue struct {
	mu    sync.Mutex
	jobs  jobHeap
	next  int64
	ready chan struct{}
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

func (q *queue) push(j *job) {
	q.mu.Lock()
	q.next++
	j.order = q.next
	heap.Push(&q.jobs, j)
	q.mu.Unlock()
	poke(q.ready)
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.jobs) == 0
}

// pop waits for a job; it returns nil when the context ends.
func (q *queue) pop(ctx context.Context) *job {
	for {
		q.mu.Lock()
		if len(q.jobs) > 0 {
			j, _ := heap.Pop(&q.jobs).(*job)
			more := len(q.jobs) > 0
			q.mu.Unlock()
			if more {
				poke(q.ready)
			}
			return j
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-q.ready:
		}
	}
}

type jobHeap []*job

func (h jobHeap) Len() int { return len(h) }
func (h jobHeap) Less(i, j int) bool {
	if h[i].priority != h[j].priority {
		return h[i].priority > h[j].priority
	}
	return h[i].order < h[j].order
}
func (h jobHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *jobHeap) Push(x any)   { *h = append(*h, x.(*job)) }
func (h *jobHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
