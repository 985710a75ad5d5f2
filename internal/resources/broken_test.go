package resources

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func reason(n cluster.NodeID) cluster.BrokenReason {
	return cluster.BrokenReason{Node: n, Operation: "start", Error: "no disk", Attempts: 2, Time: "2026-01-02T03:04:05Z"}
}

func reasonText(t tester, n cluster.NodeID) string {
	t.Helper()
	b, err := json.MarshalIndent(reason(n), "", "  ")
	try(t, err)
	return string(b) + "\n"
}

func TestMarkBroken(t *testing.T) {
	mine, theirs := reasonText(t, n1), reasonText(t, n2)
	const suffix = "~" + string(n1)
	for _, tt := range []struct {
		name   string
		before map[string]string
		file   string // in n1's repository
		want   map[string]string
		err    error
	}{
		{name: "a free name", file: "vm-a", want: map[string]string{"broken/vm-a": "x", "broken/vm-a.reason": mine}},
		{name: "a resource of this name is broken already", file: "vm-a",
			before: map[string]string{"broken/vm-a": "old", "broken/vm-a.reason": theirs},
			want:   map[string]string{"broken/vm-a": "old", "broken/vm-a.reason": theirs, "broken/vm-a" + suffix: "x", "broken/vm-a" + suffix + ".reason": mine}},
		{name: "so are both names", file: "vm-a", err: ErrTaken,
			before: map[string]string{"broken/vm-a": "old", "broken/vm-a.reason": mine, "broken/vm-a" + suffix: "older", "broken/vm-a" + suffix + ".reason": mine},
			want:   map[string]string{"broken/vm-a": "old", "broken/vm-a.reason": mine, "broken/vm-a" + suffix: "older", "broken/vm-a" + suffix + ".reason": mine, own(n1, "vm-a"): "x"}},
		{name: "a reason that this node left over", file: "vm-a",
			before: map[string]string{"broken/vm-a.reason": strings.Replace(mine, "no disk", "earlier", 1)},
			want:   map[string]string{"broken/vm-a": "x", "broken/vm-a.reason": mine}},
		{name: "a reason that another node left over, or is about to use", file: "vm-a",
			before: map[string]string{"broken/vm-a.reason": theirs},
			want:   map[string]string{"broken/vm-a.reason": theirs, "broken/vm-a" + suffix: "x", "broken/vm-a" + suffix + ".reason": mine}},
		{name: "a reason that another node is writing just now", file: "vm-a",
			before: map[string]string{"broken/vm-a.reason": ""},
			want:   map[string]string{"broken/vm-a.reason": "", "broken/vm-a" + suffix: "x", "broken/vm-a" + suffix + ".reason": mine}},
		{name: "a broken resource whose reason was lost is not replaced", file: "vm-a",
			before: map[string]string{"broken/vm-a": "old"},
			want:   map[string]string{"broken/vm-a": "old", "broken/vm-a" + suffix: "x", "broken/vm-a" + suffix + ".reason": mine}},
		{name: "a file that looks like the reason of another", file: "vm-a.reason",
			before: map[string]string{"broken/vm-a": "old", "broken/vm-a.reason": theirs},
			want:   map[string]string{"broken/vm-a": "old", "broken/vm-a.reason": theirs, "broken/vm-a.reason" + suffix: "x", "broken/vm-a.reason" + suffix + ".reason": mine}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t, n1)
			for name, content := range tt.before {
				write(t, s, name, content)
			}
			write(t, s, own(n1, tt.file), "x")
			if err := s.MarkBroken(t.Context(), Place{Node: n1, Incarnation: 1}, tt.file, reason(n1)); !errors.Is(err, tt.err) {
				t.Errorf("error is %v, want %v", err, tt.err)
			}
			wantHoldings(t, s, tt.want)
		})
	}
}

func TestEveryFileOfASealedRepositoryCanBeQuarantined(t *testing.T) {
	long := strings.Repeat("g", 255)
	for _, name := range []string{long, long[:248], long[:247] + ".reason", "no-type", "vm-\xff\n", "~"} {
		s := newTestStore(t, n1)
		write(t, s, own(n1, name), "\x00 bytes")
		try(t, s.Seal(t.Context(), pool(n1, 1)))
		if err := s.MarkBroken(t.Context(), Place{Pool: pool(n1, 1)}, name, reason(n1)); err != nil {
			t.Errorf("%.20q: %v", name, err)
			continue
		}
		all, err := s.Broken(t.Context())
		try(t, err)
		if len(all) != 1 || all[0].Reason != reason(n1) || all[0].Err == nil {
			t.Errorf("%.20q: broken lists %+v", name, all)
		}
		data, err := os.ReadFile(all[0].File)
		if err != nil || string(data) != "\x00 bytes" {
			t.Errorf("%.20q: it holds %q, %v", name, data, err)
		}
		try(t, s.MarkDone(t.Context(), pool(n1, 1)))
	}
}

func TestBrokenNeedsTheFileAndTheOwner(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	for _, tt := range []struct {
		name string
		from Place
		file string
		want error
	}{
		{"a file that is not there", Place{Node: n1, Incarnation: 1}, "vm-x", ErrGone},
		{"a file in another place", Place{Pool: pool(n1, 1)}, "vm-a", ErrGone},
		{"another incarnation", Place{Node: n1, Incarnation: 2}, "vm-a", ErrSealed},
	} {
		if err := s.MarkBroken(t.Context(), tt.from, tt.file, reason(n1)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\n"})
}

// "Not there" must be known: a look that fails says neither gone nor taken.
func TestALookThatFailsIsNoVerdict(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	tooLong := strings.Repeat("x", 300) // ENAMETOOLONG: a look that cannot succeed
	for what, err := range map[string]error{
		"broken": s.MarkBroken(t.Context(), Place{Node: n1, Incarnation: 1}, tooLong, reason(n1)),
		"rename": s.Rename(t.Context(), n1, 1, "vm-a", cluster.ResourceID(tooLong)),
	} {
		if err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrTaken) {
			t.Errorf("%s: error is %v, want one that decides nothing", what, err)
		}
	}
}

func TestBrokenLists(t *testing.T) {
	s := newTestStore(t)
	write(t, s, "broken/ct-1", "/1\nPRIORITY=2\n")
	write(t, s, "broken/ct-1.reason", reasonText(t, n2))
	write(t, s, "broken/ct-2", "/2\n")
	write(t, s, "broken/ct-3", "/3\n")
	write(t, s, "broken/ct-3.reason", "{")
	write(t, s, "broken/ct-4", "\x00")
	write(t, s, "broken/ct-5.reason", reasonText(t, n1))
	try(t, os.Mkdir(filepath.Join(s.brokenDir(), "ct-6"), 0o755))
	got, err := s.Broken(t.Context())
	try(t, err)
	type row struct {
		ID       cluster.ResourceID
		Path     string
		Node     cluster.NodeID
		Readable bool
	}
	var rows []row
	for _, b := range got {
		rows = append(rows, row{b.Resource.ID, b.Resource.Path, b.Reason.Node, b.Err == nil})
	}
	want := []row{{"ct-1", "/1", n2, true}, {"ct-2", "/2", "", true}, {"ct-3", "/3", "", false}, {"ct-4", "", "", false}, {"ct-6", "", "", false}}
	if diff := cmp.Diff(want, rows, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}
