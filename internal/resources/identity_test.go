package resources

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestTheFirstJoinFoundsTheCluster(t *testing.T) {
	s := newTestStore(t)
	second := Identity{V: 1, Name: "lab", UUID: "other", EtcdClusterID: 8}
	have, err := s.Found(t.Context(), second)
	try(t, err)
	if diff := cmp.Diff(testIdentity(), have); diff != "" {
		t.Errorf("the second join replaced it:\n%s", diff)
	}
	wantNoTemporaryFiles(t, s)
}

func TestOfManyFirstJoinsOneWins(t *testing.T) {
	s := NewStore(t.TempDir(), nil)
	const joins = 16
	got := make([]Identity, joins)
	var wg sync.WaitGroup
	for i := range joins {
		wg.Go(func() {
			id, err := s.Found(t.Context(), Identity{V: 1, Name: "lab", UUID: fmt.Sprint("uuid-", i)})
			if err != nil {
				t.Error(err)
			}
			got[i] = id
		})
	}
	wg.Wait()
	for _, id := range got {
		if id != got[0] || id.UUID == "" {
			t.Fatalf("joins disagree: %v", got)
		}
	}
	wantNoTemporaryFiles(t, s)
}

func TestAMountPointThatIsMissingIsNeverMade(t *testing.T) {
	mount := filepath.Join(t.TempDir(), "not-mounted")
	if _, err := NewStore(mount, nil).Found(t.Context(), testIdentity()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(mount); err == nil {
		t.Error("the mount point was made")
	}
}

func TestConnect(t *testing.T) {
	whole, err := testIdentity().bytes()
	try(t, err)
	for _, tt := range []struct {
		name, content, cluster string
		etcd                   uint64
		want                   error
		says                   string
	}{
		{name: "the right cluster", content: string(whole), cluster: "lab", etcd: 7},
		{name: "an etcd that is not known yet", content: string(whole), cluster: "lab"},
		{name: "another cluster's mount", content: string(whole), cluster: "prod", etcd: 7, want: ErrOtherCluster, says: `says cluster "lab", CLUSTER_NAME says "prod"`},
		{name: "an etcd that was rebuilt", content: string(whole), cluster: "lab", etcd: 8, want: ErrOtherCluster, says: "shaman join --recover"},
		{name: "half a file", content: string(whole[:30]), cluster: "lab", etcd: 7, says: "is damaged"},
		{name: "an empty file", content: "", cluster: "lab", etcd: 7, says: "is damaged"},
		{name: "NULs", content: strings.Repeat("\x00", 512), cluster: "lab", etcd: 7, says: "is damaged"},
		{name: "no uuid", content: `{"name":"lab"}`, cluster: "lab", etcd: 7, says: "is damaged: it has no uuid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t)
			write(t, s, "cluster", tt.content)
			_, err := s.Connect(t.Context(), tt.cluster, tt.etcd)
			if (err == nil) != (tt.says == "") || tt.want != nil && !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v, want %v with %q", err, tt.want, tt.says)
			}
			if _, err := s.Found(t.Context(), Identity{Name: "new", UUID: "new"}); (err == nil) != (tt.want != nil || tt.says == "") {
				t.Errorf("founding over it: %v", err)
			}
			if data, err := os.ReadFile(s.identityFile()); err != nil || string(data) != tt.content {
				t.Errorf("the file was touched: %q, %v", data, err)
			}
		})
	}
}

func TestAMountWithoutIdentity(t *testing.T) {
	s := NewStore(t.TempDir(), nil)
	if _, err := s.Connect(t.Context(), "lab", 7); !errors.Is(err, ErrNoCluster) {
		t.Errorf("error is %v, want ErrNoCluster", err)
	}
}

func TestAnIdentityThatIsNoFile(t *testing.T) {
	s := newTestStore(t)
	try(t, os.Remove(s.identityFile()))
	try(t, os.Symlink("/etc/hostname", s.identityFile()))
	if id, _, err := s.ReadIdentity(t.Context()); err == nil || errors.Is(err, ErrNoCluster) {
		t.Errorf("read %v, %v", id, err)
	}
}

func TestRecordEpoch(t *testing.T) {
	s := newTestStore(t)
	before, err := os.Stat(s.identityFile())
	try(t, err)
	for _, tt := range []struct {
		name  string
		epoch cluster.Epoch
		want  cluster.Epoch
		err   error
	}{
		{"the first master", 57, 57, nil},
		{"the same mastership again", 57, 57, nil},
		{"a newer master", 58, 58, nil},
		{"an etcd that went back in time", 57, 58, ErrOtherCluster},
		{"an etcd that began anew", 1, 58, ErrOtherCluster},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := s.RecordEpoch(t.Context(), tt.epoch); !errors.Is(err, tt.err) {
				t.Errorf("error is %v, want %v", err, tt.err)
			}
			want := testIdentity()
			want.Epoch = tt.want
			got, _, err := s.ReadIdentity(t.Context())
			try(t, err)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	after, err := os.Stat(s.identityFile())
	try(t, err)
	if !os.SameFile(before, after) || after.Size() != identitySize {
		t.Errorf("the identity was replaced, not overwritten: %d bytes", after.Size())
	}
}

func TestRecordEpochNeverMakesAnIdentity(t *testing.T) {
	s := newTestStore(t)
	try(t, os.Remove(s.identityFile()))
	if err := s.RecordEpoch(t.Context(), 1); !errors.Is(err, ErrNoCluster) {
		t.Errorf("error is %v, want ErrNoCluster", err)
	}
	if _, err := os.Stat(s.identityFile()); err == nil {
		t.Error("it is there now")
	}
}

func TestTheIdentityIsReadableForOtherTools(t *testing.T) {
	s := newTestStore(t)
	data, err := os.ReadFile(s.identityFile())
	try(t, err)
	var got map[string]any
	try(t, json.Unmarshal(data, &got))
	want := map[string]any{"v": 1.0, "name": "lab", "uuid": "8c0c9a5e", "etcd_cluster_id": 7.0, "generation": 1.0, "epoch": 0.0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPrepareNodeIsIdempotentAndLeavesWhatIsThere(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	try(t, writeSlot(slotFile(s, slotHeartbeat), beat("p", 5)))
	try(t, s.PrepareNode(t.Context(), n1, 1))
	wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\n"})
	var hb Heartbeat
	if err := readSlot(slotFile(s, slotHeartbeat), &hb); err != nil || hb != beat("p", 5) {
		t.Errorf("the heartbeat is %v now, %v", hb, err)
	}
	if err := s.PrepareNode(t.Context(), n1, 2); !errors.Is(err, ErrTaken) {
		t.Errorf("another incarnation over a repository: %v, want ErrTaken", err)
	}
	if before, err := s.JoinedBefore(t.Context(), n2); before || err != nil {
		t.Errorf("n2 joined before: %v, %v", before, err)
	}
}

func TestAnEtcdThatDoesNotKnowTheMarkWentBack(t *testing.T) {
	s := newTestStore(t)
	known := cluster.Marks{}
	try(t, s.CheckMark(t.Context(), known))
	known = known.With("m1")
	try(t, s.PutMark(t.Context(), "m1"))
	backup := known
	known = known.With("m2")
	try(t, s.CheckMark(t.Context(), known)) // etcd is written first: the mount may be one behind
	try(t, s.PutMark(t.Context(), "m2"))
	try(t, s.CheckMark(t.Context(), known))
	try(t, s.PutMark(t.Context(), "m1")) // the late write of a replaced master
	try(t, s.CheckMark(t.Context(), known))
	try(t, s.PutMark(t.Context(), "m2"))
	for name, m := range map[string]cluster.Marks{"a backup": backup, "a new etcd": {}} {
		if err := s.CheckMark(t.Context(), m); !errors.Is(err, cluster.ErrWentBack) {
			t.Errorf("%s: %v, want ErrWentBack", name, err)
		}
	}
	try(t, s.Rebind(t.Context(), 8))
	try(t, s.CheckMark(t.Context(), cluster.Marks{}))
	id, _, err := s.ReadIdentity(t.Context())
	try(t, err)
	if id.EtcdClusterID != 8 || id.Generation != 2 || id.Epoch != 0 || id.UUID != testIdentity().UUID {
		t.Errorf("the identity is %+v", id)
	}
}
