package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shaman-ha/shaman/internal/cluster"
)

const required = "CLUSTER_NAME=lab\nCLUSTER_MOUNT=/mnt/ve\nETCD_ENDPOINTS=10.0.0.1:2379\n"

func host(t testing.TB) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func localDefaults(t testing.TB) Local {
	return Local{
		ClusterName: "lab", ClusterMount: "/mnt/ve", EtcdEndpoints: []string{"10.0.0.1:2379"},
		NodeName: host(t), NodeAddress: host(t), Hypervisors: []string{"process"}, LibvirtURI: "qemu:///system", LibvirtLXCURI: "lxc:///", FenceDir: "/etc/shaman/fence.d", WatchdogDevice: "/dev/watchdog",
		ListenAddress: "127.0.0.1:9631", StateDir: "/var/lib/shaman", RunDir: "/run/shaman",
		BootIDFile: "/proc/sys/kernel/random/boot_id", RescanInterval: time.Second, LogLevel: 2, LogFormat: "json",
	}
}

var ignoreOrigins = cmpopts.IgnoreUnexported(Local{})

func TestTheRequiredKeysAndDefaultsAreEnough(t *testing.T) {
	got, warns, err := parseLocal("shaman.conf", []byte(required), nil)
	if err != nil || len(warns) > 0 {
		t.Fatalf("error %v, warnings %v", err, warns)
	}
	if diff := cmp.Diff(localDefaults(t), got, ignoreOrigins); diff != "" {
		t.Error(diff)
	}
}

// everyLocalKey has for each key another value than its default, and what it does.
func everyLocalKey(t testing.TB) map[string]struct {
	value string
	set   func(*Local)
} {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	type row = struct {
		value string
		set   func(*Local)
	}
	return map[string]row{
		"CLUSTER_NAME":       {"other-1", func(l *Local) { l.ClusterName = "other-1" }},
		"CLUSTER_MOUNT":      {"/other", func(l *Local) { l.ClusterMount = "/other" }},
		"HOST_ID":            {"0123456789abcdef", func(l *Local) { l.HostID = "0123456789abcdef" }},
		"NODE_NAME":          {"node7", func(l *Local) { l.NodeName, l.NodeAddress = "node7", "node7" }},
		"NODE_ADDRESS":       {"10.0.0.7", func(l *Local) { l.NodeAddress = "10.0.0.7" }},
		"ETCD_ENDPOINTS":     {"https://a:1,[::1]:2", func(l *Local) { l.EtcdEndpoints = []string{"https://a:1", "[::1]:2"} }},
		"ETCD_CACERT":        {"/ca", func(l *Local) { l.EtcdCACert = "/ca" }},
		"ETCD_CERT":          {"/cert\nETCD_KEY=/k", func(l *Local) { l.EtcdCert, l.EtcdKey = "/cert", "/k" }},
		"ETCD_KEY":           {"/k\nETCD_CERT=/cert", func(l *Local) { l.EtcdCert, l.EtcdKey = "/cert", "/k" }},
		"ETCD_USERNAME":      {"u\nETCD_PASSWORD_FILE=" + secret, func(l *Local) { l.EtcdUsername, l.EtcdPasswordFile = "u", secret }},
		"ETCD_PASSWORD_FILE": {secret + "\nETCD_USERNAME=u", func(l *Local) { l.EtcdUsername, l.EtcdPasswordFile = "u", secret }},
		"HYPERVISORS":        {"lxc,libvirt", func(l *Local) { l.Hypervisors = []string{"lxc", "libvirt"} }},
		"LIBVIRT_URI":        {"qemu:///session?socket=/x", func(l *Local) { l.LibvirtURI = "qemu:///session?socket=/x" }},
		"LIBVIRT_LXC_URI":    {"lxc:///system", func(l *Local) { l.LibvirtLXCURI = "lxc:///system" }},
		"FENCE_DIR":          {"/fence", func(l *Local) { l.FenceDir = "/fence" }},
		"WATCHDOG_DEVICE":    {"/dev/watchdog1", func(l *Local) { l.WatchdogDevice = "/dev/watchdog1" }},
		"RESET_COMMAND":      {"echo c >/proc/sysrq-trigger", func(l *Local) { l.ResetCommand = "echo c >/proc/sysrq-trigger" }},
		"LISTEN_ADDRESS":     {":9000", func(l *Local) { l.ListenAddress = ":9000" }},
		"WEB_CONFIG_FILE":    {"/web", func(l *Local) { l.WebConfigFile = "/web" }},
		"STATE_DIR":          {"/state/", func(l *Local) { l.StateDir = "/state" }},
		"RUN_DIR":            {"/r", func(l *Local) { l.RunDir = "/r" }},
		"BOOT_ID_FILE":       {"/boot", func(l *Local) { l.BootIDFile = "/boot" }},
		"HARDWARE_ID":        {"hw", func(l *Local) { l.HardwareID = "hw" }},
		"NODE_MEMORY":        {"64GiB", func(l *Local) { l.NodeMemory = 64 << 30 }},
		"CPU_POOL":           {"p", func(l *Local) { l.CPUPool = "p" }},
		"MAX_VMS":            {"1", func(l *Local) { l.MaxVMs = 1 }},
		"MAX_CTS":            {"2", func(l *Local) { l.MaxCTs = 2 }},
		"MAX_VES":            {"3", func(l *Local) { l.MaxVEs = 3 }},
		"RESCAN_INTERVAL":    {"500ms", func(l *Local) { l.RescanInterval = 500 * time.Millisecond }},
		"LOG_LEVEL":          {"4", func(l *Local) { l.LogLevel = 4 }},
		"LOG_FORMAT":         {"console", func(l *Local) { l.LogFormat = "console" }},
	}
}

func TestEveryLocalKeyTakesEffect(t *testing.T) {
	rows := everyLocalKey(t)
	for _, k := range LocalReference() {
		t.Run(k.Name, func(t *testing.T) {
			row, ok := rows[k.Name]
			if !ok {
				t.Fatal("the key is in the reference, and nothing is known of its effect")
			}
			var text strings.Builder
			for _, line := range strings.SplitAfter(required, "\n") {
				if !strings.HasPrefix(line, k.Name+"=") {
					text.WriteString(line)
				}
			}
			text.WriteString(k.Name + "=" + row.value + "\n")
			got, _, err := parseLocal("shaman.conf", []byte(text.String()), nil)
			if err != nil {
				t.Fatal(err)
			}
			want := localDefaults(t)
			row.set(&want)
			if diff := cmp.Diff(want, got, ignoreOrigins); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheEnvironmentOverridesEveryKey(t *testing.T) {
	for _, k := range LocalReference() {
		environ := []string{"HOME=/root", "SHAMAN_" + k.Name + "=\tbad\x01\t"}
		got, _, err := parseLocal("shaman.conf", []byte(required), environ)
		if got.text[k.Name] != "\tbad\x01\t" || got.from[k.Name] != "environment variable SHAMAN_"+k.Name {
			t.Errorf("%s is %q from %s", k.Name, got.text[k.Name], got.from[k.Name])
		}
		if err != nil && strings.Contains(err.Error(), "shaman.conf:") {
			t.Errorf("%s: the error blames the file: %v", k.Name, err)
		}
	}
}

func TestTheEnvironmentIsNamedWhenItIsWrong(t *testing.T) {
	_, _, err := parseLocal("shaman.conf", []byte(required), []string{"SHAMAN_MAX_VMS=many"})
	if err == nil || !strings.Contains(err.Error(), "environment variable SHAMAN_MAX_VMS: MAX_VMS: \"many\"") {
		t.Errorf("error is %v", err)
	}
}

func TestUnknownVariablesOfTheEnvironmentAreWarnedOf(t *testing.T) {
	_, warns, err := parseLocal("shaman.conf", []byte(required), []string{"SHAMAN_CLUSTER_MONT=/x", "SHAMAN_LAB_DIR=/y", "OTHER=1"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Warning{`environment variable SHAMAN_CLUSTER_MONT is not used: unknown key "CLUSTER_MONT"; did you mean CLUSTER_MOUNT?`}
	if diff := cmp.Diff(want, warns); diff != "" {
		t.Error(diff)
	}
}

func TestLinesShowWhereEachValueCameFrom(t *testing.T) {
	l, _, err := parseLocal("/etc/s.conf", []byte(required), []string{"SHAMAN_LOG_LEVEL=4"})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(l.Lines(true), "\n")
	for _, want := range []string{"CLUSTER_NAME=lab\t# /etc/s.conf:1", "LOG_LEVEL=4\t# environment variable SHAMAN_LOG_LEVEL", "LOG_FORMAT=json\t# default", "CPU_POOL=\t# default"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if got := l.Lines(false); strings.Contains(strings.Join(got, "\n"), "#") || strings.Contains(strings.Join(got, "\n"), "CPU_POOL") {
		t.Errorf("not verbose, and yet %v", got)
	}
}

func TestLoadLocalOfAMissingFile(t *testing.T) {
	_, _, err := LoadLocal(filepath.Join(t.TempDir(), "none.conf"), nil)
	if _, ok := errors.AsType[*UsageError](err); !ok || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want a usage error that says the file is missing", err)
	}
}

func TestNodeMemoryIsInBytes(t *testing.T) {
	l, _, err := parseLocal("f", []byte(required+"NODE_MEMORY=1024\n"), nil)
	if err != nil || l.NodeMemory != cluster.Bytes(1024) {
		t.Errorf("NODE_MEMORY=%d, %v", l.NodeMemory, err)
	}
}
