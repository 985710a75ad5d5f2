package prlctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest"
	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest/wire"
	"go.uber.org/zap/zaptest"
)

var tool string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "prlctl")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if tool, err = prltest.Build(dir); err != nil {
		panic(err)
	}
	m.Run()
}

// node is one server of the stand-in, and what a daemon on it keeps.
type node struct {
	*prltest.Server
	mount, state string
}

func newNode(t *testing.T, mount string) *node {
	return &node{prltest.NewServer(t, tool), mount, t.TempDir()}
}

func (n *node) open(t *testing.T) *Driver {
	t.Helper()
	d, err := New(Options{Program: n.Program(), Mount: n.mount, StateDir: n.state, StopTimeout: 30 * time.Second, Logger: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	d.t = timing{poll: 5 * time.Millisecond, watch: 30 * time.Millisecond, ask: 5 * time.Second, details: 0, settle: 100 * time.Millisecond}
	return d
}

// make makes a VE that is registered nowhere.
func (n *node) make(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	path := filepath.Join(n.mount, name)
	kind := "VM"
	if len(name)%2 == 0 {
		kind = "CT"
	}
	c := prltest.Conf{UUID: fmt.Sprintf("%x-%d", name, time.Now().UnixNano()), Name: name, Type: kind, HA: "yes", Autostart: "on", Memory: 512, CPUs: 2, Stubborn: stubborn}
	if err := c.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func conf(t *testing.T, path string) prltest.Conf {
	t.Helper()
	c, err := prltest.ReadConf(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ve returns what a driver says of a path.
func ve(t *testing.T, d *Driver, path string) cluster.VE {
	t.Helper()
	ves, err := d.List(t.Context())
	must(t, err)
	for _, v := range ves {
		if v.Path == path {
			return v
		}
	}
	return cluster.VE{}
}

func TestSuite(t *testing.T) {
	n := newNode(t, t.TempDir())
	other := &node{prltest.NewServer(t, tool), n.mount, t.TempDir()}
	drivertest.Run(t, drivertest.Harness{
		EndsAlike: true,
		Open:      func(t *testing.T) hypervisor.Driver { return n.open(t) },
		Make:      n.make,
		End:       func(t *testing.T, path string, _ cluster.StopCause) { must(t, n.End(path)) },
		Starts:    func(t *testing.T, path string) int { return conf(t, path).Starts },
		Hang:      func(*testing.T) func() { return n.Hang() },
		Kill:      func(t *testing.T) { n.Kill(t) },
		Other:     func(t *testing.T) hypervisor.Driver { return other.open(t) },
		SelfStart: func(t *testing.T, path string) {
			c := conf(t, path)
			c.Autostart = "auto"
			must(t, c.Write(path))
		},
		Unfit: func(t *testing.T, name string) (string, string) {
			path := n.make(t, name, false)
			c := conf(t, path)
			c.Disk = "/vz/local/disk.hdd"
			must(t, c.Write(path))
			d := n.open(t)
			must(t, d.Register(t.Context(), path))
			t.Cleanup(func() { must(t, d.Unregister(context.Background(), path)) })
			return path, "hdd0 (/vz/local/disk.hdd)"
		},
	})
}

func TestErrorTexts(t *testing.T) {
	for _, tt := range []struct {
		code int
		text string
		want error // nil: of no class
	}{
		{255, "Failed to get VM config: The virtual machine could not be found. The virtual machine is not registered", cluster.ErrNoVE},
		{255, "Failed to register the virtual environment: No virtual machine configuration file could be found in the location \"/x\".", nil},
		{255, "Failed to start the VM: Failed to perform the operation. An error occurred when managing the cluster resource", cluster.ErrHold},
		{255, "Failed to start the VM: open: Read-only file system", cluster.ErrHold},
		{255, "Failed to start the CT: No space left on device", cluster.ErrHold},
		{255, "Failed to start the CT: Disk quota exceeded", cluster.ErrHold},
		{255, "Failed to start the CT: Input/output error", cluster.ErrHold},
		{255, "Failed to start the CT: Stale file handle", cluster.ErrHold},
		{255, "Failed to start the CT: Transport endpoint is not connected", cluster.ErrHold},
		{255, "Failed to start the CT: Connection timed out", cluster.ErrHold},
		{255, "Failed to start the CT: Cannot allocate memory", cluster.ErrHold},
		{255, "Failed to start the CT: Owner check failed on the server 'a': Container (/x) is registered for 'b'", cluster.ErrLocked},
		{255, "Failed to register the virtual machine \"x\" on the shared storage. You can force the registration, but this will revoke all access", cluster.ErrLocked},
		{255, "the virtual machine cannot be registered because it belongs to another server", cluster.ErrLocked},
		{255, "Container already locked", cluster.ErrLocked},
		{254, "the VM is in frozen state", cluster.ErrLocked},
		{253, "Failed to connect", cluster.ErrCannotAsk},
		{255, "Failed to start the VM: Cannot register this virtual machine due to an ID conflict.", nil},
		{255, "Failed to start the VM: no licence", nil},
		{1, "Unknown field: x", nil},
	} {
		n := newNode(t, t.TempDir())
		d := n.open(t)
		path := n.make(t, "texts", false)
		must(t, d.Register(t.Context(), path))
		n.Fail("start", tt.code, tt.text)
		err := d.Start(t.Context(), path)
		if err == nil {
			t.Errorf("%q: no error", tt.text)
			continue
		}
		for _, class := range []error{cluster.ErrNoVE, cluster.ErrHold, cluster.ErrLocked, cluster.ErrCannotAsk} {
			if errors.Is(err, class) != errors.Is(tt.want, class) {
				t.Errorf("%q: %v; is %v: %v", tt.text, err, class, errors.Is(err, class))
			}
		}
		if s := err.Error(); !strings.Contains(s, tt.text) || !strings.Contains(s, fmt.Sprintf("code %d", tt.code)) || strings.Contains(s, "\n") || strings.Contains(s, "WARNING") {
			t.Errorf("error %q; want one line with code and text, without the warning", s)
		}
		if v := ve(t, d, path); v.State != cluster.VEStopped {
			t.Errorf("it is %q", v.State)
		}
	}
}

func TestAnErrorOfAVEThatRunsIsNone(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path := n.make(t, "runs", false)
	must(t, d.Register(t.Context(), path))
	// Started by somebody between our look and our command: the tool says an error, the list that it runs.
	n.Slow(100*time.Millisecond, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	first, second := make(chan error, 1), n.open(t)
	go func() { first <- second.Start(ctx, path) }()
	must(t, d.Start(ctx, path))
	must(t, <-first)
	if c := conf(t, path); c.Starts != 1 {
		t.Errorf("started %d times", c.Starts)
	}
	must(t, d.Stop(ctx, path, true))
}

func TestWhatIsNoListIsNotAnEmptyOne(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path := n.make(t, "there", false)
	must(t, d.Register(t.Context(), path))
	for _, a := range []wire.Answer{
		{}, {Stdout: "\n"}, {Stdout: "null\n"}, {Stdout: "{}\n"}, {Stdout: "[\n\t{\n"}, {Stdout: "[1]\n"}, {Stdout: "no\n[x]\n"},
		{Stdout: `[{"status":"running","type":"VM","home":"/a"}]`}, {Stdout: `[{"uuid":"a","type":"VM","home":"/a"}]`},
		{Stdout: `[{"uuid":"a","status":"stopped","home":"/a"}]`}, {Stdout: `[{"uuid":"a","status":"running","type":"VM","home":"-"}]`},
		{Stdout: "[\n\n]\n", Code: 255}, {Code: 253},
	} {
		n.Raw(&a)
		if ves, err := d.List(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) || ves != nil {
			t.Errorf("%q, code %d: %v, %v; want ErrCannotAsk", a.Stdout, a.Code, ves, err)
		}
		if err := d.Unregister(t.Context(), path); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("%q, code %d: unregister = %v; want ErrCannotAsk", a.Stdout, a.Code, err)
		}
		if err := d.Stop(t.Context(), path, true); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("%q, code %d: stop = %v; want ErrCannotAsk", a.Stdout, a.Code, err)
		}
	}
	n.Raw(nil)
	n.Noise("[warn] something is deprecated\nand more\n")
	if v := ve(t, d, path); v.State != cluster.VEStopped || v.Memory != 512<<20 || v.VCPUs != 2 {
		t.Errorf("with noise before the list: %+v", v)
	}
	n.Noise("")
	must(t, d.Unregister(t.Context(), path))
	if ves, err := d.List(t.Context()); err != nil || len(ves) != 0 {
		t.Errorf("an empty list: %v, %v", ves, err)
	}
}

func TestStates(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path := n.make(t, "states", false)
	must(t, d.Register(t.Context(), path))
	want := map[string]cluster.VEState{"running": cluster.VERunning, "paused": cluster.VERunning, "stopped": cluster.VEStopped, "suspended": cluster.VEStopped}
	for _, s := range prltest.States {
		n.Put(path, s)
		w, known := want[s]
		if !known {
			w = cluster.VEUnknown
		}
		if v := ve(t, d, path); v.State != w || v.Cause != cluster.CauseUnknown {
			t.Errorf("%s: %q by %q, want %q", s, v.State, v.Cause, w)
		}
		if w == cluster.VEStopped || s == "invalid" {
			continue
		}
		if err := d.Unregister(t.Context(), path); err == nil {
			t.Errorf("unregistered while %s", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := d.Barrier(ctx); (err == nil) != (w == cluster.VERunning) {
			t.Errorf("barrier while %s = %v", s, err)
		}
		cancel()
	}
	n.Put(path, "mounted")
	must(t, d.Stop(t.Context(), path, false))
	if v := ve(t, d, path); v.State != cluster.VEStopped || v.Cause != cluster.CauseUnknown {
		t.Errorf("after the image was closed: %q by %q", v.State, v.Cause)
	}
}
