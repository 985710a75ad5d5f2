package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

func TestTheZeroGateIsClosed(t *testing.T) {
	if _, err := new(Gate).Hold(0); !errors.Is(err, ErrGateClosed) {
		t.Errorf("Hold = %v, want ErrGateClosed", err)
	}
}

func TestAGateLetsOneIncarnationThrough(t *testing.T) {
	var g Gate
	g.Open(4)
	for _, inc := range []cluster.Incarnation{0, 3, 5} {
		if _, err := g.Hold(inc); !errors.Is(err, ErrGateClosed) {
			t.Errorf("Hold(%d) of a gate of 4 = %v, want ErrGateClosed", inc, err)
		}
	}
	if _, err := g.Hold(4); err != nil {
		t.Error(err)
	}
}

func TestClosingWaitsForTheHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		g.Open(1)
		first, _ := g.Hold(1)
		second, _ := g.Hold(1)
		done := make(chan error, 1)
		go func() { done <- g.Close(t.Context()) }()
		synctest.Wait()
		if _, err := g.Hold(1); !errors.Is(err, ErrGateClosed) {
			t.Errorf("Hold while closing = %v, want ErrGateClosed", err)
		}
		first()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("closed (%v) while somebody held it", err)
		default:
		}
		second()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAGateThatCannotBeEmptiedIsClosedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		g.Open(1)
		release, _ := g.Hold(1)
		why := errors.New("out of time")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
		defer cancel()
		if err := g.Close(ctx); !errors.Is(err, why) {
			t.Errorf("Close = %v, want the cause", err)
		}
		if _, err := g.Hold(1); !errors.Is(err, ErrGateClosed) {
			t.Errorf("Hold = %v, want ErrGateClosed", err)
		}
		release()
		if err := g.Close(t.Context()); err != nil {
			t.Errorf("Close after the last release = %v", err)
		}
	})
}

// Whatever many goroutines do with a gate: nobody holds it after a Close that
// succeeded, until it is opened again.
func TestNobodyHoldsAClosedGate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		works := rapid.SliceOfN(rapid.IntRange(1, 50), 1, 8).Draw(rt, "milliseconds of work")
		closeAfter := rapid.IntRange(0, 60).Draw(rt, "milliseconds until the gate is closed")
		synctest.Test(t, func(t *testing.T) {
			var g Gate
			g.Open(1)
			var holders atomic.Int32
			for _, ms := range works {
				go func() {
					for {
						release, err := g.Hold(1)
						if err != nil {
							return
						}
						holders.Add(1)
						time.Sleep(time.Duration(ms) * time.Millisecond)
						holders.Add(-1)
						release()
					}
				}()
				synctest.Wait()
			}
			time.Sleep(time.Duration(closeAfter) * time.Millisecond)
			synctest.Wait()
			if err := g.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if n := holders.Load(); n != 0 {
				t.Errorf("%d hold a closed gate", n)
			}
		})
	})
}

func TestAPausedGateIsOpenedAgainUnlessSomebodyClosedIt(t *testing.T) {
	tests := []struct {
		name  string
		while func(*Gate)
		open  bool
	}{
		{"nobody did", func(*Gate) {}, true},
		{"it was closed meanwhile", func(g *Gate) { _ = g.Close(context.Background()) }, false},
		{"it was closed and opened for a newer incarnation", func(g *Gate) { _ = g.Close(context.Background()); g.Open(2) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var g Gate
			g.Open(1)
			reopen, err := g.Pause(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.Hold(1); err == nil {
				t.Error("a paused gate lets work through")
			}
			tt.while(&g)
			reopen()
			if _, err := g.Hold(1); (err == nil) != tt.open {
				t.Errorf("Hold = %v, want open: %v", err, tt.open)
			}
		})
	}
}
