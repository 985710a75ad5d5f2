package hypervisor_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

// of is a driver for one type of VEs only.
type of struct {
	*drivertest.Fake
	kind cluster.Kind
}

func (d of) Name() string          { return "fake-" + string(d.kind) }
func (d of) Kinds() []cluster.Kind { return []cluster.Kind{d.kind} }

func TestOneDriverDoesNotHideTheOthers(t *testing.T) {
	vms, cts := of{drivertest.NewFake(), cluster.KindVM}, of{drivertest.NewFake(), cluster.KindCT}
	vms.Run("/ve/vm", drivertest.Definition{Kind: cluster.KindVM})
	cts.Run("/ve/ct", drivertest.Definition{Kind: cluster.KindCT})
	set, err := hypervisor.NewSet(vms, cts)
	if err != nil {
		t.Fatal(err)
	}
	if ves, err := set.List(t.Context()); err != nil || len(ves) != 2 {
		t.Fatalf("%d VEs, %v; want both", len(ves), err)
	}
	for name, fault := range map[string]drivertest.Fault{"that fails": {Err: errors.New("no socket")}, "that hangs": {Hang: true}} {
		vms.Inject("list", "", fault)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		ves, err := set.List(ctx)
		cancel()
		if len(ves) != 1 || ves[0].Path != "/ve/ct" || cluster.Known(err, cluster.KindCT) != nil || cluster.Known(err, cluster.KindVM) == nil {
			t.Errorf("beside one %s: %d VEs, %v; want the container, and nothing known of virtual machines", name, len(ves), err)
		}
	}
	cts.Inject("list", "", drivertest.Fault{Err: cluster.ErrCannotAsk})
	vms.Inject("list", "", drivertest.Fault{Err: cluster.ErrCannotAsk})
	if _, err := set.List(t.Context()); cluster.Known(err, cluster.KindCT) == nil || cluster.Known(err, cluster.KindVM) == nil || !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("of two that cannot be asked: %v", err)
	}
	if _, err := hypervisor.NewSet(vms, vms); err == nil {
		t.Error("two drivers for one type were accepted")
	}
}
