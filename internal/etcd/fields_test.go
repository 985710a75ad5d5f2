package etcd

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// onlyKnown is a shortcut past the decoder: it may say no to what has known keys
// only, never yes to what has another one.
func TestOnlyKnownNeverOverlooksAKey(t *testing.T) {
	known := map[string]bool{"a": true, "b": true}
	value := rapid.Custom(func(t *rapid.T) any {
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			return rapid.String().Draw(t, "text")
		case 1:
			return rapid.Int().Draw(t, "number")
		case 2:
			return []any{"a", map[string]any{rapid.String().Draw(t, "inner key"): "z"}, "b"}
		case 3:
			return map[string]any{rapid.StringMatching(`[a-z":,{}\\]{0,4}`).Draw(t, "nested key"): []any{1, "x"}}
		}
		return nil
	})
	rapid.Check(t, func(t *rapid.T) {
		object := map[string]any{}
		for range rapid.IntRange(0, 4).Draw(t, "keys") {
			object[rapid.SampledFrom([]string{"a", "b", "c", "", `q"`, `b\`, "é"}).Draw(t, "key")] = value.Draw(t, "value")
		}
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "indented") {
			if text, err = json.MarshalIndent(object, " ", "\t"); err != nil {
				t.Fatal(err)
			}
		}
		all := true
		for k := range object {
			all = all && known[k]
		}
		switch got := onlyKnown(text, known); {
		case got && !all:
			t.Fatalf("%s has another key", text)
		case !got && all:
			t.Fatalf("%s has known keys only, and none with an escape", text)
		}
	})
	for _, bad := range []string{"", "[]", `"a"`, "{", `{"a":1`, `{"a":"`, `{"a":"\`, "7"} {
		if onlyKnown([]byte(bad), known) {
			t.Errorf("%q is no object", bad)
		}
	}
}
