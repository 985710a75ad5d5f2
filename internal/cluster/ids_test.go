package cluster

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestMakeResourceID(t *testing.T) {
	long := strings.Repeat("n", 201)
	for _, tt := range []struct {
		name string
		kind Kind
		ve   string
		want ResourceID
	}{
		{"a plain name stays as it is", KindVM, "web-1.example_x", "vm-web-1.example_x"},
		{"a blank is encoded", KindVM, "my web", "vm-my%20web"},
		{"a slash cannot leave the directory", KindCT, "../../etc", "ct-..%2F..%2Fetc"},
		{"bytes of UTF-8 are encoded one by one", KindVM, "ä", "vm-%C3%A4"},
		{"a percent sign is encoded itself", KindVM, "a%20b", "vm-a%2520b"},
		{"a tilde is encoded, since it marks a suffix of shaman's own", KindVM, "a~b", "vm-a%7Eb"},
		{"a name that ends like a reason gets its dot encoded", KindVM, "x.reason", "vm-x%2Ereason"},
		{"a name of exactly 200 bytes stays whole", KindVM, long[:200], ResourceID("vm-" + long[:200])},
		{"a name over 200 bytes is cut and hashed", KindVM, long, ResourceID("vm-" + long[:160] + "~291c4194382c6bd5")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, MakeResourceID(tt.kind, tt.ve)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// anyName draws names that are hard for an encoding: with its own marks in
// them, and about as long as its limits.
var anyName = rapid.Custom(func(t *rapid.T) string {
	part := rapid.OneOf(rapid.StringN(1, 40, -1), rapid.SampledFrom([]string{".reason", "%2Ereason", "%", "~", "-", ".", "/", "\x00", "\n", "vm-"}))
	s := strings.Join(rapid.SliceOfN(part, 1, 6).Draw(t, "parts"), "")
	return s + strings.Repeat("x", rapid.SampledFrom([]int{0, 0, 100, 159, 160, 199, 200, 201, 500}).Draw(t, "padding"))
})

func TestEveryResourceIDIsAUsableFileName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := anyName.Draw(t, "name")
		kind := rapid.SampledFrom([]Kind{KindVM, KindCT, "iscsi", "s3"}).Draw(t, "kind")
		id := MakeResourceID(kind, name)
		if got, err := ParseResourceID(string(id)); err != nil || got != id {
			t.Fatalf("ParseResourceID(%q) = %q, %v", id, got, err)
		}
		if id.Kind() != kind {
			t.Fatalf("kind of %q is %q, want %q", id, id.Kind(), kind)
		}
		if longest := string(id) + "~0123456789abcdef.reason"; len(longest) > 255 {
			t.Fatalf("%q leaves no room for a suffix and a reason: %d bytes", id, len(longest))
		}
	})
}

func TestShortNamesDecodeToThemselves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := anyName.Draw(t, "name")
		id := MakeResourceID(KindVM, name)
		if strings.Contains(string(id), "~") {
			return // shortened: only the hash tells such names apart
		}
		back, err := url.PathUnescape(strings.TrimPrefix(string(id), "vm-"))
		if err != nil || back != name {
			t.Fatalf("%q decodes to %q (%v), want %q", id, back, err, name)
		}
	})
}

func TestDifferentNamesGetDifferentIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyName.Draw(t, "a")
		b := rapid.OneOf(anyName, rapid.Just(a+"x"), rapid.Just(strings.ToUpper(a)),
			rapid.Just(strings.TrimPrefix(string(MakeResourceID(KindVM, a)), "vm-"))).Draw(t, "b")
		if a != b && MakeResourceID(KindVM, a) == MakeResourceID(KindVM, b) {
			t.Fatalf("%q and %q share the id %q", a, b, MakeResourceID(KindVM, a))
		}
	})
}

func TestParseResourceIDRefuses(t *testing.T) {
	for _, tt := range []struct{ name, id, want string }{
		{"an empty name", "", "want <type>-<name>"},
		{"a name without a type", "web", "want <type>-<name>"},
		{"an empty type", "-web", "want <type>-<name>"},
		{"nothing after the type", "vm-", "want <type>-<name>"},
		{"a dot file", ".vm-web", "does not start with '.'"},
		{"the reason of a broken resource", "vm-web.reason", "'.reason'"},
		{"a name that leaves no room for its reason", "vm-" + strings.Repeat("x", 246), "at most 248 bytes"},
		{"a type in upper case", "VM-web", "the type \"VM\""},
		{"a way out of the directory", "vm-../x", "encode it"},
		{"a line break", "vm-a\nb", "encode it"},
		{"a NUL", "vm-a\x00", "encode it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseResourceID(tt.id)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestParseNodeID(t *testing.T) {
	for _, tt := range []struct {
		name, id string
		ok       bool
	}{
		{"16 lower-case digits are an id", "0123456789abcdef", true},
		{"upper case is refused, since a directory is named after it", "0123456789ABCDEF", false},
		{"15 digits are too few", "0123456789abcde", false},
		{"17 digits are too many", "0123456789abcdef0", false},
		{"16 bytes with something else in them are refused", "0123456789abcde/", false},
		{"nothing is refused", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseNodeID(tt.id)
			if tt.ok != (err == nil) || tt.ok && string(got) != tt.id {
				t.Errorf("ParseNodeID(%q) = %q, %v", tt.id, got, err)
			}
		})
	}
}

func TestPoolIDRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := PoolID{
			Node:        NodeID(rapid.StringMatching(`[0-9a-f]{16}`).Draw(t, "node")),
			Incarnation: Incarnation(rapid.Int64Min(0).Draw(t, "incarnation")),
		}
		got, err := ParsePoolID(want.String())
		if err != nil || got != want {
			t.Fatalf("ParsePoolID(%q) = %v, %v", want, got, err)
		}
	})
}

func TestParsePoolIDRefuses(t *testing.T) {
	const node = "0123456789abcdef"
	for _, tt := range []struct{ name, id string }{
		{"a host id alone", node},
		{"an empty incarnation", node + "."},
		{"a negative incarnation", node + ".-1"},
		{"a sign", node + ".+1"},
		{"leading zeros, which would name one directory twice", node + ".01"},
		{"something behind the number", node + ".1x"},
		{"a number that does not fit", node + ".9223372036854775808"},
		{"a short host id", "0123.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := ParsePoolID(tt.id); err == nil {
				t.Errorf("ParsePoolID(%q) = %v, want an error", tt.id, got)
			}
		})
	}
}

func TestRoleOf(t *testing.T) {
	if diff := cmp.Diff(Role("ISCSI"), RoleOf("iscsi")); diff != "" {
		t.Error(diff)
	}
}
