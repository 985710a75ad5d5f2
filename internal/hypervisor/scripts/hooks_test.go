package scripts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func newHooks(t *testing.T, l *lab, change func(*HookOptions)) *Hooks {
	t.Helper()
	o := HookOptions{
		Dirs: []string{l.shared(), l.local}, Mount: l.mount, StateDir: l.state, Cluster: "lab", Node: "00000000000000aa", Logger: l.log,
		Address: func(cluster.NodeID) string { return "10.0.0.2" },
	}
	if change != nil {
		change(&o)
	}
	h, err := NewHooks(o)
	must(t, err)
	return h
}

func TestNotify(t *testing.T) {
	l := newLab(t)
	out := filepath.Join(t.TempDir(), "out")
	l.script(t, l.shared(), "10-notify", "exit 3")
	l.script(t, l.shared(), "20-notify", "sleep 1000")
	l.script(t, l.local, "30-notify", `{ echo "$@"; env; echo end; } >>`+out)
	l.script(t, l.local, "demo-/40-notify", "touch "+out+".type") // events are no type's
	h := newHooks(t, l, func(o *HookOptions) { o.Timeout = time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.Notify(cluster.Event{Time: time.Unix(1, 0).UTC(), Node: "00000000000000aa", Subject: "00000000000000bb", Kind: "node-crashed", Resource: "ct-1", Failover: "00000000000000bb.2", Epoch: 7, Message: "it is\nsilent"})
	var lines []string
	eventually(t, "the third script has run", func() bool {
		data, _ := os.ReadFile(out)
		lines = strings.Split(string(data), "\n")
		return slices.Contains(lines, "end")
	})
	for _, want := range []string{
		"notify node-crashed 00000000000000bb ct-1", "EVENT=NODE_CRASHED", "SRC_NODE_ID=00000000000000bb", "IP_ADDRESS=10.0.0.2", "RESOURCE=ct-1", "SHAMAN_EVENT=node-crashed",
		"SHAMAN_SUBJECT=00000000000000bb", "SHAMAN_WRITER=00000000000000aa", "SHAMAN_FAILOVER=00000000000000bb.2", "SHAMAN_EPOCH=7", "SHAMAN_TIME=1970-01-01T00:00:01Z", "SHAMAN_CLUSTER=lab", "SHAMAN_MESSAGE=it is",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if _, err := os.Stat(out + ".type"); err == nil {
		t.Error("a type's script was run for an event")
	}
	if n := l.logs.FilterMessage("a hook script failed").Len(); n != 2 {
		t.Errorf("%d failures are logged, want 2", n)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}

func TestNotifyNeverBlocks(t *testing.T) {
	h := newHooks(t, newLab(t), func(o *HookOptions) { o.Queue = 3 })
	for range 10 { // nobody runs them
		h.Notify(cluster.Event{Kind: "state"})
	}
	if h.Lost() != 7 {
		t.Errorf("%d lost, want 7", h.Lost())
	}
}

func TestSchedule(t *testing.T) {
	const a, b = cluster.NodeID("00000000000000aa"), cluster.NodeID("00000000000000bb")
	l := newLab(t)
	seen := filepath.Join(t.TempDir(), "seen")
	l.script(t, l.shared(), "10-schedule", "echo ct-1 "+string(b)+"; exit 1") // a failure is no answer
	l.script(t, l.shared(), "20-schedule", "echo ct-1 "+string(a)+"; echo ct-2 0000000000000000; echo ct-9 "+string(a)+"; echo what is this; echo")
	l.script(t, l.local, "30-schedule", "cat >"+seen+"; echo ct-1 "+string(b)+"; echo ct-2 "+string(b))
	l.script(t, l.local, "40-schedule", "touch "+seen+".4") // nothing is left for it but ct-3
	l.script(t, l.local, "50-schedule", "echo ct-3 "+string(b))
	l.script(t, l.local, "60-schedule", "touch "+seen+".6")
	h := newHooks(t, l, nil)
	res := []cluster.Resource{{ID: "ct-1", Kind: "ct"}, {ID: "ct-2", Kind: "ct", Path: "/m/c 2", LastNode: "00000000000000cc", Priority: 5, Memory: 64}, {ID: "ct-3", Kind: "ct"}}
	nodes := []cluster.Node{{ID: a, Name: "node1", Address: "10.0.0.1", Capacity: cluster.Capacity{Memory: 100}, Usage: cluster.Usage{Memory: 30}, Roles: []cluster.Role{"CT", "VM"}}, {ID: b, Name: "node2"}}
	got := h.Schedule(t.Context(), res, nodes)
	if diff := cmp.Diff(map[cluster.ResourceID]cluster.NodeID{"ct-1": a, "ct-2": b, "ct-3": b}, got); diff != "" {
		t.Errorf("placed otherwise (-want +got):\n%s", diff)
	}
	data, _ := os.ReadFile(seen)
	want := "node\t" + string(a) + "\tnode1\t10.0.0.1\t100\t30\tCT,VM\nnode\t" + string(b) + "\tnode2\t\t0\t0\t\n" +
		"resource\tct-2\tct\t00000000000000cc\t5\t64\t/m/c 2\nresource\tct-3\tct\t\t0\t0\t\n"
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Errorf("the third script was given something else (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(seen + ".6"); err == nil {
		t.Error("a script was asked though nothing was left")
	}
	if len(res) != 3 || res[0].ID != "ct-1" {
		t.Error("the caller's list was changed")
	}
}

func TestLeave(t *testing.T) {
	l := newLab(t)
	out := filepath.Join(t.TempDir(), "out")
	l.script(t, l.local, "10-leave", "exit 1")
	l.script(t, l.local, "leave", "echo $1 $2 $SHAMAN_NODE >"+out)
	newHooks(t, l, nil).Leave(t.Context())
	if got, _ := os.ReadFile(out); string(got) != "leave 00000000000000aa 00000000000000aa\n" {
		t.Errorf("leave was given %q", got)
	}
}
