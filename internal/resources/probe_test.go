package resources

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAProbeIsSeenAsItWasLastWritten(t *testing.T) {
	ctx, mount := t.Context(), t.TempDir()
	s := NewStore(mount, nil)
	if err := s.WriteProbe(ctx, n1, "a"); err == nil {
		t.Error("a probe was written where there is no cluster: this may be the directory under a lost mount")
	}
	if err := os.Mkdir(s.Root(), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Sight(ctx, string(n1)); err != nil || got.Found {
		t.Errorf("before the first write: %+v, %v; want nothing found", got, err)
	}
	for _, token := range []string{"a", "b"} {
		if err := s.WriteProbe(ctx, n1, token); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Sight(ctx, string(n1)); err != nil || !got.Found || got.Token != token || got.At == "" {
			t.Errorf("after %q was written: %+v, %v", token, got, err)
		}
	}
	name := string(n1) + ".x1"
	if err := errors.Join(s.CreateProbe(ctx, name, "c"), s.CreateProbe(ctx, string(n2)+".x1", "d")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Sight(ctx, name); err != nil || got.Token != "c" {
		t.Errorf("a new name: %+v, %v", got, err)
	}
	if err := s.ClearProbes(ctx, n1); err != nil {
		t.Fatal(err)
	}
	for want, name := range map[bool]string{false: name, true: string(n2) + ".x1"} {
		if got, err := s.Sight(ctx, name); err != nil || got.Found != want {
			t.Errorf("%s after the new names of %s were cleared: %+v, %v", name, n1, got, err)
		}
	}
	if got, err := s.Sight(ctx, string(n1)); err != nil || got.Token != "b" {
		t.Errorf("the slot after that: %+v, %v; it has to stay", got, err)
	}
	if err := os.WriteFile(filepath.Join(s.probeDir(), string(n1)), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Sight(ctx, string(n1)); err != nil || !got.Found || got.Token != "" {
		t.Errorf("half a record: %+v, %v; want it found and without a token", got, err)
	}
}

// The name comes with an action, from another node.
func TestASightLeadsNowhereElse(t *testing.T) {
	s := NewStore(t.TempDir(), nil)
	for _, name := range []string{
		"", ".", "..", "/etc/passwd", "../cluster", "../md.0000000000000001/heartbeat", "0000000000000001/x", "0000000000000001..", "0000000000000001.", "0000000000000001.a/b",
		"0000000000000001\n", "0000000000000001.\x00", ".0000000000000001", "000000000000000", "0000000000000001.A",
	} {
		if _, err := s.Sight(t.Context(), name); !errors.Is(err, ErrProbeName) {
			t.Errorf("%q: %v, want a refusal", name, err)
		}
		if err := s.CreateProbe(t.Context(), name, "x"); !errors.Is(err, ErrProbeName) {
			t.Errorf("create %q: %v, want a refusal", name, err)
		}
	}
}
