package doctor

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// world is a mount, and nodes that see it as their rows say.
type world struct {
	mu    sync.Mutex
	slots []string // all tokens ever written
	names map[string]time.Time
	fail  error // of writes, from the failFrom-th on
	from  int
	nodes map[string]sees
}

// sees is how one node sees the mount.
type sees struct {
	behind int           // writes that it is behind
	late   time.Duration // until it sees a new name
	blind  bool          // it sees nothing at all
	err    error
	hangs  bool
	ahead  time.Duration // of its wall clock
	slow   time.Duration // of each answer
}

func (w *world) Write(_ context.Context, token string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil && len(w.slots) >= w.from {
		return w.fail
	}
	w.slots = append(w.slots, token)
	return nil
}

func (w *world) Create(_ context.Context, suffix, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[suffix] = time.Now()
	return nil
}

func (w *world) Clear(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.names)
	return nil
}

func (w *world) ask(ctx context.Context, n Member, suffix string) (cluster.Sighting, error) {
	s := w.nodes[n.Name]
	if s.hangs {
		<-ctx.Done()
		return cluster.Sighting{}, context.Cause(ctx)
	}
	time.Sleep(max(s.slow, time.Millisecond))
	w.mu.Lock()
	defer w.mu.Unlock()
	saw := cluster.Sighting{At: time.Now().Add(s.ahead).Format(time.RFC3339Nano)}
	made, there := w.names[suffix]
	switch {
	case s.err != nil:
		return cluster.Sighting{}, s.err
	case s.blind:
	case suffix == "":
		saw.Found, saw.Token = true, w.slots[max(0, len(w.slots)-1-s.behind)]
	default:
		saw.Found = there && time.Since(made) >= s.late
	}
	return saw, nil
}

func TestVisibilityIsMeasured(t *testing.T) {
	tests := []struct {
		name  string
		given sees
		want  string // of the check visibility
		says  string
		clock []string // of the check clock, after this node's own
	}{
		{"at once", sees{}, "OK n", "5 of 5 writes were seen at once, a new name too", []string{"OK n"}},
		{"at once, by a node that answers slowly", sees{slow: 3 * time.Second}, "OK n", "a new name too", []string{"OK n"}},
		{"a new name a little later", sees{late: 300 * time.Millisecond}, "OK n", "a new name after 3", []string{"OK n"}},
		{"a new name late", sees{late: 5 * time.Second}, "WARN n", "want at most 1s (HEARTBEAT_INTERVAL)", []string{"OK n"}},
		{"a new name never", sees{late: time.Hour}, "WARN n", "was not seen for 10", []string{"OK n"}},
		{"one write behind: the axiom is broken", sees{behind: 1}, "FAIL n", "5 of 5 writes that were acknowledged here were not seen there", []string{"OK n"}},
		{"another file system", sees{blind: true}, "FAIL n", "findmnt", []string{"OK n"}},
		{"an older daemon", sees{err: ErrOlder}, "WARN n", "upgrade", nil},
		{"its mount is gone", sees{err: errors.New("does not answer")}, "WARN n", "does not answer", nil},
		{"it does not answer", sees{hangs: true}, "WARN n", "no answer within 5s", nil},
		{"its clock is ahead", sees{ahead: time.Minute}, "OK n", "", []string{"WARN n"}},
		{"its clock is behind", sees{ahead: -time.Minute}, "OK n", "", []string{"WARN n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{names: map[string]time.Time{}, nodes: map[string]sees{"n": tt.given, "good": {}}}
				got := Measure(t.Context(), w, w.ask, []Member{{Name: "n"}, {Name: "good"}}, "r", DefaultLimits())
				good := []string{tt.want, "OK good"}
				verdict(t, JudgeVisibility(got, time.Second), good, tt.says)
				if len(w.names) != 0 {
					t.Errorf("%d new names were left on the mount", len(w.names))
				}
				clock := []string{"OK this node"}
				for _, c := range tt.clock {
					if c == "OK n" {
						c = "OK n, good"
					}
					clock = append(clock, c)
				}
				if tt.clock == nil {
					clock = append(clock, "OK good")
				}
				verdict(t, JudgeClock(ClockFacts{Synchronised: true}, got.Peers), clock)
			})
		})
	}
}

func TestAMeasurementThatCannotBeMade(t *testing.T) {
	eio := errors.New("input/output error")
	tests := []struct {
		name  string
		given Sightings
		want  []string
		says  string
	}{
		{"no other node", Sightings{}, []string{"WARN this node"}, "no other node"},
		{"etcd is away", Sightings{Away: true}, []string{"WARN this node"}, "etcd is out of reach"},
		{"another doctor", Sightings{Err: errors.New("another doctor")}, []string{"WARN this node"}, "another doctor"},
		{"not root", Sightings{Failed: fs.ErrPermission}, []string{"WARN this node"}, "as root"},
		{"the mount takes no writes, also while etcd is away", Sightings{Failed: eio, Away: true}, []string{"FAIL this node"}, "input/output error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { verdict(t, JudgeVisibility(tt.given, time.Second), tt.want, tt.says) })
	}
	for _, from := range []int{0, 3} {
		w := &world{names: map[string]time.Time{}, nodes: map[string]sees{"n": {}}, fail: eio, from: from}
		if got := Measure(t.Context(), w, w.ask, []Member{{Name: "n"}}, "r", DefaultLimits()); !errors.Is(got.Failed, eio) || len(got.Writes) != from {
			t.Errorf("a write fails after %d: %+v", from, got)
		}
	}
	// That time is up says nothing of the mount.
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("time is up"))
	w := &world{fail: ctx.Err()}
	if got := Measure(ctx, w, w.ask, nil, "r", DefaultLimits()); got.Failed != nil || got.Err == nil {
		t.Errorf("when time is up: %+v", got)
	}
	// Without others the writes are measured all the same.
	w = &world{}
	if got := Measure(t.Context(), w, w.ask, nil, "r", DefaultLimits()); len(got.Writes) != 5 {
		t.Errorf("%d writes, want 5", len(got.Writes))
	}
}

func TestJudgeClock(t *testing.T) {
	verdict(t, JudgeClock(ClockFacts{}, nil), []string{"WARN this node"}, "chronyd", "nothing is decided by them")
	verdict(t, JudgeClock(ClockFacts{Err: errors.New("no")}, nil), []string{"WARN this node"})
	// What cannot be told apart from a slow answer is no difference.
	verdict(t, JudgeClock(ClockFacts{Synchronised: true}, []Peer{{Node: Member{Name: "n"}, Ahead: 3 * time.Second, Within: 2500 * time.Millisecond}}), []string{"OK this node", "OK n"})
	if ReadClock().Err != nil {
		t.Error("the kernel does not tell the clock's state")
	}
}
