package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestLocalErrorsNameFileLineKeyAndWhatIsAllowed(t *testing.T) {
	const next = "shaman.conf:4: " // the line after the required ones
	for _, tt := range []struct{ name, line, want string }{
		{"an unknown key, with the one that is meant", "CLUSTER_MONT=/x", next + `unknown key "CLUSTER_MONT"; did you mean CLUSTER_MOUNT?`},
		{"an unknown key that is like no other", "WHATEVER_IT_IS=1", next + `unknown key "WHATEVER_IT_IS"; the configuration reference lists all keys`},
		{"a key in lower case is unknown", "log_level=1", next + `unknown key "log_level"; did you mean LOG_LEVEL?`},
		{"a cluster-wide key", "LOCK_TIMEOUT=5", next + "LOCK_TIMEOUT is a cluster-wide parameter; set it with 'shaman set-config'"},
		{"no KEY=VALUE", "LOG_LEVEL", next + `"LOG_LEVEL" is not KEY=VALUE`},
		{"blanks around the sign", "LOG_LEVEL = 1", next + "LOG_LEVEL: blanks around '=' or at the ends are not allowed"},
		{"a blank at the end", "LOG_LEVEL=1 ", next + "LOG_LEVEL: blanks"},
		{"a blank at the begin", " LOG_LEVEL=1", next + "LOG_LEVEL: blanks"},
		{"a key set twice, though to the same value", "CLUSTER_NAME=lab", next + "CLUSTER_NAME is set a second time, first in line 1"},
		{"a host id that is none", "HOST_ID=12", next + `HOST_ID: host id "12": want 16 hexadecimal digits`},
		{"a node name with a slash", "NODE_NAME=a/b", next + `NODE_NAME: "a/b" is not allowed; want a name without blanks, commas or slashes`},
		{"a driver that does not exist", "HYPERVISORS=process,xen", next + `HYPERVISORS: "xen" is no driver of this version; there are: process, libvirt, libvirt-lxc, lxc, prlctl, scripts`},
		{"another host's hypervisor", "LIBVIRT_URI=qemu+ssh://n2/system", next + `LIBVIRT_URI: "qemu+ssh://n2/system" is not allowed; want the URI of this host's own daemon`},
		{"no driver at all", "HYPERVISORS=", next + `HYPERVISORS: "" is no driver`},
		{"a relative directory", "STATE_DIR=state", next + `STATE_DIR: "state" is not allowed; want an absolute path`},
		{"an empty directory is not the working directory", "STATE_DIR=", next + `STATE_DIR: "" is not allowed; want an absolute path`},
		{"an empty RUN_DIR", "RUN_DIR=", next + "RUN_DIR:"},
		{"an empty FENCE_DIR", "FENCE_DIR=", next + "FENCE_DIR:"},
		{"an empty WATCHDOG_DEVICE", "WATCHDOG_DEVICE=", next + "WATCHDOG_DEVICE:"},
		{"an empty BOOT_ID_FILE", "BOOT_ID_FILE=", next + "BOOT_ID_FILE:"},
		{"an address without a port", "LISTEN_ADDRESS=127.0.0.1", next + `LISTEN_ADDRESS: "127.0.0.1" is not allowed; want host:port`},
		{"a size in decimal units", "NODE_MEMORY=64GB", next + `NODE_MEMORY: "64GB" is no size; want bytes, or a number with KiB, MiB, GiB or TiB`},
		{"a negative count", "MAX_VMS=-1", next + `MAX_VMS: "-1" is not allowed; want a whole number from 0`},
		{"a rescan without a pause", "RESCAN_INTERVAL=0", next + `RESCAN_INTERVAL: "0" is out of range; want 100ms to 60s`},
		{"a log level by name", "LOG_LEVEL=debug", next + `LOG_LEVEL: "debug" is not allowed; want a whole number from 0 to 4`},
		{"an unknown log format", "LOG_FORMAT=text", next + `LOG_FORMAT: "text" is not allowed; want json or console`},
		{"a certificate without its key", "ETCD_CERT=/c", next + "ETCD_CERT and ETCD_KEY need each other"},
		{"a user without a password", "ETCD_USERNAME=u", next + "ETCD_USERNAME and ETCD_PASSWORD_FILE need each other"},
		{"a password file that is missing", "ETCD_PASSWORD_FILE=/none/of/it\nETCD_USERNAME=u", next + "ETCD_PASSWORD_FILE: stat /none/of/it"},
		{"a binary file", "\x7fELF\x00\x01", next + `"\x7fELF\x00\x01" is not KEY=VALUE`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := parseLocal("shaman.conf", []byte(required+tt.line+"\n"), nil)
			if _, ok := errors.AsType[*UsageError](err); !ok || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

func TestRequiredKeys(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"a missing cluster name", "CLUSTER_MOUNT=/m\nETCD_ENDPOINTS=a:1\n", "CLUSTER_NAME is missing"},
		{"a missing mount", "CLUSTER_NAME=a\nETCD_ENDPOINTS=a:1\n", "CLUSTER_MOUNT is missing"},
		{"a mount that is set to nothing", "CLUSTER_NAME=a\nCLUSTER_MOUNT=\nETCD_ENDPOINTS=a:1\n", "CLUSTER_MOUNT is missing"},
		{"missing endpoints", "CLUSTER_NAME=a\nCLUSTER_MOUNT=/m\n", "ETCD_ENDPOINTS is missing"},
		{"a relative mount", "CLUSTER_NAME=a\nCLUSTER_MOUNT=m\nETCD_ENDPOINTS=a:1\n", "f:2: CLUSTER_MOUNT: \"m\""},
		{"a cluster name that etcd's keys cannot hold", "CLUSTER_NAME=a/b\nCLUSTER_MOUNT=/m\nETCD_ENDPOINTS=a:1\n", "f:1: CLUSTER_NAME: \"a/b\""},
		{"an endpoint without a port", "CLUSTER_NAME=a\nCLUSTER_MOUNT=/m\nETCD_ENDPOINTS=a:1,b\n", "f:3: ETCD_ENDPOINTS: \"b\""},
		{"an empty endpoint", "CLUSTER_NAME=a\nCLUSTER_MOUNT=/m\nETCD_ENDPOINTS=a:1,\n", "f:3: ETCD_ENDPOINTS: \"\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, _, err := parseLocal("f", []byte(tt.text), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			if l.ClusterMount == "." {
				t.Error("a missing mount became the working directory")
			}
		})
	}
}

func TestAllErrorsAreReportedTogether(t *testing.T) {
	_, _, err := parseLocal("f", []byte("LOG_LEVEL=9\nMAX_VMS=x\nNO_KEY=1\n"), nil)
	for _, want := range []string{"f:1: LOG_LEVEL", "f:2: MAX_VMS", "f:3: unknown key", "CLUSTER_NAME is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

func TestAPasswordFileThatOthersMayReadIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err := parseLocal("f", []byte(required+"ETCD_USERNAME=u\nETCD_PASSWORD_FILE="+file+"\n"), nil)
	if err == nil || !strings.Contains(err.Error(), "f:5: ETCD_PASSWORD_FILE") || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("error is %v", err)
	}
}

func FuzzParseLocal(f *testing.F) {
	f.Add(required)
	f.Add("# comment\r\n\r\n" + strings.ReplaceAll(required, "\n", "\r\n"))
	f.Add(required + "HOST_ID=0123456789abcdef\nNODE_MEMORY=64GiB\nRESCAN_INTERVAL=.5\nMAX_VMS=3")
	f.Add("CLUSTER_NAME=\xff\xfe\nHYPERVISORS=,,\n=\n==\n\x00")
	f.Add(required + "STATE_DIR=\nRUN_DIR=.\nLOG_LEVEL=4")
	f.Fuzz(func(t *testing.T, text string) {
		l, _, err := parseLocal("f", []byte(text), nil)
		if err != nil {
			if _, ok := errors.AsType[*UsageError](err); !ok {
				t.Fatalf("%v is no usage error", err)
			}
			return
		}
		for _, dir := range []string{l.ClusterMount, l.StateDir, l.RunDir, l.FenceDir, l.WatchdogDevice, l.BootIDFile} {
			if !filepath.IsAbs(dir) {
				t.Fatalf("accepted a path that depends on the working directory: %q", dir)
			}
		}
		if l.HostID != "" {
			if _, err := cluster.ParseNodeID(l.HostID); err != nil {
				t.Fatal(err)
			}
		}
		if len(l.EtcdEndpoints) == 0 || l.ClusterName == "" || l.NodeName == "" || l.NodeAddress == "" {
			t.Fatalf("accepted without what is needed: %+v", l)
		}
		again, _, err := parseLocal("f", []byte(strings.Join(l.Lines(false), "\n")), nil)
		if err != nil || strings.Join(again.Lines(false), "\n") != strings.Join(l.Lines(false), "\n") {
			t.Fatalf("what is printed is not read back: %v\n%v\n%v", err, l.Lines(false), again.Lines(false))
		}
	})
}
