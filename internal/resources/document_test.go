package resources

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

func TestParseDocument(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       cluster.Resource
	}{
		{"the original's format: the path alone", "/vz/private/101\n", cluster.Resource{Path: "/vz/private/101"}},
		{"the path alone, without a line break", "/vz/private/101", cluster.Resource{Path: "/vz/private/101"}},
		{"line ends of another system", "/a\r\nSTATE=stopped\r\nMEMORY=5\r\n", cluster.Resource{Path: "/a", Want: cluster.WantStopped, Memory: 5}},
		{"all keys", "/a\nPRIORITY=4294967295\nSTATE=running\nMEMORY=1073741824\nVCPUS=2\nUUID=u\nLAST_NODE=0000000000000001\nWAITING=no room\nMIGRATING=0000000000000002\n",
			cluster.Resource{Path: "/a", Priority: 4294967295, Want: cluster.WantRunning, Memory: 1 << 30, VCPUs: 2, UUID: "u", LastNode: n1, Waiting: "no room", Migrating: n2}},
		{"an equals sign in a value", "/a\nWAITING=a=b\n", cluster.Resource{Path: "/a", Waiting: "a=b"}},
		{"comments, blank lines and unknown keys mean nothing", "/a\n# STATE=stopped\n\nCOLOR=red\nCOLOR=blue\n", cluster.Resource{Path: "/a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := ParseDocument("f", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			tt.want.ID, tt.want.Kind = "vm-x", cluster.KindVM
			if diff := cmp.Diff(tt.want, d.Resource("vm-x")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseDocumentRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"an empty file", "", 0, "is empty"},
		{"a binary file", "/a\n\x00\x01", 0, "is binary"},
		{"a file of NULs, as a crash leaves it", strings.Repeat("\x00", 100), 0, "is binary"},
		{"a huge file", "/a\n" + strings.Repeat("A=b\n", MaxSize/4), 0, "at most 65536"},
		{"a relative path", "vz/private\n", 1, "want the absolute path"},
		{"no path before the keys", "STATE=running\n", 1, "want the absolute path"},
		{"an empty first line", "\n/a\n", 1, "want the absolute path"},
		{"a path with a carriage return, which could not be written again", "/a\r\r\n", 1, "want the absolute path"},
		{"a half-written key", "/a\nSTATE=running\nMEM", 3, "may be half written"},
		{"a half-written value", "/a\nSTATE=runn", 2, "STATE=runn: want running or stopped"},
		{"a blank in a key", "/a\nMY KEY=1\n", 2, "is not KEY=VALUE"},
		{"a line that begins with the sign", "/a\n=1\n", 2, "is not KEY=VALUE"},
		{"a known key twice", "/a\nSTATE=running\nCOLOR=red\nSTATE=stopped\n", 4, "STATE is set a second time, first in line 2"},
		{"a priority that does not fit", "/a\nPRIORITY=4294967296\n", 2, "from 0 to 4294967295"},
		{"a negative memory", "/a\nMEMORY=-1\n", 2, "0 or more"},
		{"a state in another case", "/a\nSTATE=Running\n", 2, "want running or stopped"},
		{"a node that is none", "/a\nLAST_NODE=n1\n", 2, "want a host id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseDocument("dir/vm-x", []byte(tt.text))
			pe, ok := errors.AsType[*ParseError](err)
			if !ok || pe.Path != "dir/vm-x" || pe.Line != tt.line || !strings.Contains(pe.Msg, tt.want) {
				t.Errorf("error is %v, want one in line %d with %q", err, tt.line, tt.want)
			}
		})
	}
}

func TestUnknownLinesStayInOrderAndByteForByte(t *testing.T) {
	const text = "/old\n# made by hand\nCOLOR=red\r\nSTATE=stopped\n\nCOLOR = \n"
	for _, tt := range []struct{ name, text, want string }{
		{"a rewrite changes its own line only", "/old\n# by hand\nCOLOR=red \r\nSTATE=stopped\n\nSHAPE=a=b\n", "/new\n# by hand\nCOLOR=red \r\nSTATE=running\n\nSHAPE=a=b\nWAITING=no room\n"},
		{"a key that says nothing any more goes", "/old\nPRIORITY=5\nCOLOR=red\n", "/new\nCOLOR=red\nSTATE=running\nWAITING=no room\n"},
		{"unknown keys may be there twice", "/old\nX=1\nX=2\n", "/new\nX=1\nX=2\nSTATE=running\nWAITING=no room\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := ParseDocument("f", []byte(tt.text))
			try(t, err)
			d.Apply(cluster.Resource{Path: "/new", Want: cluster.WantRunning, Waiting: "no\nroom"})
			got, err := d.Bytes()
			try(t, err)
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := ParseDocument("f", []byte(text)); err == nil {
		t.Error("a key with a blank was accepted")
	}
}

func TestDocumentsThatCannotBeWritten(t *testing.T) {
	for _, tt := range []struct{ name, path, waiting string }{
		{"a relative path", "vz/1", ""},
		{"no path", "", ""},
		{"a path with a line break would become another line", "/a\nSTATE=stopped", ""},
		{"more than can be read again", "/a", strings.Repeat("x", MaxSize)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d Document
			d.Apply(cluster.Resource{Path: tt.path, Waiting: tt.waiting})
			if got, err := d.Bytes(); err == nil {
				t.Errorf("rendered %.80q", got)
			}
		})
	}
}

func TestEveryResourceReadsBackAsItWasWritten(t *testing.T) {
	node := rapid.SampledFrom([]cluster.NodeID{"", n1, n2})
	text := rapid.StringMatching(`[^\n\r\x00]{0,20}`)
	rapid.Check(t, func(t *rapid.T) {
		want := cluster.Resource{
			ID: "ct-1", Kind: cluster.KindCT, Path: "/" + text.Draw(t, "path"),
			Want:   rapid.SampledFrom([]cluster.Want{cluster.WantUnset, cluster.WantRunning, cluster.WantStopped}).Draw(t, "want"),
			Memory: cluster.Bytes(rapid.Int64Min(0).Draw(t, "memory")), VCPUs: rapid.IntMin(0).Draw(t, "vcpus"), UUID: text.Draw(t, "uuid"),
			Priority: rapid.Uint32().Draw(t, "priority"), LastNode: node.Draw(t, "last"), Waiting: text.Draw(t, "waiting"), Migrating: node.Draw(t, "migrating"),
		}
		d, err := ParseDocument("f", []byte(rapid.SampledFrom([]string{"/x\n", "/x\nSTATE=stopped\nK=v\nMEMORY=1", "/x\nWAITING=w\n#\nUUID=\n"}).Draw(t, "before")))
		try(t, err)
		d.Apply(want)
		data, err := d.Bytes()
		try(t, err)
		back, err := ParseDocument("f", data)
		try(t, err)
		if diff := cmp.Diff(want, back.Resource("ct-1")); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzParseDocument(f *testing.F) {
	for _, s := range []string{
		"/vz/private/101", "/a\nSTATE=running\nCOLOR=red\nMEMORY=1\n", "/a\r\nSTATE=stopped\r\nX=1\r\r\n", "/a\r\r\n", "/a\n\n\n#x\n\r\n", "/a\nX=1\nX=2\n=\n",
		"/a\nPRIORITY=007\nMEMORY=+5\nVCPUS=-0\nUUID=\n", "\x00", "/\n\xff=\xfe\n", "/a\n\n", "/a\nWAITING= x \n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDocument("f", data)
		if err != nil {
			if _, ok := errors.AsType[*ParseError](err); !ok {
				t.Fatalf("%v is no ParseError", err)
			}
			return
		}
		out, err := d.Bytes()
		if err != nil {
			if len(data) < MaxSize {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			return
		}
		again, err := ParseDocument("f", out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%q", err, out)
		}
		if diff := cmp.Diff(d.Resource("vm-x"), again.Resource("vm-x")); diff != "" {
			t.Fatal(diff)
		}
		twice, err := again.Bytes()
		if err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("a second rewrite differs: %v\n%q\n%q", err, out, twice)
		}
		if !bytes.Contains(data, []byte("\r")) {
			if want := append(bytes.TrimSuffix(bytes.Clone(data), []byte("\n")), '\n'); !bytes.Equal(out, want) {
				t.Fatalf("bytes changed:\n%q\n%q", want, out)
			}
		}
		d.Apply(d.Resource("vm-x"))
		applied, err := d.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := unknownLines(applied), unknownLines(out); !cmp.Equal(got, want) {
			t.Fatalf("unknown lines changed:\n%q\n%q", want, got)
		}
	})
}

func unknownLines(data []byte) (out []string) {
	for _, l := range strings.SplitAfter(string(data), "\n")[1:] {
		if key, _, ok := strings.Cut(l, "="); !ok || !isKnown(key) {
			out = append(out, l)
		}
	}
	return out
}
