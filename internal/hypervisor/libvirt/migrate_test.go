package libvirt

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt/libvirttest"
)

// sight is what the lists of both nodes say of a VE; "" = not listed.
type sight struct{ from, to cluster.VEState }

// ends are two nodes between which a VE migrates.
type ends struct {
	from, to         *libvirttest.Node
	fromDrv, destDrv *Driver
	path             string
}

func at(t *testing.T, d *Driver, path string) cluster.VEState {
	t.Helper()
	ves, err := d.List(context.Background())
	if err != nil {
		t.Error(err)
		return ""
	}
	for _, v := range ves {
		if v.Path == path {
			return v.State
		}
	}
	return ""
}

// watched runs f and returns all that the lists said meanwhile, without repetitions.
func (e ends) watched(t *testing.T, f func()) (out []sight) {
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			// The target first: one that runs there when the source is looked at later
			// may be gone here, but not the other way round.
			to := at(t, e.destDrv, e.path)
			s := sight{at(t, e.fromDrv, e.path), to}
			if len(out) == 0 || out[len(out)-1] != s {
				out = append(out, s)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	f()
	close(stop)
	wg.Wait()
	return out
}

// truthful sees that the VE was never taken for stopped, and never listed as
// running on the target before it could be.
func truthful(t *testing.T, saw []sight) {
	t.Helper()
	t.Logf("seen on source and target: %q", saw)
	for _, s := range saw {
		if s.from == cluster.VEStopped && s.to != cluster.VERunning {
			t.Errorf("the source says stopped while the target says %q", s.to)
		}
		if s.to == cluster.VEStopped {
			t.Error("the target says stopped of what comes in")
		}
	}
}

func (s *site) running(t *testing.T, d *Driver, name string) string {
	t.Helper()
	path := s.make(t, name, false)
	t.Cleanup(func() {
		for _, n := range []*libvirttest.Node{s.a, s.b} {
			d := s.open(t, n)
			must(t, d.Stop(context.Background(), path, true), d.Unregister(context.Background(), path))
		}
	})
	must(t, d.Register(t.Context(), path), d.Start(t.Context(), path))
	eventually(t, "it counts its start", func() bool { n, err := s.guest(path).Starts(); return err == nil && n == 1 })
	return path
}

func TestALiveMigrationIsListedTruthfully(t *testing.T) {
	s := newSite(t, "qemu")
	da, db := s.open(t, s.a), s.open(t, s.b)
	path := s.running(t, da, "wanderer")
	g := s.guest(path)
	there := ends{s.a, s.b, da, db, path}
	back := ends{s.b, s.a, db, da, path}
	for _, e := range []ends{there, back} {
		saw := e.watched(t, func() { must(t, libvirttest.Migrate(t.Context(), e.from, e.to, g.UUID)) })
		truthful(t, saw)
		if got := (sight{at(t, e.fromDrv, path), at(t, e.destDrv, path)}); got != (sight{"", cluster.VERunning}) {
			t.Errorf("after it the source says %q and the target %q", got.from, got.to)
		}
	}
	if n, err := g.Starts(); err != nil || n != 1 {
		t.Errorf("started %d times (%v), want once: it never stopped", n, err)
	}
	must(t, da.Stop(t.Context(), path, false))
}

// A definition that stays on the source is stopped there for no reason of an
// operator: it must not be taken for a stop of the VE.
func TestWhatAMigrationLeavesBehindIsNoStop(t *testing.T) {
	s := newSite(t, "qemu")
	da, db := s.open(t, s.a), s.open(t, s.b)
	path := s.running(t, da, "left")
	_, err := s.a.Virsh(t.Context(), "qemu", "migrate", "--live", "--unsafe", "--migrateuri", "tcp://127.0.0.1", s.guest(path).UUID, s.b.URI("qemu"))
	must(t, err)
	ves, err := da.List(t.Context())
	must(t, err)
	if i := slices.IndexFunc(ves, func(v cluster.VE) bool { return v.Path == path }); i < 0 || ves[i].State != cluster.VEStopped || ves[i].Cause != cluster.CauseUnknown {
		t.Errorf("the source lists %+v; want it stopped by an unknown cause", ves)
	}
	if got := at(t, db, path); got != cluster.VERunning {
		t.Errorf("the target, which does not keep its definition, says %q", got)
	}
	// One that is not kept can be saved, and be kept from then on.
	must(t, db.Save(t.Context(), path), db.Register(t.Context(), path), db.Stop(t.Context(), path, false))
	if got := at(t, db, path); got != cluster.VEStopped {
		t.Errorf("after its stop the target says %q; it was registered", got)
	}
}

// stalled begins a migration whose target does not read, and returns when the
// target waits for the memory.
func (s *site) stalled(t *testing.T, e ends) (done chan error) {
	t.Helper()
	g := s.guest(e.path)
	done = make(chan error, 1)
	// So slow that its target can be stopped before it is over.
	go func() { done <- libvirttest.Migrate(context.Background(), e.from, e.to, g.UUID, "--bandwidth", "1") }()
	eventually(t, "a process on the target", func() bool {
		pid := e.to.Guest(g.UUID, g.Name)
		return pid != 0 && at(t, e.destDrv, e.path) == cluster.VEUnknown && strings.Contains(s.virsh(t, e.from, "domjobinfo", g.UUID), "Outgoing") && syscall.Kill(pid, syscall.SIGSTOP) == nil
	})
	return done
}

func TestAMigrationThatFailsIsListedTruthfully(t *testing.T) {
	s := newSite(t, "qemu")
	da, db := s.open(t, s.a), s.open(t, s.b)
	ends := ends{s.a, s.b, da, db, s.running(t, da, "stays")}
	g := s.guest(ends.path)
	for name, fail := range map[string]func(){
		"aborted": func() {
			s.virsh(t, s.a, "domjobabort", g.UUID)
			_ = syscall.Kill(s.b.Guest(g.UUID, g.Name), syscall.SIGCONT)
		},
		"its target dies": func() { _ = syscall.Kill(s.b.Guest(g.UUID, g.Name), syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			saw := ends.watched(t, func() {
				done := s.stalled(t, ends)
				fail()
				select {
				case err := <-done:
					if err == nil {
						t.Error("it succeeded all the same")
					}
				case <-time.After(patience):
					t.Error("it has no end")
				}
			})
			truthful(t, saw)
			if !slices.Contains(saw, sight{cluster.VERunning, cluster.VEUnknown}) {
				t.Error("the test has not seen it come in")
			}
			for _, x := range saw {
				if x.to == cluster.VERunning {
					t.Error("the target says that it runs there")
				}
			}
			eventually(t, "it runs on the source alone", func() bool {
				return sight{at(t, da, ends.path), at(t, db, ends.path)} == sight{cluster.VERunning, ""}
			})
		})
	}
}

// The memory of a VE that was saved belongs to its disks of that time.
func TestAManagedSaveIsNotRestoredAfterTheVERanElsewhere(t *testing.T) {
	s := newSite(t, "qemu")
	da, db := s.open(t, s.a), s.open(t, s.b)
	path := s.running(t, da, "saved")
	g := s.guest(path)
	s.virsh(t, s.a, "managedsave", g.UUID)
	ves, err := da.List(t.Context())
	must(t, err)
	if i := slices.IndexFunc(ves, func(v cluster.VE) bool { return v.Path == path }); i < 0 || ves[i].Cause != cluster.CauseStop {
		t.Errorf("listed as %+v; want it stopped by a stop", ves)
	}
	must(t, db.Register(t.Context(), path), db.Start(t.Context(), path))
	eventually(t, "it boots on the other node", func() bool { n, _ := g.Starts(); return n == 2 })
	must(t, db.Stop(t.Context(), path, true), db.Unregister(t.Context(), path))
	must(t, da.Register(t.Context(), path), da.Start(t.Context(), path))
	eventually(t, "it boots from its disk", func() bool { n, _ := g.Starts(); return n == 3 })
	if saves, _ := filepath.Glob(filepath.Join(s.a.Dir, "lib/qemu/save/*.save")); len(saves) > 0 {
		t.Errorf("%v is left", saves)
	}
}
