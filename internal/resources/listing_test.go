package resources

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// strange puts everything that is no resource into a directory of the mount.
func strange(t *testing.T, s *Store, dir string) {
	t.Helper()
	write(t, s, dir+"vm-empty", "")
	write(t, s, dir+"vm-binary", "\x7fELF\x00")
	write(t, s, dir+"vm-huge", "/a\n"+strings.Repeat("X=1\n", MaxSize))
	write(t, s, dir+"vm-half", "/a\nSTATE=runn")
	write(t, s, dir+"vm-web.reason", "/a\n")
	write(t, s, dir+"no_type", "/a\n")
	write(t, s, dir+"vm-bad name", "/a\n")
	try(t, os.Mkdir(filepath.Join(s.root, dir+"vm-directory"), 0o755))
	try(t, unix.Mkfifo(filepath.Join(s.root, dir+"vm-fifo"), 0o600))
	try(t, os.Symlink("vm-good", filepath.Join(s.root, dir+"vm-link")))
	try(t, os.Symlink("/nowhere", filepath.Join(s.root, dir+"vm-dangling")))
	try(t, unix.Mknod(filepath.Join(s.root, dir+"vm-socket"), unix.S_IFSOCK|0o600, 0))
}

var allStrange = []string{"no_type", "vm-bad name", "vm-binary", "vm-dangling", "vm-directory", "vm-empty", "vm-fifo", "vm-half", "vm-huge", "vm-link", "vm-socket", "vm-web.reason"}

func TestStrangeFilesAreReportedAndLeftWhereTheyAre(t *testing.T) {
	s := newTestStore(t, n1)
	strange(t, s, own(n1, ""))
	write(t, s, own(n1, "vm-good"), "/good\nCOLOR=red\n")
	write(t, s, own(n1, ".vm-hidden"), "/hidden\n")
	for _, forced := range []bool{false, true, false} {
		l, err := s.Repository(t.Context(), n1, forced)
		if err != nil {
			t.Fatalf("one strange file hides all others: %v", err)
		}
		if diff := cmp.Diff([]cluster.Resource{{ID: "vm-good", Kind: "vm", Path: "/good", Owner: n1}}, l.Resources); diff != "" {
			t.Error(diff)
		}
		var got []string
		for _, u := range l.Unparseable {
			got = append(got, u.ID)
			if u.File != filepath.Join(s.RepositoryDir(n1), u.ID) || u.Owner != n1 || u.Err == nil {
				t.Errorf("%+v", u)
			}
		}
		if diff := cmp.Diff(allStrange, got); diff != "" {
			t.Error(diff)
		}
	}
	if left, err := names(s.RepositoryDir(n1)); err != nil || len(left) != len(allStrange)+1 {
		t.Errorf("there are %v now, %v", left, err)
	}
}

func TestStrangeFilesOfADeadNodeDoNotHoldItsFailover(t *testing.T) {
	s := newTestStore(t, n1, n2)
	strange(t, s, own(n1, ""))
	write(t, s, own(n1, "vm-good"), "/good\n")
	p := pool(n1, 1)
	try(t, s.Seal(t.Context(), p))
	l, err := s.Pool(t.Context(), p, true)
	try(t, err)
	for _, u := range l.Unparseable {
		try(t, s.MarkBroken(t.Context(), Place{Pool: p}, u.ID, cluster.BrokenReason{Node: n1, Error: u.Err.Error()}))
	}
	_, err = s.Claim(t.Context(), n2, 1, p, []cluster.ResourceID{"vm-good"})
	try(t, err)
	try(t, s.MarkDone(t.Context(), p))
	if all, err := s.Broken(t.Context()); err != nil || len(all) != len(allStrange) {
		t.Errorf("%d of %d are in broken, %v", len(all), len(allStrange), err)
	}
}

func TestALookAtAFileThatIsStrange(t *testing.T) {
	s := newTestStore(t, n1)
	strange(t, s, own(n1, ""))
	for _, name := range []string{"vm-empty", "vm-directory", "vm-fifo", "vm-link", "vm-socket"} {
		_, err := s.Own(n1).Look(t.Context(), 1, cluster.ResourceID(name))
		if _, ok := errors.AsType[*ParseError](err); !ok {
			t.Errorf("%s: error is %v, want a ParseError", name, err)
		}
		err = s.Own(n1).Update(t.Context(), 1, cluster.ResourceID(name), func(r *cluster.Resource) { r.Path = "/x" })
		if _, ok := errors.AsType[*ParseError](err); !ok {
			t.Errorf("%s: update: error is %v, want a ParseError", name, err)
		}
	}
}

func TestAChangedFileIsReadAgainThoughItWasRemembered(t *testing.T) {
	s := newTestStore(t, n1)
	file := filepath.Join(s.root, own(n1, "vm-a"))
	long := time.Now().Add(time.Hour) // past the time in which a stamp may hide a change
	read := func() cluster.Resource {
		t.Helper()
		r, err := s.load(s.RepositoryDir(n1), "vm-a", long)
		try(t, err)
		return r
	}
	write(t, s, own(n1, "vm-a"), "/a\n")
	if got := read().Path; got != "/a" || len(s.cache.files) != 1 {
		t.Fatalf("read %s, %d files are remembered", got, len(s.cache.files))
	}
	try(t, s.Put(t.Context(), n1, 1, "vm-a", Document{Path: "/b"}, false)) // of the same size
	if got := read().Path; got != "/b" {
		t.Errorf("after a replacement: %s", got)
	}
	write(t, s, own(n1, "vm-a"), "/a\nSTATE=stopped\n") // in place
	if got := read().Want; got != cluster.WantStopped {
		t.Errorf("after an edit in place: %s", got)
	}
	stamp, err := os.Stat(file)
	try(t, err)
	eventually(t, "an edit shows whose time stamp was set back", func() bool { // a tick of the kernel's clock later
		write(t, s, own(n1, "vm-a"), "/c\nSTATE=stopped\n")
		try(t, os.Chtimes(file, time.Time{}, stamp.ModTime()))
		return read().Path == "/c"
	})
	try(t, os.Remove(file))
	if _, err := s.load(s.RepositoryDir(n1), "vm-a", long); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a deletion: %v", err)
	}
}

func TestAFreshFileIsNotRemembered(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	_, err := s.load(s.RepositoryDir(n1), "vm-a", time.Now())
	try(t, err)
	if len(s.cache.files) != 0 {
		t.Error("remembered by a stamp that need not tell its next change apart")
	}
}

func TestCensus(t *testing.T) {
	s := newTestStore(t, n1, n2)
	write(t, s, own(n1, "vm-a"), "/a\n")
	write(t, s, own(n1, "vm-bad"), "")
	write(t, s, inPool(pool(n3, 4), incFile), "4\n")
	write(t, s, inPool(pool(n3, 4), doneFile), "")
	write(t, s, inPool(pool(n3, 4), "vm-p"), "/p\n")
	write(t, s, inPool(pool(n3, 5), incFile), "torn")
	write(t, s, inPool(pool(n3, 5), "vm-q"), "/q\n")
	write(t, s, "broken/vm-b", "/b\n")
	write(t, s, "pool/.tmp/vm-x", "/x\n")
	write(t, s, "pool/elsewhere/vm-x", "/x\n")
	write(t, s, "md.short/resources/vm-x", "/x\n")
	write(t, s, own(n2, incFile), "") // a crash took its content
	try(t, os.Mkdir(s.nodeDir(n3), 0o755))
	got, err := s.Census(t.Context())
	if err != nil {
		t.Fatalf("one bad directory hides all others: %v", err)
	}
	var unparseable []string
	for _, u := range got.Unparseable {
		unparseable = append(unparseable, strings.TrimPrefix(u.File, s.root+"/"))
	}
	if diff := cmp.Diff([]string{own(n1, "vm-bad"), own(n2, incFile), inPool(pool(n3, 5), incFile)}, unparseable); diff != "" {
		t.Errorf("unparseable:\n%s", diff)
	}
	for n, l := range got.Repositories {
		l.Unparseable = nil
		got.Repositories[n] = l
	}
	if diff := cmp.Diff(map[cluster.NodeID]Listing{
		n1: {Inc: 1, HasInc: true, Resources: []cluster.Resource{{ID: "vm-a", Kind: "vm", Path: "/a", Owner: n1}}},
		n2: {Resources: []cluster.Resource{}},
	}, got.Repositories); diff != "" {
		t.Errorf("repositories:\n%s", diff)
	}
	if diff := cmp.Diff(map[cluster.PoolID]Listing{
		pool(n3, 4): {Inc: 4, HasInc: true, Done: true, Resources: []cluster.Resource{{ID: "vm-p", Kind: "vm", Path: "/p", Pool: pool(n3, 4)}}},
		pool(n3, 5): {Resources: []cluster.Resource{{ID: "vm-q", Kind: "vm", Path: "/q", Pool: pool(n3, 5)}}},
	}, got.Pools); diff != "" {
		t.Errorf("pools:\n%s", diff)
	}
	if len(got.Broken) != 1 || got.Broken[0].Resource.Path != "/b" {
		t.Errorf("broken: %+v", got.Broken)
	}
}

func TestACensusOfAMountThatIsGoneIsAnError(t *testing.T) {
	for _, lost := range []string{".", "pool", "broken"} {
		s := newTestStore(t, n1)
		try(t, os.Rename(filepath.Join(s.root, lost), filepath.Join(t.TempDir(), "away")))
		if c, err := s.Census(t.Context()); err == nil {
			t.Errorf("without %s the mount holds %+v", lost, c)
		}
	}
}
