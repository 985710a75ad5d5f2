package resources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func at(sec int) time.Time { return time.Date(2026, 1, 2, 3, 4, sec, 0, time.UTC) }

func messages(t testing.TB, s *Store) (out []string, damaged int) {
	t.Helper()
	all, damaged, err := s.Events(t.Context())
	try(t, err)
	for _, e := range all {
		out = append(out, string(e.Node[15:])+":"+e.Message)
	}
	return out, damaged
}

func TestEventsOfAllNodesAreMergedByTime(t *testing.T) {
	s := newTestStore(t)
	for n, secs := range map[cluster.NodeID][]int{n1: {1, 4, 5}, n2: {2, 3, 5}} {
		log := NewEventLog(s, n, zap.NewNop())
		for _, sec := range secs {
			try(t, log.write(t.Context(), []cluster.Event{{Time: at(sec), Node: n, Message: fmt.Sprint(sec)}}))
		}
	}
	got, damaged := messages(t, s)
	if diff := cmp.Diff([]string{"1:1", "2:2", "2:3", "1:4", "1:5", "2:5"}, got); diff != "" || damaged != 0 {
		t.Errorf("%d damaged\n%s", damaged, diff)
	}
}

func TestAnEventIsKeptWhole(t *testing.T) {
	s := newTestStore(t)
	want := cluster.Event{Time: at(1), Node: n1, Kind: "fenced", Subject: n2, Resource: "vm-a", Failover: "x.1", Epoch: 57, Message: "line\nbreak \x00 ä"}
	try(t, NewEventLog(s, n1, zap.NewNop()).write(t.Context(), []cluster.Event{want}))
	got, _, err := s.Events(t.Context())
	try(t, err)
	if diff := cmp.Diff([]cluster.Event{want}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedLinesSpoilNoOthers(t *testing.T) {
	for _, tt := range []struct {
		name, before string // in n1's log, before an event "new" is appended
		want         []string
		damaged      int
	}{
		{"a line that was cut", `{"time":"2026-01-02T03:04:01Z","node":"0000000000000001","mess`, []string{"1:new"}, 1},
		{"NULs, as a crash leaves them", strings.Repeat("\x00", 4096), []string{"1:new"}, 1},
		{"a line between whole ones", `{"time":"2026-01-02T03:04:01Z","node":"0000000000000001","message":"old"}` + "\ngarbage\n", []string{"1:old", "1:new"}, 1},
		{"empty lines are no damage", "\n\n", []string{"1:new"}, 0},
		{"a line longer than any event", strings.Repeat("x", 2<<20) + "\n", []string{"1:new"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t)
			write(t, s, "events/"+string(n1)+".jsonl", tt.before)
			try(t, NewEventLog(s, n1, zap.NewNop()).write(t.Context(), []cluster.Event{{Time: at(9), Node: n1, Message: "new"}}))
			got, damaged := messages(t, s)
			if diff := cmp.Diff(tt.want, got); diff != "" || damaged != tt.damaged {
				t.Errorf("%d damaged, want %d\n%s", damaged, tt.damaged, diff)
			}
		})
	}
}

func TestStrangeFilesAmongTheEventLogs(t *testing.T) {
	s := newTestStore(t)
	try(t, NewEventLog(s, n1, zap.NewNop()).write(t.Context(), []cluster.Event{{Time: at(1), Node: n1, Message: "a"}}))
	try(t, os.Mkdir(filepath.Join(s.root, "events/x.jsonl"), 0o755))
	try(t, unix.Mkfifo(filepath.Join(s.root, "events/y.jsonl"), 0o600))
	write(t, s, "events/notes.txt", "mine\n")
	got, damaged := messages(t, s)
	if diff := cmp.Diff([]string{"1:a"}, got); diff != "" || damaged != 2 {
		t.Errorf("%d damaged\n%s", damaged, diff)
	}
}

func TestAFullLogIsRotatedAndOneOldOneKept(t *testing.T) {
	s := newTestStore(t)
	log := NewEventLog(s, n1, zap.NewNop())
	file := filepath.Join(s.root, "events", string(n1)+".jsonl")
	for i, step := range []struct{ want []string }{{[]string{"1:0"}}, {[]string{"1:0", "1:1"}}, {[]string{"1:1", "1:2"}}} {
		if i > 0 { // what was written so far becomes too much
			data, err := os.ReadFile(file)
			try(t, err)
			try(t, os.WriteFile(file, append(data, strings.Repeat("\n", eventsMax)...), 0o644))
		}
		try(t, log.write(t.Context(), []cluster.Event{{Time: at(i), Node: n1, Message: fmt.Sprint(i)}}))
		got, _ := messages(t, s)
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("after event %d:\n%s", i, diff)
		}
	}
	if all, err := names(filepath.Join(s.root, "events")); err != nil || len(all) != 2 {
		t.Errorf("files: %v, %v", all, err)
	}
}

func TestTheEventLogWritesWhatWasQueuedBeforeItEnds(t *testing.T) {
	s := newTestStore(t)
	log := NewEventLog(s, n1, zap.NewNop())
	for i := range 100 {
		log.Add(cluster.Event{Time: at(0), Node: "forged", Message: fmt.Sprint(i)})
	}
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if err := log.Run(ctx); !errors.Is(err, over) {
		t.Errorf("Run returned %v", err)
	}
	got, _ := messages(t, s)
	if len(got) != 100 || got[0] != "1:0" || got[99] != "1:99" {
		t.Errorf("%d events: %v", len(got), got)
	}
}

func TestAddNeverBlocksAndSaysWhatIsNotWritten(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	log := NewEventLog(newTestStore(t), n1, zap.New(core))
	for i := range eventQueue + 3 { // nobody writes
		log.Add(cluster.Event{Message: fmt.Sprint(i)})
	}
	if n := logs.FilterField(zap.String("message", fmt.Sprint(eventQueue))).Len(); n != 1 || logs.Len() != 3 {
		t.Errorf("%d warnings, want 3", logs.Len())
	}
}
