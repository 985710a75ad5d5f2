package etcd_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"pgregory.net/rapid"
)

func object(t rapid.TB, s string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return m
}

func TestMerge(t *testing.T) {
	node := cluster.NodeRecord{V: 1, Name: "n1", Address: "10.0.0.1", Incarnation: 2}
	whole := `{"v":1,"name":"n1","address":"10.0.0.1","incarnation":2}`
	for _, c := range []struct {
		name, old, want string
	}{
		{"the first value is the record itself", "", whole},
		{"known fields are those of the record", `{"v":1,"name":"old","address":"a","incarnation":1}`, whole},
		{"a known field that became empty is dropped", `{"v":1,"name":"n1","stopped":"inactive","watchdog":{"armed":true},"roles":["VM"]}`, whole},
		{
			"unknown fields are kept as they were",
			`{"v":2,"name":"n1","later":{"deep":[1,2,null]},"big":12345678901234567890}`,
			`{"v":1,"name":"n1","address":"10.0.0.1","incarnation":2,"later":{"deep":[1,2,null]},"big":12345678901234567890}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := etcd.Merge([]byte(c.old), node)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(object(t, c.want), object(t, got)); diff != "" {
				t.Errorf("merged value (-want +got):\n%s", diff)
			}
			again, err := etcd.Merge([]byte(got), &node)
			if err != nil || c.old != "" && again != got {
				t.Errorf("merging again gave %s (%v), want no change of %s", again, err, got)
			}
		})
	}
	for _, old := range []string{"{", "[1]", `"text"`, "\x00"} {
		if got, err := etcd.Merge([]byte(old), node); err == nil {
			t.Errorf("Merge over %q gave %s, want an error: nothing is guessed at", old, got)
		}
	}
}

// TestMergeProperties: whatever was there, the known fields are those of the
// record, and no unknown one is lost.
func TestMergeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was := cluster.Failover{
			V: 1, Node: "00000000000000aa", Proof: rapid.SampledFrom([]string{"", "agent", "manual"}).Draw(t, "was proof"),
			Evidence: rapid.String().Draw(t, "was evidence"), SealedAt: rapid.SampledFrom([]string{"", "x"}).Draw(t, "was sealed"),
		}
		next := was
		next.Proof = rapid.SampledFrom([]string{"", "agent", "manual"}).Draw(t, "proof")
		next.Evidence = rapid.String().Draw(t, "evidence")
		next.SealedAt = ""
		later := rapid.MapOf(rapid.StringMatching(`x_[a-z]{1,8}`), rapid.OneOf(rapid.Int64Range(-1<<50, 1<<50).AsAny(), rapid.String().AsAny(), rapid.Bool().AsAny())).Draw(t, "fields of a later version")
		first, err := etcd.Encode(was)
		if err != nil {
			t.Fatal(err)
		}
		old := object(t, first)
		for k, v := range later {
			old[k] = v
		}
		raw, err := json.Marshal(old)
		if err != nil {
			t.Fatal(err)
		}
		got, err := etcd.Merge(raw, next)
		if err != nil {
			t.Fatal(err)
		}
		alone, err := etcd.Encode(next)
		if err != nil {
			t.Fatal(err)
		}
		want := object(t, alone)
		for k := range later {
			want[k] = object(t, string(raw))[k]
		}
		if diff := cmp.Diff(want, object(t, got)); diff != "" {
			t.Fatalf("merged value (-want +got):\n%s", diff)
		}
	})
}

// FuzzMerge feeds values that somebody else may have written: Merge either
// refuses them, or keeps each field that it does not know.
func FuzzMerge(f *testing.F) {
	for _, seed := range []string{"", "{}", "null", `{"v":1,"name":"n1"}`, `{"x":{"y":[1,2]}}`, `{"NAME":"up"}`, "[", `{"a":1,"a":2}`, `{"a":1e999}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, old []byte) {
		got, err := etcd.Merge(old, cluster.Confirm{V: 1, By: "root", At: "now"})
		if err != nil {
			return
		}
		var was, is map[string]json.RawMessage
		if err := json.Unmarshal([]byte(got), &is); err != nil {
			t.Fatalf("Merge wrote %q: %v", got, err)
		}
		if len(old) == 0 {
			return
		}
		if err := json.Unmarshal(old, &was); err != nil {
			t.Fatalf("Merge accepted %q: %v", old, err)
		}
		for k := range was {
			if _, ok := is[k]; !ok {
				t.Errorf("field %q was lost: %s", k, got)
			}
		}
	})
}
