package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fake makes a root directory; a value that begins with "-> " is a link.
func fake(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(data, "-> "); link {
			err = os.Symlink(to, file)
		} else {
			err = os.WriteFile(file, []byte(data), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root}
}

func TestMountIsFoundInTheTable(t *testing.T) {
	h := fake(t, map[string]string{"proc/self/mountinfo": `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /mnt/vol rw,noatime shared:9 master:1 - nfs4 10.0.0.9:/srv/vol rw,vers=4.2,hard,acdirmax=3
31 21 0:41 / /mnt/my\040vol ro - ceph mon:/ rw,name=admin
32 30 0:42 / /mnt/vol/inner rw - tmpfs none rw
33 21 0:43 / /twice rw - ext4 /dev/sdb rw
34 33 0:44 / /twice rw - nfs srv:/x rw
`})
	tests := []struct {
		path, point, kind, source string
		exact                     bool
		options                   []string
	}{
		{"/mnt/vol", "/mnt/vol", "nfs4", "10.0.0.9:/srv/vol", true, []string{"rw", "noatime", "rw", "vers=4.2", "hard", "acdirmax=3"}},
		{"/mnt/vol/shaman", "/mnt/vol", "nfs4", "10.0.0.9:/srv/vol", false, []string{"rw", "noatime", "rw", "vers=4.2", "hard", "acdirmax=3"}},
		{"/mnt/vol/inner", "/mnt/vol/inner", "tmpfs", "none", true, []string{"rw", "rw"}},
		{"/mnt/volume", "/", "ext4", "/dev/sda1", false, []string{"rw", "relatime", "rw"}},
		{"/mnt/my vol", "/mnt/my vol", "ceph", "mon:/", true, []string{"ro", "rw", "name=admin"}},
		{"/twice", "/twice", "nfs", "srv:/x", true, []string{"rw", "rw"}},
	}
	for _, tt := range tests {
		want := MountFacts{Path: tt.path, Point: tt.point, Exact: tt.exact, Type: tt.kind, Source: tt.source, Options: tt.options}
		if diff := cmp.Diff(want, h.Mount(tt.path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.path, diff)
		}
	}
	if m := fake(t, nil).Mount("/vol"); m.Err == nil {
		t.Error("no error without a table")
	}
	if m := (Host{Root: "/"}).Mount(t.TempDir()); m.Err != nil || m.Type == "" {
		t.Errorf("this machine's own table: %+v", m)
	}
}

func TestWatchdogIsLookedAt(t *testing.T) {
	free := map[string]string{"dev/watchdog": "", "sys/class/watchdog/watchdog0/identity": "Software Watchdog\n", "sys/class/watchdog/watchdog0/nowayout": "0\n"}
	with := func(more map[string]string) map[string]string {
		out := map[string]string{}
		for _, m := range []map[string]string{free, more} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	tests := []struct {
		name, device string
		files        map[string]string
		want         WatchdogFacts
	}{
		{"none", "/dev/watchdog", nil, WatchdogFacts{}},
		{"free", "/dev/watchdog", free, WatchdogFacts{Present: true, Identity: "Software Watchdog"}},
		{"it cannot be disarmed", "/dev/watchdog", with(map[string]string{"sys/class/watchdog/watchdog0/nowayout": "1\n"}), WatchdogFacts{Present: true, Identity: "Software Watchdog", NoWayOut: true}},
		{"held under its other name", "/dev/watchdog", with(map[string]string{"proc/9/fd/3": "-> /dev/watchdog0", "proc/9/fd/4": "-> /dev/watchdog0", "proc/9/comm": "sbd\n", "proc/8/fd/1": "-> /dev/null"}),
			WatchdogFacts{Present: true, Identity: "Software Watchdog", Holders: []Holder{{9, "sbd"}}}},
		{"another device", "/dev/watchdog1", map[string]string{"dev/watchdog1": "", "sys/class/watchdog/watchdog1/identity": "second", "proc/9/fd/3": "-> /dev/watchdog", "proc/7/fd/3": "-> /dev/watchdog1", "proc/7/comm": "shaman-monitor"},
			WatchdogFacts{Present: true, Identity: "second", Holders: []Holder{{7, "shaman-monitor"}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Device = tt.device
			if diff := cmp.Diff(tt.want, fake(t, tt.files).Watchdog(tt.device)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestStartsAreFound(t *testing.T) {
	if got := fake(t, nil).Starts(); got.Systemd || got.Enabled || len(got.Guests) != 0 {
		t.Errorf("nothing is there: %+v", got)
	}
	got := fake(t, map[string]string{
		"run/systemd/system/x": "", "etc/systemd/system/multi-user.target.wants/shaman-monitor.service": "-> /lib/systemd/system/shaman-monitor.service",
		"etc/systemd/system/multi-user.target.wants/libvirt-guests.service": "-> /nowhere", "etc/systemd/system/multi-user.target.wants/lxc@web.service": "-> /nowhere",
		"etc/systemd/system/multi-user.target.wants/ssh.service": "-> /nowhere", "etc/libvirt/qemu/autostart/db.xml": "-> ../db.xml",
	}).Starts()
	want := StartFacts{Systemd: true, Enabled: true, Guests: []string{
		"/etc/systemd/system/multi-user.target.wants/libvirt-guests.service", "/etc/systemd/system/multi-user.target.wants/lxc@web.service", "/etc/libvirt/qemu/autostart/db.xml",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTouchDoesNotWaitForWhatHangs(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Touch(t.Context(), pipe, 200*time.Millisecond); !errors.Is(err, ErrHangs) {
		t.Errorf("a file that hangs: %v", err)
	}
	for _, name := range []string{dir + "/none", dir, "/proc/self/stat"} {
		if err := Touch(t.Context(), name, time.Minute); err != nil {
			t.Errorf("%s: %v; also an error is an answer", name, err)
		}
	}
	if s, err := Fullness(t.Context(), dir); err != nil || s.Blocks == 0 {
		t.Errorf("space: %+v, %v", s, err)
	}
	if _, err := Fullness(t.Context(), dir+"/none"); err == nil {
		t.Error("the space of nothing")
	}
}
