package etcd_test

import (
	"errors"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// putKey writes a key and returns the revision of the write.
func putKey(t *testing.T, cl *clientv3.Client, key, val string) int64 {
	t.Helper()
	rev, err := etcd.Commit(t.Context(), cl, nil, []clientv3.Op{clientv3.OpPut(key, val)})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func deleteKey(t *testing.T, cl *clientv3.Client, key string) {
	t.Helper()
	if _, err := cl.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

func value(t *testing.T, cl *clientv3.Client, key string) string {
	t.Helper()
	resp, err := cl.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestCommit(t *testing.T) {
	cl := etcdtest.Start(t).Client(t)
	mod := putKey(t, cl, "there", "old")
	for _, c := range []struct {
		name string
		cmp  clientv3.Cmp
		want error
	}{
		{"a key that is absent is absent", etcd.Absent("nowhere"), nil},
		{"a key that exists is not absent", etcd.Absent("there"), etcd.ErrConflict},
		{"a key as it was read is unchanged", etcd.Unchanged("there", mod), nil},
		{"a key of another revision has changed", etcd.Unchanged("there", mod-1), etcd.ErrConflict},
		{"an absent key is unchanged since revision 0", etcd.Unchanged("nowhere", 0), nil},
		{"a key that was deleted has changed", etcd.Unchanged("nowhere", mod), etcd.ErrConflict},
		{"a key that appeared has changed since revision 0", etcd.Unchanged("there", 0), etcd.ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := "written by " + c.name
			rev, err := etcd.Commit(t.Context(), cl, []clientv3.Cmp{c.cmp}, []clientv3.Op{clientv3.OpPut(key, "x")})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Commit returned %v, want %v", err, c.want)
			}
			if wrote := value(t, cl, key) == "x"; wrote != (c.want == nil) {
				t.Errorf("written: %v, with error %v", wrote, err)
			}
			if rev < mod {
				t.Errorf("revision %d, want at least %d", rev, mod)
			}
		})
	}
}

func TestCommitAsTellsDeposedFromConflict(t *testing.T) {
	const own = "master/1"
	for _, c := range []struct {
		name    string
		before  func(t *testing.T, cl *clientv3.Client)
		compare clientv3.Cmp
		want    error
	}{
		{"a master writes", nil, etcd.Absent("nowhere"), nil},
		{"a master meets a conflict", nil, etcd.Absent(own), etcd.ErrConflict},
		{
			"a master whose key is gone is deposed",
			func(t *testing.T, cl *clientv3.Client) { deleteKey(t, cl, own) }, etcd.Absent("nowhere"), etcd.ErrDeposed,
		},
		{
			"deposed goes before conflict",
			func(t *testing.T, cl *clientv3.Client) { deleteKey(t, cl, own); putKey(t, cl, "taken", "") }, etcd.Absent("taken"), etcd.ErrDeposed,
		},
		{
			"a key of the same name but made anew is another mastership",
			func(t *testing.T, cl *clientv3.Client) { deleteKey(t, cl, own); putKey(t, cl, own, "") }, etcd.Absent("nowhere"), etcd.ErrDeposed,
		},
		{
			"a key that was rewritten is the same mastership",
			func(t *testing.T, cl *clientv3.Client) { putKey(t, cl, own, "other value") }, etcd.Absent("nowhere"), nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := etcdtest.Start(t).Client(t)
			term := cluster.Term{Key: own, Epoch: cluster.Epoch(putKey(t, cl, own, ""))}
			if c.before != nil {
				c.before(t, cl)
			}
			_, err := etcd.CommitAs(t.Context(), cl, term, []clientv3.Cmp{c.compare}, []clientv3.Op{clientv3.OpPut("written", "x")})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("CommitAs returned %v, want %v", err, c.want)
			}
			if wrote := value(t, cl, "written") == "x"; wrote != (c.want == nil) {
				t.Errorf("written: %v, with error %v", wrote, err)
			}
		})
	}
}

func TestNoTermWritesNothing(t *testing.T) {
	cl := etcdtest.Start(t).Client(t)
	// Epoch 0 means "none", and a compare with create revision 0 would hold for
	// every absent key.
	_, err := etcd.CommitAs(t.Context(), cl, cluster.Term{Key: "master/none"}, nil, []clientv3.Op{clientv3.OpPut("written", "x")})
	if !errors.Is(err, etcd.ErrDeposed) || value(t, cl, "written") != "" {
		t.Errorf("without a term CommitAs returned %v and wrote %q, want ErrDeposed and nothing", err, value(t, cl, "written"))
	}
}
