package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Cluster is the set of cluster-wide parameters.
type Cluster struct {
	LockTimeout, SelfFenceTimeout, WatchdogTimeout time.Duration
	WatchdogTrustVirtual                           bool
	FenceMethods                                   []string
	StopBudget, HeartbeatInterval                  time.Duration
	LeaseLostAction                                string
	PoolCheckTimeout                               time.Duration
	RelocationSkipThreshold                        int // 0 = by the size of the cluster, see SkipThreshold
	NodeCrashThreshold                             int
	RelocationMode                                 string
	MaxParallelStarts, StartRetries, RelocateTries int
	ActionTimeout, LockRetryTimeout                time.Duration
	HostMemoryReserve                              cluster.Bytes
	ShutdownPolicy                                 string
	Patience                                       time.Duration // LEASE_CHECK_TIMEOUT_FOR_SLAVE

	text map[string]string
}

// ParseCluster reads the parameters that were set. Errors are UsageError or
// UnsafeError.
func ParseCluster(set map[string]string) (Cluster, []Warning, error) {
	c := Cluster{text: map[string]string{}}
	var warns []Warning
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(set)) {
		if !known(clusterKeys, k) {
			errs = append(errs, errors.New(unknown(clusterKeys, k)))
		}
	}
	for _, k := range clusterKeys {
		v, given := set[k.Name]
		if !given || v == "" {
			v = k.Default
		}
		c.text[k.Name] = v
		if v == "" {
			continue
		}
		if err := c.set(k.Name, v, &warns); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return c, warns, &UsageError{err}
	}
	if err := c.relations(); err != nil {
		return c, warns, &UnsafeError{err}
	}
	return c, warns, nil
}

// SkipThreshold is RELOCATION_SKIP_THRESHOLD in a cluster of so many nodes.
func (c Cluster) SkipThreshold(nodes int) int {
	switch {
	case c.RelocationSkipThreshold != 0:
		return c.RelocationSkipThreshold
	case nodes == 3:
		return 2
	}
	return 3
}

// MustDefaults are the parameters of a cluster where nothing was set.
func MustDefaults() Cluster {
	c, _, err := ParseCluster(nil)
	if err != nil {
		panic("the default configuration is refused: " + err.Error())
	}
	return c
}

var fenceMethods = []string{"storage", "agent", "watchdog", "rebooted", "manual"}

func (c *Cluster) set(key, v string, warns *[]Warning) (err error) {
	dur := func(d *time.Duration) { *d, err = ParseDuration(v) }
	oneOf := func(s *string, allowed ...string) {
		if *s = v; !slices.Contains(allowed, v) {
			err = fmt.Errorf("%q is not allowed; want %s", v, strings.Join(allowed, " or "))
		}
	}
	switch key {
	case "LOCK_TIMEOUT":
		if dur(&c.LockTimeout); err == nil && (c.LockTimeout < 2*time.Second || c.LockTimeout > time.Hour || c.LockTimeout%time.Second != 0) {
			err = fmt.Errorf("%q is not allowed; want whole seconds from 2 to 3600", v)
		}
	case "SELF_FENCE_TIMEOUT":
		if dur(&c.SelfFenceTimeout); err == nil && c.SelfFenceTimeout == 0 {
			err = fmt.Errorf("%q is not allowed; want more than 0, or nothing for LOCK_TIMEOUT", v)
		}
	case "WATCHDOG_TIMEOUT":
		if dur(&c.WatchdogTimeout); err == nil && c.WatchdogTimeout != 0 && (c.WatchdogTimeout < 2*time.Second || c.WatchdogTimeout > time.Hour || c.WatchdogTimeout%time.Second != 0) {
			err = fmt.Errorf("%q is not allowed; want 0 (off) or whole seconds from 2 to 3600", v)
		}
	case "WATCHDOG_TRUST_VIRTUAL":
		c.WatchdogTrustVirtual, err = parseYesNo(v)
	case "FENCE_METHODS":
		c.FenceMethods = strings.Split(v, ",")
		for i, m := range c.FenceMethods {
			if !slices.Contains(fenceMethods, m) || slices.Contains(c.FenceMethods[:i], m) {
				err = fmt.Errorf("%q is not allowed or named twice; want of %s, joined by commas", m, strings.Join(fenceMethods, ", "))
			}
		}
	case "STOP_BUDGET":
		if dur(&c.StopBudget); err == nil && c.StopBudget < 100*time.Millisecond {
			err = fmt.Errorf("%q is not allowed; want at least 100ms", v)
		}
	case "HEARTBEAT_INTERVAL":
		if dur(&c.HeartbeatInterval); err == nil && c.HeartbeatInterval < 50*time.Millisecond {
			err = fmt.Errorf("%q is not allowed; want at least 50ms", v)
		}
	case "LEASE_LOST_ACTION":
		oneOf(&c.LeaseLostAction, "reboot", "none", "crash", "halt")
		if err == nil && (v == "crash" || v == "halt") {
			c.LeaseLostAction = "reboot"
			*warns = append(*warns, Warning("LEASE_LOST_ACTION="+v+" is taken as reboot"))
		}
	case "POOL_CHECK_TIMEOUT":
		if dur(&c.PoolCheckTimeout); err == nil && c.PoolCheckTimeout < time.Second {
			err = fmt.Errorf("%q is not allowed; want at least 1s", v)
		}
	case "RELOCATION_SKIP_THRESHOLD":
		c.RelocationSkipThreshold, err = parseCount(v, 2, 1<<20)
	case "NODE_CRASH_PER_HOUR_THRESHOLD":
		c.NodeCrashThreshold, err = parseCount(v, 0, 1<<20)
	case "RESOURCE_RELOCATION_MODE":
		c.RelocationMode = v
		seen := map[string]bool{}
		for _, w := range strings.Split(v, ",") {
			if !slices.Contains([]string{"drs", "round-robin", "spare"}, w) || seen[w] {
				err = fmt.Errorf("%q is not allowed or named twice; want of drs, round-robin, spare, joined by commas", w)
			}
			seen[w] = true
		}
	case "MAX_PARALLEL_STARTS":
		c.MaxParallelStarts, err = parseCount(v, 1, 256)
	case "START_RETRIES":
		c.StartRetries, err = parseCount(v, 0, 100)
	case "RELOCATE_RETRIES":
		c.RelocateTries, err = parseCount(v, 0, 100)
	case "ACTION_TIMEOUT":
		if dur(&c.ActionTimeout); err == nil && c.ActionTimeout < time.Second {
			err = fmt.Errorf("%q is not allowed; want at least 1s", v)
		}
	case "LOCK_RETRY_TIMEOUT":
		dur(&c.LockRetryTimeout)
	case "HOST_MEMORY_RESERVE":
		c.HostMemoryReserve, err = ParseSize(v)
	case "SHUTDOWN_POLICY":
		oneOf(&c.ShutdownPolicy, "freeze", "failover")
	case "LEASE_CHECK_TIMEOUT_FOR_SLAVE":
		dur(&c.Patience)
	case "LEASE_CHECK_TIMEOUT_FOR_MASTER", "WATCHDOG_ACTION":
		if key != "WATCHDOG_ACTION" {
			_, err = ParseDuration(v)
		}
		*warns = append(*warns, Warning(key+" is accepted for compatibility and has no effect"))
	}
	return err
}

// Timing derives the numbers of the safety argument.
func (c Cluster) Timing() cluster.Timing {
	return cluster.NewTiming(c.LockTimeout, c.HeartbeatInterval, c.SelfFenceTimeout)
}

// reconnect is b: what a reconnect to etcd costs at first.
const reconnect = 100 * time.Millisecond

// relations refuses time-outs between which the safety argument does not hold.
func (c Cluster) relations() error {
	t := c.Timing()
	half := t.Lease / 2
	var errs []error
	if need, have := t.Renew+half+t.Attempt+reconnect, t.Lease-t.Margin; need > have {
		errs = append(errs, fmt.Errorf("LOCK_TIMEOUT=%s is too short: a cut of half of it has to be survived, which takes %s, and %s are left", t.Lease, need, have))
	}
	if need := t.Renew + half + t.Attempt; need > t.SelfFence {
		errs = append(errs, fmt.Errorf("SELF_FENCE_TIMEOUT=%s is too short for LOCK_TIMEOUT=%s: a harmless cut of the network lasts up to %s; want at least that", t.SelfFence, t.Lease, need))
	}
	if need := 2 * (t.Heartbeat + t.Probe); need > t.SelfFence {
		errs = append(errs, fmt.Errorf("HEARTBEAT_INTERVAL=%s is too long for SELF_FENCE_TIMEOUT=%s: two missed heartbeats take %s; want at most %s", t.Heartbeat, t.SelfFence, need, t.SelfFence/6))
	}
	return errors.Join(errs...)
}

// Lines renders the values in force in a cluster of so many nodes; verbose adds how long a proof takes.
func (c Cluster) Lines(verbose bool, nodes int) []string {
	var out []string
	for _, k := range clusterKeys {
		v := c.text[k.Name]
		switch k.Name {
		case "SELF_FENCE_TIMEOUT":
			v = c.Timing().SelfFence.String()
		case "HEARTBEAT_INTERVAL":
			v = c.Timing().Heartbeat.String()
		case "RELOCATION_SKIP_THRESHOLD":
			v = fmt.Sprint(c.SkipThreshold(nodes))
		}
		if v != "" {
			out = append(out, k.Name+"="+v)
		}
	}
	if verbose {
		out = append(out, c.budget()...)
	}
	return out
}

// budget tells how long after a power cut a proof can be there, by method.
func (c Cluster) budget() []string {
	t := c.Timing()
	lost := t.Lease + 500*time.Millisecond
	watchdog := fmt.Sprintf("# proof by watchdog: %s (T_wd %s after the last sign of life), if the device takes the time-out as it is", lost+c.WatchdogProof(), c.WatchdogProof())
	if c.WatchdogTimeout == 0 {
		watchdog = "# proof by watchdog: none (WATCHDOG_TIMEOUT=0)"
	}
	return []string{
		fmt.Sprintf("# a lost node is noticed %s after its last renewal at the latest (an etcd leader change can add %s)", lost, t.Lease+4*time.Second),
		fmt.Sprintf("# validity: a lease is acted on for %s after a renewal was sent", t.Lease-t.Margin),
		fmt.Sprintf("# proof by storage, of a node that lives and has lost etcd: %s, plus the time to stop its VEs (STOP_BUDGET, %s, at most)", lost, c.StopBudget),
		fmt.Sprintf("# proof by agent: %s, plus the time of the power switch (at most 40s); %s later for a node whose heartbeat goes on", lost, c.StopBudget+time.Second),
		fmt.Sprintf("# proof by rebooted: %s, once the node's new boot has answered", lost),
		watchdog,
		"# proof by manual: when an operator runs 'shaman fence confirm'",
	}
}

// WatchdogProof is T_wd with the configured numbers.
func (c Cluster) WatchdogProof() time.Duration {
	return cluster.WatchdogProof(c.Timing().SelfFence, c.WatchdogTimeout, c.Timing().Heartbeat)
}

// ParseSet reads the arguments of set-config; an empty value returns to the default.
func ParseSet(args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			return nil, &UsageError{fmt.Errorf("%q is not KEY=VALUE", a)}
		}
		if !known(clusterKeys, k) {
			msg := unknown(clusterKeys, k)
			if known(localKeys, k) {
				msg = k + " is a parameter of the local file, not a cluster-wide one"
			}
			return nil, &UsageError{errors.New(msg)}
		}
		if _, dup := out[k]; dup {
			return nil, &UsageError{fmt.Errorf("%s is set twice", k)}
		}
		out[k] = v
	}
	return out, nil
}
