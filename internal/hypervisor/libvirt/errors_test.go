package libvirt

import (
	"errors"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestErrorsAreClassified(t *testing.T) {
	tests := []struct {
		code  golibvirt.ErrorNumber
		text  string
		class error
	}{
		{1, `internal error: process exited while connecting to monitor: -blockdev {…}: Failed to get "write" lock Is another process using the image [/x]?`, cluster.ErrLocked},
		{1, `internal error: qemu unexpectedly closed the monitor: Failed to get shared "write" lock`, cluster.ErrLocked},
		{golibvirt.ErrResourceBusy, "resource busy: Lockspace resource '/x' is locked", cluster.ErrLocked},
		{golibvirt.ErrNoDomain, "Domain not found: no domain with matching uuid", cluster.ErrNoVE},
		{38, "Unable to write to '/x': No space left on device", cluster.ErrHold},
		{1, "could not open disk image /x: Could not open '/x': Read-only file system", cluster.ErrHold},
		{38, "cannot stat '/x': Stale file handle", cluster.ErrHold},
		{golibvirt.ErrOperationTimeout, "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainDestroy)", cluster.ErrHold},
		{38, "Failed to terminate process 4242 with SIGKILL: Device or resource busy", cluster.ErrHold},
		{1, "internal error: no emulator", nil},
	}
	for _, tt := range tests {
		err := classify(golibvirt.Error{Code: uint32(tt.code), Message: tt.text})
		for _, class := range []error{cluster.ErrCannotAsk, cluster.ErrHold, cluster.ErrLocked, cluster.ErrNoVE} {
			if got, want := errors.Is(err, class), errors.Is(tt.class, class); got != want {
				t.Errorf("%q is %q: %v, want %v", tt.text, class, got, want)
			}
		}
	}
	if err := classify(golibvirt.ErrInterrupted); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a lost connection = %v, want ErrCannotAsk", err)
	}
	if classify(nil) != nil {
		t.Error("no error became one")
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	good := Options{Name: "libvirt", Kind: cluster.KindVM, URI: "qemu:///system", Mount: "/vms"}
	for uri, socket := range map[string]string{
		"qemu:///system":                        "/run/libvirt/libvirt-sock",
		"qemu+unix:///system?socket=/x/y":       "/x/y",
		"qemu:///system?socket=/run/other-sock": "/run/other-sock",
		"lxc:///":                               "/run/libvirt/libvirt-sock",
	} {
		o := good
		o.URI = uri
		d, err := New(o)
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		if d.pool.sockets[0] != socket {
			t.Errorf("%s: socket %s, want %s", uri, d.pool.sockets[0], socket)
		}
	}
	for _, uri := range []string{"", "system", "qemu+ssh://n2/system", "qemu://n2/system", "qemu+tls:///system", "%"} {
		o := good
		o.URI = uri
		if _, err := New(o); err == nil {
			t.Errorf("%q was taken", uri)
		}
	}
}

func TestPathsThatAreNoneOfOurs(t *testing.T) {
	d, err := New(Options{Name: "libvirt", Kind: cluster.KindVM, URI: "qemu:///system", Mount: "/vms/"})
	if err != nil {
		t.Fatal(err)
	}
	ours := "/vms/.shaman/domains/" + someUUID + ".xml"
	id, ok := d.id(ours)
	if !ok || d.path(id) != ours {
		t.Errorf("%s is not taken for a VE of ours", ours)
	}
	for _, p := range []string{"", "/", ours + "-not", "/vms/" + someUUID + ".xml", "/other/.shaman/domains/" + someUUID + ".xml", "/vms/.shaman/domains/x.xml"} {
		if _, ok := d.id(p); ok {
			t.Errorf("%q is taken for a VE of ours", p)
		}
	}
}
