package resources

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestClaimBroken(t *testing.T) {
	const suffix = "~" + string(n1)
	for _, tt := range []struct {
		name         string
		before, want map[string]string
		path         string
		inc          cluster.Incarnation
		as           cluster.ResourceID
		err          error
	}{
		{name: "with its reason", before: map[string]string{"broken/vm-a": "/a\n", "broken/vm-a.reason": "{}"}, as: "vm-a", want: map[string]string{own(n1, "vm-a"): "/a\n"}},
		{name: "without a reason", before: map[string]string{"broken/vm-a": "/a\n"}, as: "vm-a", want: map[string]string{own(n1, "vm-a"): "/a\n"}},
		{name: "under another name if its own is taken", before: map[string]string{"broken/vm-a": "/a\n", own(n1, "vm-a"): "/b\n"}, as: cluster.ResourceID("vm-a" + suffix),
			want: map[string]string{own(n1, "vm-a"): "/b\n", own(n1, "vm-a"+suffix): "/a\n"}},
		{name: "not another VE's", before: map[string]string{"broken/vm-a": "/b\n", "broken/vm-a.reason": "{}"}, err: ErrGone, want: map[string]string{"broken/vm-a": "/b\n", "broken/vm-a.reason": "{}"}},
		{name: "not what is not there", before: map[string]string{"broken/vm-a.reason": "{}"}, err: ErrGone, want: map[string]string{"broken/vm-a.reason": "{}"}},
		{name: "not into another's repository", inc: 2, before: map[string]string{"broken/vm-a": "/a\n"}, err: ErrSealed, want: map[string]string{"broken/vm-a": "/a\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t, n1)
			for name, content := range tt.before {
				write(t, s, name, content)
			}
			inc := max(tt.inc, 1)
			as, err := s.ClaimBroken(t.Context(), n1, inc, "vm-a", "/a")
			if !errors.Is(err, tt.err) || as != tt.as {
				t.Errorf("as %q, %v; want %q, %v", as, err, tt.as, tt.err)
			}
			wantHoldings(t, s, tt.want)
		})
	}
}

// A reason that somebody else has written since belongs to what comes next.
func TestTheReasonOfSomethingElseStays(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, "broken/vm-a.reason", "new")
	try(t, s.dropReason(filepath.Join(s.brokenDir(), "vm-a"), []byte("old")))
	wantHoldings(t, s, map[string]string{"broken/vm-a.reason": "new"})
	write(t, s, "broken/vm-b", "/b\n")
	write(t, s, "broken/vm-b.reason", "same")
	try(t, s.dropReason(filepath.Join(s.brokenDir(), "vm-b"), []byte("same")))
	wantHoldings(t, s, map[string]string{"broken/vm-a.reason": "new", "broken/vm-b": "/b\n", "broken/vm-b.reason": "same"})
}

func TestAbsentAndDropBroken(t *testing.T) {
	mount := t.TempDir()
	s := newMount(t, mount, n1)
	try(t, os.MkdirAll(filepath.Join(mount, "ve", "there"), 0o755))
	for path, want := range map[string]string{
		filepath.Join(mount, "ve", "there"):       "there",
		filepath.Join(mount, "ve", "gone"):        "absent",
		filepath.Join(mount, "no-parent", "gone"): "unknown",
		"/elsewhere/gone":                         "there",
	} {
		absent, err := s.Absent(t.Context(), path)
		got := map[bool]string{true: "absent", false: "there"}[absent]
		if err != nil {
			got = "unknown"
		}
		if got != want {
			t.Errorf("%s: %s (%v), want %s", strings.TrimPrefix(path, mount), got, err, want)
		}
		write(t, s, "broken/vm-a", path+"\n")
		write(t, s, "broken/vm-a.reason", "{}")
		err = s.DropBroken(t.Context(), "vm-a", path)
		if _, serr := os.Stat(filepath.Join(s.brokenDir(), "vm-a")); errors.Is(serr, os.ErrNotExist) != (want == "absent") || (err == nil) != (want == "absent") {
			t.Errorf("drop the resource of %s: %v; it is dropped if there is nothing at its path, and only then", path, err)
		}
	}
	// An empty directory where the mount was: nothing is said to be absent.
	try(t, os.Rename(filepath.Join(s.root, "cluster"), filepath.Join(s.root, "cluster.away")))
	if absent, err := s.Absent(t.Context(), filepath.Join(mount, "ve", "gone")); err == nil || absent {
		t.Errorf("absent %v, %v, on a mount that is not there", absent, err)
	}
}
