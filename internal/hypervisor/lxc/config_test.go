package lxc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestReadConf(t *testing.T) {
	const root = "lxc.rootfs.path = dir:/mnt/ct/web/rootfs\n"
	tests := []struct {
		name, config, params string
		want                 conf
		fails                string // part of the error
	}{
		{name: "no HA parameters are HA off", config: root},
		{name: "an HA file without a word is HA on", config: root, params: "# mine\n", want: conf{ha: true}},
		{name: "HA parameters", config: root, params: "HA_ENABLE=no\nPRIORITY=4294967295\n", want: conf{priority: 4294967295}},
		{
			name:   "memory, CPUs and autostart; the last word counts",
			config: root + "lxc.cgroup2.memory.max = 1G\n#lxc.cgroup2.memory.max = 3G\nlxc.cgroup2.memory.max=512M\nlxc.cgroup2.cpuset.cpus = 0-2,5\nlxc.start.auto = 1\n",
			want:   conf{memory: 512 << 20, vcpus: 4, autostart: true},
		},
		{name: "version 1 of control groups", config: root + "lxc.cgroup.memory.limit_in_bytes = 1048576\nlxc.cgroup.cpuset.cpus = 3\n", want: conf{memory: 1 << 20, vcpus: 1}},
		{name: "no limit is not known", config: root + "lxc.cgroup2.memory.max = max\n"},
		{name: "a root elsewhere", config: "lxc.rootfs.path = dir:/var/lib/lxc/web/rootfs\n", want: conf{unfit: "lxc.rootfs.path: /var/lib/lxc/web/rootfs does not lie on /mnt"}},
		{name: "a root beside the mount", config: "lxc.rootfs.path = /mnt/../var/rootfs\n", want: conf{unfit: "lxc.rootfs.path: /mnt/../var/rootfs does not lie on /mnt"}},
		{name: "an overlay on a local one", config: "lxc.rootfs.path = overlay:/srv/base:/mnt/ct/web/delta\n", want: conf{unfit: "lxc.rootfs.path: /srv/base does not lie on /mnt"}},
		{name: "an overlay on the mount", config: "lxc.rootfs.path = overlay:/mnt/base:/mnt/ct/web/delta\n"},
		{name: "a loop file on the mount", config: "lxc.rootfs.path = loop:/mnt/ct/web/disk\n"},
		{name: "a local volume", config: "lxc.rootfs.path = lvm:/dev/vg/web\n", want: conf{unfit: "lxc.rootfs.path: /dev/vg/web does not lie on /mnt"}},
		{name: "no root", config: "lxc.uts.name = web\n", want: conf{unfit: "lxc.rootfs.path is not set: it would run on the host's own root"}},
		{name: "a shared pid namespace", config: root + "lxc.namespace.keep = user pid\n", want: conf{unfit: "it shares a pid namespace (lxc.namespace.keep or lxc.namespace.share.pid)"}},
		{
			name:   "mounts that every node has",
			config: root + "lxc.mount.entry = proc proc proc nodev 0 0\nlxc.mount.entry = tmpfs tmp tmpfs rw 0 0\nlxc.mount.entry = /sys/kernel/debug sys/kernel/debug none bind,optional 0 0\nlxc.mount.entry = /dev/fuse dev/fuse none bind 0 0\nlxc.mount.entry = /etc/hosts etc/hosts none bind,ro 0 0\nlxc.mount.entry = /mnt/data data none bind 0 0\n",
		},
		{name: "a mount that can be written to", config: root + "lxc.mount.entry = /srv/my\\040data data none bind 0 0\n", want: conf{unfit: "lxc.mount.entry: /srv/my data does not lie on /mnt, and can be written to"}},
		{name: "mounts taken back", config: root + "lxc.mount.entry = /srv data none bind 0 0\nlxc.mount.entry =\n"},
		{name: "a table of mounts elsewhere", config: root + "lxc.mount.fstab = /etc/web.fstab\n", want: conf{unfit: "lxc.mount.fstab: /etc/web.fstab does not lie on /mnt, or cannot be read"}},
		{name: "a priority that is too large", config: root, params: "PRIORITY=4294967296\n", fails: "shaman.conf:1: PRIORITY"},
		{name: "an HA switch that is neither yes nor no", config: root, params: "\nHA_ENABLE=maybe\n", fails: "shaman.conf:2: HA_ENABLE"},
		{name: "an unknown key", config: root, params: "HA=yes\n", fails: "HA is not known"},
		{name: "a line without a value", config: root, params: "HA_ENABLE\n", fails: "is not KEY=VALUE"},
		{name: "an include that is not there", config: "lxc.include = /no/such/file\n", fails: "/no/such/file"},
		{name: "a file that is too large", config: strings.Repeat("#", fileMax+1), fails: "no configuration of LXC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "config"), tt.config)
			if tt.params != "" {
				write(t, filepath.Join(dir, paramsFile), tt.params)
			}
			got, err := readConf(dir, "/mnt")
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("error %v, want one with %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(conf{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestIncludes(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "config")
	t.Run("a file and a directory of files", func(t *testing.T) {
		if err := os.Mkdir(filepath.Join(dir, "more.d"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "more.d", "a.conf"), "lxc.start.auto = 1\n")
		write(t, filepath.Join(dir, "more.d", "ignored"), "lxc.start.auto = 0\n")
		write(t, filepath.Join(dir, "base"), "lxc.rootfs.path = "+dir+"/rootfs\nlxc.include = "+dir+"/more.d\n")
		write(t, conf, "lxc.include = "+dir+"/base\n")
		c, err := readConf(dir, filepath.Dir(dir))
		if err != nil || !c.autostart || c.unfit != "" {
			t.Errorf("readConf = %+v, %v", c, err)
		}
	})
	t.Run("one that names itself", func(t *testing.T) {
		write(t, conf, "lxc.include = "+conf+"\n")
		if _, err := readConf(dir, "/"); err == nil || !strings.Contains(err.Error(), "nested") {
			t.Errorf("error %v, want one that says so", err)
		}
	})
}

func TestSwitchingTheAutostartOffKeepsAllElse(t *testing.T) {
	dir := t.TempDir()
	tests := []struct{ name, before, after string }{
		{"in its place", "# mine\n lxc.start.auto\t=  1  \r\nlxc.start.order = 1\n\n#lxc.start.auto = 1", "# mine\n lxc.start.auto\t= 0  \r\nlxc.start.order = 1\n\n#lxc.start.auto = 1"},
		{"each of them", "lxc.start.auto = 1\nlxc.start.auto = 1\n", "lxc.start.auto = 0\nlxc.start.auto = 0\n"},
		{"by an added line, if an included file switches it on", "lxc.include = x", "lxc.include = x\nlxc.start.auto = 0\n"},
		{"by an added line after an include", "lxc.start.auto = 0\nlxc.include = x\n", "lxc.start.auto = 0\nlxc.include = x\nlxc.start.auto = 0\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(dir, "config")
			write(t, file, tt.before)
			if err := stayOff(dir); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if diff := cmp.Diff(tt.after, string(got)); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v; want as before", info.Mode(), err)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for given, want := range map[string]cluster.Bytes{"": 0, "max": 0, "-1": 0, "1": 1, "1k": 1 << 10, "2M": 2 << 20, "3G": 3 << 30, "4T": 4 << 40, "9223372036854775807k": 0, "K": 0} {
		if got := parseMemory(given); got != want {
			t.Errorf("parseMemory(%q) = %d, want %d", given, got, want)
		}
	}
	for given, want := range map[string]int{"": 0, "0": 1, "0-3": 4, "0,2,4-5": 4, "3-1": 0, "a": 0, "0-": 0} {
		if got := countCPUs(given); got != want {
			t.Errorf("countCPUs(%q) = %d, want %d", given, got, want)
		}
	}
}

func TestSocketNames(t *testing.T) {
	// As LXC 5.0.2 made them.
	const lxcpath = "/tmp/lx/m/ct"
	for n, want := range map[int]string{97: lxcpath + "/" + strings.Repeat("y", 84), 98: "lxc/042214541c921276", 99: "lxc/97fa99ec8c34af7d", 100: "lxc/738290f23d8563cc"} {
		if got := socketName(lxcpath, strings.Repeat("y", n-len(lxcpath)-1)); got != want {
			t.Errorf("a name of %d bytes: %s, want %s", n, got, want)
		}
	}
}

func TestUnescape(t *testing.T) {
	for given, want := range map[string]string{`a\040b`: "a b", `\134040`: `\040`, `\04`: `\04`, `x\999`: `x\999`} {
		if got := unescape(given); got != want {
			t.Errorf("unescape(%q) = %q, want %q", given, got, want)
		}
	}
}

func TestHostNames(t *testing.T) {
	ours := []mountPoint{{"0:1", "/", "/"}, {"0:50", "/", "/mnt"}, {"0:50", "/ct", "/other"}}
	got := hostNames([]mountPoint{{"0:1", "/", "/"}, {"0:50", "/ct/web/rootfs", "/"}, {"0:9", "/", "/proc"}}, ours)
	if diff := cmp.Diff([]string{"/mnt/ct/web/rootfs", "/other/web/rootfs"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := hostNames([]mountPoint{{"0:77", "/", "/"}}, ours); got != nil {
		t.Errorf("an overlay has the host's names %v", got)
	}
}

func FuzzParams(f *testing.F) {
	for _, s := range []string{"", "HA_ENABLE=yes\n", "PRIORITY=7\nHA_ENABLE=no", "# x\n\n = \n", "PRIORITY='1'\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var p parser
		if err := p.params("f", text); err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		// What was accepted stays acceptable after a change, and says the new value.
		dir := t.TempDir()
		write(t, filepath.Join(dir, paramsFile), text)
		if err := writeParams(dir, map[string]string{"PRIORITY": "77", "HA_ENABLE": "yes"}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, paramsFile))
		var after parser
		if err := after.params("f", string(data)); err != nil || after.priority != 77 || !after.ha {
			t.Errorf("after a change: %+v, %v", after.conf, err)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}
