package config

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

func TestParseDuration(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     time.Duration
		bad      bool
	}{
		{name: "a bare number is seconds", in: "10", want: 10 * time.Second},
		{name: "a bare number may have a fraction", in: "0.5", want: 500 * time.Millisecond},
		{name: "milliseconds", in: "500ms", want: 500 * time.Millisecond},
		{name: "minutes", in: "2m", want: 2 * time.Minute},
		{name: "nothing is no duration", in: "", bad: true},
		{name: "a negative number is refused", in: "-1", bad: true},
		{name: "a negative duration is refused", in: "-1s", bad: true},
		{name: "a word is refused", in: "soon", bad: true},
		{name: "an unknown unit is refused", in: "5d", bad: true},
		{name: "a blank inside is refused", in: "5 s", bad: true},
		{name: "infinity is refused", in: "inf", bad: true},
		{name: "what is no number is refused", in: "nan", bad: true},
		{name: "seconds that would overflow are refused", in: "1e10", bad: true},
		{name: "hours whose sums would overflow are refused", in: "2000000h", bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseDuration(tt.in)
			if tt.bad != (err != nil) || !tt.bad && got != tt.want {
				t.Errorf("ParseDuration(%q) = %v, %v; want %v, bad %v", tt.in, got, err, tt.want, tt.bad)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     cluster.Bytes
		bad      bool
	}{
		{name: "a bare number is bytes", in: "1024", want: 1024},
		{name: "mebibytes", in: "512MiB", want: 512 << 20},
		{name: "tebibytes", in: "2TiB", want: 2 << 40},
		{name: "zero", in: "0", want: 0},
		{name: "nothing is no size", in: "", bad: true},
		{name: "a unit alone is no size", in: "MiB", bad: true},
		{name: "a decimal unit is refused rather than taken for a binary one", in: "512MB", bad: true},
		{name: "a fraction is refused", in: "1.5GiB", bad: true},
		{name: "a blank is refused", in: "512 MiB", bad: true},
		{name: "a negative size is refused", in: "-1", bad: true},
		{name: "two units are refused", in: "1MiBGiB", bad: true},
		{name: "what does not fit is refused", in: "9007199254740992KiB", bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseSize(tt.in)
			if tt.bad != (err != nil) || !tt.bad && got != tt.want {
				t.Errorf("ParseSize(%q) = %v, %v; want %v, bad %v", tt.in, got, err, tt.want, tt.bad)
			}
		})
	}
}

func TestDurationsAndSizesReadBackWhatIsPrinted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(maxDuration)).Draw(t, "duration"))
		if got, err := ParseDuration(d.String()); err != nil || got != d {
			t.Fatalf("ParseDuration(%q) = %v, %v", d, got, err)
		}
		n := cluster.Bytes(rapid.Int64Min(0).Draw(t, "size"))
		if got, err := ParseSize(strconv.FormatInt(int64(n), 10)); err != nil || got != n {
			t.Fatalf("size %d reads as %d, %v", n, got, err)
		}
	})
}

func TestNoSizeIsEverNegative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[0-9]{1,20}([KMGT]iB)?`).Draw(t, "size")
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Fatalf("%s reads as %d", s, n)
		}
	})
}

func TestReferenceCoversEveryKey(t *testing.T) {
	ref := Reference()
	for _, k := range append(LocalReference(), ClusterReference()...) {
		if k.Allowed == "" || k.Meaning == "" {
			t.Errorf("%s does not say what is allowed and what it means", k.Name)
		}
		row := "| `" + k.Name + "` | "
		if k.Default != "" {
			row += "`" + k.Default + "`"
		}
		row += " | " + k.Allowed + " | " + k.Meaning + " |\n"
		if !strings.Contains(ref, row) {
			t.Errorf("the reference has no row\n%s", row)
		}
	}
}

// The names are a contract: operators have files and scripts with them.
func TestTheKeysOfTheContractExist(t *testing.T) {
	names := func(keys []Key) (out []string) {
		for _, k := range keys {
			out = append(out, k.Name)
		}
		return out
	}
	if diff := cmp.Diff([]string{
		"CLUSTER_NAME", "CLUSTER_MOUNT", "HOST_ID", "NODE_NAME", "NODE_ADDRESS", "ETCD_ENDPOINTS", "ETCD_CACERT", "ETCD_CERT", "ETCD_KEY", "ETCD_USERNAME", "ETCD_PASSWORD_FILE",
		"HYPERVISORS", "LIBVIRT_URI", "LIBVIRT_LXC_URI", "FENCE_DIR", "WATCHDOG_DEVICE", "RESET_COMMAND", "LISTEN_ADDRESS", "WEB_CONFIG_FILE", "STATE_DIR", "RUN_DIR", "BOOT_ID_FILE", "HARDWARE_ID", "NODE_MEMORY", "CPU_POOL",
		"MAX_VMS", "MAX_CTS", "MAX_VES", "RESCAN_INTERVAL", "LOG_LEVEL", "LOG_FORMAT",
	}, names(LocalReference())); diff != "" {
		t.Errorf("local keys:\n%s", diff)
	}
	if diff := cmp.Diff([]string{
		"LOCK_TIMEOUT", "SELF_FENCE_TIMEOUT", "WATCHDOG_TIMEOUT", "WATCHDOG_TRUST_VIRTUAL", "FENCE_METHODS", "STOP_BUDGET", "HEARTBEAT_INTERVAL", "LEASE_LOST_ACTION",
		"POOL_CHECK_TIMEOUT", "RELOCATION_SKIP_THRESHOLD", "NODE_CRASH_PER_HOUR_THRESHOLD", "RESOURCE_RELOCATION_MODE", "MAX_PARALLEL_STARTS", "START_RETRIES", "RELOCATE_RETRIES",
		"ACTION_TIMEOUT", "LOCK_RETRY_TIMEOUT", "HOST_MEMORY_RESERVE", "SHUTDOWN_POLICY", "LEASE_CHECK_TIMEOUT_FOR_SLAVE", "LEASE_CHECK_TIMEOUT_FOR_MASTER", "WATCHDOG_ACTION",
	}, names(ClusterReference())); diff != "" {
		t.Errorf("cluster-wide keys:\n%s", diff)
	}
}
