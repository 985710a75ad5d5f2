package config

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var ignoreText = cmpopts.IgnoreUnexported(Cluster{})

func clusterDefaults() Cluster {
	return Cluster{
		LockTimeout: 10 * time.Second, WatchdogTimeout: 5 * time.Second, FenceMethods: []string{"storage", "agent", "watchdog", "manual"},
		StopBudget: 15 * time.Second, LeaseLostAction: "reboot", PoolCheckTimeout: 30 * time.Second, NodeCrashThreshold: 3,
		RelocationMode: "drs,round-robin", MaxParallelStarts: 4, StartRetries: 1, RelocateTries: 1, ActionTimeout: 60 * time.Second,
		LockRetryTimeout: 150 * time.Second, HostMemoryReserve: 512 << 20, ShutdownPolicy: "freeze",
	}
}

func TestTheDefaultsAreAccepted(t *testing.T) {
	if diff := cmp.Diff(clusterDefaults(), MustDefaults(), ignoreText); diff != "" {
		t.Error(diff)
	}
}

func TestEveryDefaultMayBeWrittenOut(t *testing.T) {
	set := map[string]string{}
	for _, k := range ClusterReference() {
		set[k.Name] = k.Default // "" returns to the default
	}
	got, warns, err := ParseCluster(set)
	if err != nil || len(warns) > 0 {
		t.Fatalf("error %v, warnings %v", err, warns)
	}
	if diff := cmp.Diff(clusterDefaults(), got, ignoreText); diff != "" {
		t.Error(diff)
	}
}

func TestAnEmptyValueReturnsToTheDefault(t *testing.T) {
	got, _, err := ParseCluster(map[string]string{"STOP_BUDGET": "", "MAX_PARALLEL_STARTS": "", "FENCE_METHODS": ""})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(clusterDefaults(), got, ignoreText); diff != "" {
		t.Error(diff)
	}
}

func TestEveryClusterWideKeyTakesEffect(t *testing.T) {
	for _, k := range ClusterReference() {
		row, ok := map[string]struct {
			value string
			set   func(*Cluster)
			warn  Warning
		}{
			"LOCK_TIMEOUT":                   {"20", func(c *Cluster) { c.LockTimeout = 20 * time.Second }, ""},
			"SELF_FENCE_TIMEOUT":             {"12s", func(c *Cluster) { c.SelfFenceTimeout = 12 * time.Second }, ""},
			"WATCHDOG_TIMEOUT":               {"0", func(c *Cluster) { c.WatchdogTimeout = 0 }, ""},
			"WATCHDOG_TRUST_VIRTUAL":         {"yes", func(c *Cluster) { c.WatchdogTrustVirtual = true }, ""},
			"FENCE_METHODS":                  {"agent,rebooted", func(c *Cluster) { c.FenceMethods = []string{"agent", "rebooted"} }, ""},
			"STOP_BUDGET":                    {"9", func(c *Cluster) { c.StopBudget = 9 * time.Second }, ""},
			"HEARTBEAT_INTERVAL":             {"500ms", func(c *Cluster) { c.HeartbeatInterval = 500 * time.Millisecond }, ""},
			"LEASE_LOST_ACTION":              {"none", func(c *Cluster) { c.LeaseLostAction = "none" }, ""},
			"POOL_CHECK_TIMEOUT":             {"1m", func(c *Cluster) { c.PoolCheckTimeout = time.Minute }, ""},
			"RELOCATION_SKIP_THRESHOLD":      {"7", func(c *Cluster) { c.RelocationSkipThreshold = 7 }, ""},
			"NODE_CRASH_PER_HOUR_THRESHOLD":  {"0", func(c *Cluster) { c.NodeCrashThreshold = 0 }, ""},
			"RESOURCE_RELOCATION_MODE":       {"spare,drs", func(c *Cluster) { c.RelocationMode = "spare,drs" }, ""},
			"MAX_PARALLEL_STARTS":            {"256", func(c *Cluster) { c.MaxParallelStarts = 256 }, ""},
			"START_RETRIES":                  {"0", func(c *Cluster) { c.StartRetries = 0 }, ""},
			"RELOCATE_RETRIES":               {"5", func(c *Cluster) { c.RelocateTries = 5 }, ""},
			"ACTION_TIMEOUT":                 {"90", func(c *Cluster) { c.ActionTimeout = 90 * time.Second }, ""},
			"LOCK_RETRY_TIMEOUT":             {"0", func(c *Cluster) { c.LockRetryTimeout = 0 }, ""},
			"HOST_MEMORY_RESERVE":            {"1GiB", func(c *Cluster) { c.HostMemoryReserve = 1 << 30 }, ""},
			"SHUTDOWN_POLICY":                {"failover", func(c *Cluster) { c.ShutdownPolicy = "failover" }, ""},
			"LEASE_CHECK_TIMEOUT_FOR_SLAVE":  {"3", func(c *Cluster) { c.Patience = 3 * time.Second }, ""},
			"LEASE_CHECK_TIMEOUT_FOR_MASTER": {"3", func(*Cluster) {}, "LEASE_CHECK_TIMEOUT_FOR_MASTER is accepted for compatibility and has no effect"},
			"WATCHDOG_ACTION":                {"netfilter", func(*Cluster) {}, "WATCHDOG_ACTION is accepted for compatibility and has no effect"},
		}[k.Name]
		if !ok {
			t.Errorf("%s is in the reference, and nothing is known of its effect", k.Name)
			continue
		}
		got, warns, err := ParseCluster(map[string]string{k.Name: row.value})
		if err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
		want := clusterDefaults()
		row.set(&want)
		if diff := cmp.Diff(want, got, ignoreText); diff != "" {
			t.Errorf("%s: %s", k.Name, diff)
		}
		if row.warn != "" != (len(warns) > 0) || row.warn != "" && warns[0] != row.warn {
			t.Errorf("%s: warnings %v, want %q", k.Name, warns, row.warn)
		}
	}
}

func TestTheOriginalsLeaseLostActionsMeanReboot(t *testing.T) {
	for _, v := range []string{"crash", "halt"} {
		c, warns, err := ParseCluster(map[string]string{"LEASE_LOST_ACTION": v})
		if err != nil || c.LeaseLostAction != "reboot" || len(warns) != 1 {
			t.Errorf("%s: %q, warnings %v, %v", v, c.LeaseLostAction, warns, err)
		}
	}
}

func TestTheBrakeOfSmallClusters(t *testing.T) {
	c, _, err := ParseCluster(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]int{}
	for _, n := range []int{0, 1, 2, 3, 4, 100} {
		got[n] = c.SkipThreshold(n)
	}
	if diff := cmp.Diff(map[int]int{0: 3, 1: 3, 2: 3, 3: 2, 4: 3, 100: 3}, got); diff != "" {
		t.Error(diff)
	}
	if c, _, err := ParseCluster(map[string]string{"RELOCATION_SKIP_THRESHOLD": "3"}); err != nil || c.SkipThreshold(3) != 3 {
		t.Errorf("what is set does not count in a cluster of 3: %d, %v", c.SkipThreshold(3), err)
	}
}

func TestClusterWideValuesThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ name, key, value, want string }{
		{"an unknown key, with the one that is meant", "LOCK_TIMEOT", "5", "did you mean LOCK_TIMEOUT?"},
		{"a lease of one second", "LOCK_TIMEOUT", "1", "LOCK_TIMEOUT: \"1\" is not allowed; want whole seconds from 2 to 3600"},
		{"a lease that etcd cannot grant", "LOCK_TIMEOUT", "2500ms", "whole seconds"},
		{"no self-fencing", "SELF_FENCE_TIMEOUT", "0", "SELF_FENCE_TIMEOUT: \"0\" is not allowed; want more than 0"},
		{"a watchdog time-out that devices cannot count", "WATCHDOG_TIMEOUT", "2500ms", "want 0 (off) or whole seconds from 2 to 3600"},
		{"a watchdog time-out that is too short", "WATCHDOG_TIMEOUT", "1s", "want 0 (off) or whole seconds from 2 to 3600"},
		{"no time to stop anything", "STOP_BUDGET", "0", "want at least 100ms"},
		{"a boolean in another language", "WATCHDOG_TRUST_VIRTUAL", "true", "want yes or no"},
		{"an unknown fence method", "FENCE_METHODS", "agent,luck", "\"luck\" is not allowed or named twice; want of storage, agent, watchdog, rebooted, manual"},
		{"a fence method named twice", "FENCE_METHODS", "agent,agent", "named twice"},
		{"a heartbeat without a pause", "HEARTBEAT_INTERVAL", "0", "want at least 50ms"},
		{"an unknown action", "LEASE_LOST_ACTION", "pray", "\"pray\" is not allowed; want reboot or none"},
		{"a brake that one lost node pulls", "RELOCATION_SKIP_THRESHOLD", "1", "want a whole number from 2"},
		{"a policy that does not exist", "RESOURCE_RELOCATION_MODE", "drs,random", "\"random\" is not allowed"},
		{"a policy named twice", "RESOURCE_RELOCATION_MODE", "drs,drs", "named twice"},
		{"no starts at all", "MAX_PARALLEL_STARTS", "0", "from 1 to 256"},
		{"a negative number of tries", "START_RETRIES", "-1", "from 0 to 100"},
		{"a deadline of nothing", "ACTION_TIMEOUT", "0", "want at least 1s"},
		{"a decimal size", "HOST_MEMORY_RESERVE", "1GB", "KiB, MiB, GiB or TiB"},
		{"an unknown policy for shutdowns", "SHUTDOWN_POLICY", "migrate", "want freeze or failover"},
		{"nonsense in a key without effect", "LEASE_CHECK_TIMEOUT_FOR_MASTER", "soon", "LEASE_CHECK_TIMEOUT_FOR_MASTER: \"soon\" is no duration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := ParseCluster(map[string]string{tt.key: tt.value})
			if _, ok := errors.AsType[*UsageError](err); !ok || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

func TestUnsafeRelations(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  map[string]string
		want string // "" = accepted
	}{
		{"the lab's lease of 2 seconds", map[string]string{"LOCK_TIMEOUT": "2"}, ""},
		{"a self-fencing shorter than a harmless cut", map[string]string{"SELF_FENCE_TIMEOUT": "7.9"}, "SELF_FENCE_TIMEOUT=7.9s is too short for LOCK_TIMEOUT=10s"},
		{"a self-fencing just as long as a harmless cut", map[string]string{"SELF_FENCE_TIMEOUT": "8"}, ""},
		{"a longer lease makes a fixed self-fencing too short", map[string]string{"LOCK_TIMEOUT": "20", "SELF_FENCE_TIMEOUT": "10"}, "SELF_FENCE_TIMEOUT=10s"},
		{"heartbeats of which two may not be missed", map[string]string{"HEARTBEAT_INTERVAL": "1700ms"}, "HEARTBEAT_INTERVAL=1.7s is too long for SELF_FENCE_TIMEOUT=10s"},
		{"heartbeats of which two may just be missed", map[string]string{"HEARTBEAT_INTERVAL": "1600ms"}, ""},
		{"heartbeats whose sum would overflow", map[string]string{"HEARTBEAT_INTERVAL": "1e9"}, "HEARTBEAT_INTERVAL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := ParseCluster(tt.set)
			_, unsafe := errors.AsType[*UnsafeError](err)
			if tt.want == "" && err != nil || tt.want != "" && (!unsafe || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error is %v, want an unsafe relation with %q", err, tt.want)
			}
		})
	}
}

func TestEveryLeaseIsSafeWithAllElseAtItsDefault(t *testing.T) {
	for l := 2; l <= 3600; l++ {
		if _, _, err := ParseCluster(map[string]string{"LOCK_TIMEOUT": strconv.Itoa(l)}); err != nil {
			t.Errorf("LOCK_TIMEOUT=%d: %v", l, err)
		}
	}
}

// What is accepted keeps the inequalities of the safety argument, whatever is set.
func TestWhatIsAcceptedIsSafe(t *testing.T) {
	duration := rapid.OneOf(rapid.StringMatching(`[0-9]{1,3}(ms|s|m|h)?`), rapid.SampledFrom([]string{"", "8s", "10s", "2000000h", "1537228672809129h", "1e9", "307445734s"}))
	rapid.Check(t, func(t *rapid.T) {
		set := map[string]string{}
		for _, k := range []string{"LOCK_TIMEOUT", "SELF_FENCE_TIMEOUT", "HEARTBEAT_INTERVAL"} {
			set[k] = duration.Draw(t, k)
		}
		c, _, err := ParseCluster(set)
		if err != nil {
			return
		}
		n := c.Timing()
		for what, bound := range map[string][2]time.Duration{
			"K + L/2 + a + b ≤ L − m": {n.Renew + n.Lease/2 + n.Attempt + 100*time.Millisecond, n.Lease - n.Margin},
			"K + L/2 + a ≤ P":         {n.Renew + n.Lease/2 + n.Attempt, n.SelfFence},
			"2(H + D) ≤ P":            {2 * (n.Heartbeat + n.Probe), n.SelfFence},
			"H, D below P":            {max(n.Heartbeat, n.Probe), n.SelfFence},
		} {
			if bound[0] > bound[1] || bound[0] <= 0 {
				t.Fatalf("%v is accepted against %s: %v", set, what, bound)
			}
		}
	})
}

func TestWatchdogProof(t *testing.T) {
	if diff := cmp.Diff(28026*time.Millisecond, MustDefaults().WatchdogProof()); diff != "" {
		t.Error(diff)
	}
}

func TestLinesRenderWhatIsInForce(t *testing.T) {
	c, _, err := ParseCluster(map[string]string{"LOCK_TIMEOUT": "2"})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(c.Lines(true, 3), "\n")
	for _, want := range []string{"LOCK_TIMEOUT=2", "SELF_FENCE_TIMEOUT=2s", "HEARTBEAT_INTERVAL=200ms", "RELOCATION_SKIP_THRESHOLD=2", "STOP_BUDGET=15s", "acted on for 1.8s"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestParseSet(t *testing.T) {
	got, err := ParseSet([]string{"LOCK_TIMEOUT=5", "STOP_BUDGET=", "RESOURCE_RELOCATION_MODE=drs,spare"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"LOCK_TIMEOUT": "5", "STOP_BUDGET": "", "RESOURCE_RELOCATION_MODE": "drs,spare"}, got); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"LOCK_TIMEOUT"}, `"LOCK_TIMEOUT" is not KEY=VALUE`},
		{[]string{"HOST_ID=1"}, "HOST_ID is a parameter of the local file"},
		{[]string{"STOP_BUGET=1"}, "did you mean STOP_BUDGET?"},
		{[]string{"STOP_BUDGET=1", "STOP_BUDGET=2"}, "STOP_BUDGET is set twice"},
	} {
		_, err := ParseSet(tt.args)
		if _, ok := errors.AsType[*UsageError](err); !ok || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: error is %v, want %q", tt.args, err, tt.want)
		}
	}
}
