package drivertest_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

func TestFakeIsADriver(t *testing.T) {
	f := drivertest.NewFake()
	drivertest.Run(t, drivertest.Harness{
		Open: func(*testing.T) hypervisor.Driver { return f.Reopen() },
		Make: func(_ *testing.T, name string, stubborn bool) string {
			path := filepath.Join("/ve", name)
			f.Define(path, drivertest.Definition{Stubborn: stubborn, Autostart: true})
			return path
		},
		End:    func(_ *testing.T, path string, how cluster.StopCause) { f.End(path, how) },
		Starts: func(_ *testing.T, path string) int { return f.Starts(path) },
	})
}

func TestFaults(t *testing.T) {
	const path = "/ve/a"
	newFake := func() *drivertest.Fake {
		f := drivertest.NewFake()
		f.Define(path, drivertest.Definition{})
		if err := f.Register(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Run("a fault of two times fails twice", func(t *testing.T) {
		f, bad := newFake(), errors.New("bad")
		f.Inject("start", path, drivertest.Fault{Times: 2, Err: bad})
		for i, want := range []error{bad, bad, nil} {
			if err := f.Start(t.Context(), path); !errors.Is(err, want) {
				t.Errorf("start %d = %v, want %v", i+1, err, want)
			}
		}
	})
	t.Run("a late start takes effect at the barrier", func(t *testing.T) {
		f := newFake()
		f.Inject("start", path, drivertest.Fault{Times: 1, Late: true})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := f.Start(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("a late start = %v, want ErrCannotAsk", err)
		}
		if f.Running(path) {
			t.Error("it runs before it was let through")
		}
		if err := f.Barrier(t.Context()); err != nil || !f.Running(path) {
			t.Errorf("barrier = %v, running %v; want it to let the start through", err, f.Running(path))
		}
	})
}
