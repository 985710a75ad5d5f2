// Package config reads the two levels of configuration: the local file of a
// node, and the cluster-wide parameters in etcd.
//
// Both are KEY=VALUE and strict: what is not known, malformed, or would break
// the safety argument is refused, with the place, the key and what is allowed.
package config

import (
	"fmt"
	"slices"
	"strings"
)

// Key describes one parameter.
type Key struct {
	Name    string
	Default string // as written; "" = none, or said in Meaning
	Allowed string
	Meaning string
}

const (
	durations = "seconds, or a number with ms, s, m or h"
	sizes     = "bytes, or a number with KiB, MiB, GiB or TiB"
	count     = "a whole number of 0 or more"
	yesNo     = "yes or no"
)

// LocalKeys are the parameters of the local file, in order of the reference.
var localKeys = []Key{
	{"CLUSTER_NAME", "", "letters, digits, '.', '_' and '-', at most 63", "Name of the cluster. Required."},
	{"CLUSTER_MOUNT", "", "an absolute path", "Where the shared file system is mounted, the same on every node. Required."},
	{"HOST_ID", "", "16 hexadecimal digits", "This node's id. Else /etc/vstorage/host_id, else one is made once and kept in STATE_DIR."},
	{"NODE_NAME", "", "a name without blanks, commas or slashes", "Name of the node for people. The host's name if not set."},
	{"NODE_ADDRESS", "", "an address or name", "Address of the node for people. NODE_NAME if not set."},
	{"ETCD_ENDPOINTS", "", "host:port or URLs, joined by commas", "The members of etcd. Required."},
	{"ETCD_CACERT", "", "a file", "Certificates that etcd's own must be signed by."},
	{"ETCD_CERT", "", "a file", "Client certificate; needs ETCD_KEY. Read anew at each connection."},
	{"ETCD_KEY", "", "a file", "Key of the client certificate."},
	{"ETCD_USERNAME", "", "a name", "User in etcd; needs ETCD_PASSWORD_FILE."},
	{"ETCD_PASSWORD_FILE", "", "a file of mode 0600", "File with the user's password."},
	{"HYPERVISORS", "process", "process, libvirt, libvirt-lxc, lxc, prlctl, scripts, joined by commas", "Drivers of this node. Each type of VE is run by one of them."},
	{"LIBVIRT_URI", "qemu:///system", "the URI of this host's daemon", "Where the driver libvirt finds its virtual machines; ?socket=PATH names another socket."},
	{"LIBVIRT_LXC_URI", "lxc:///", "the URI of this host's daemon", "Where the driver libvirt-lxc finds its containers."},
	{"FENCE_DIR", "/etc/shaman/fence.d", "a directory", "Fence agents' configuration, one file a node."},
	{"WATCHDOG_DEVICE", "/dev/watchdog", "a file", "The watchdog device. One that is missing or busy is told, and not used."},
	{"RESET_COMMAND", "", "a shell command", "How this machine is reset at once, instead of by the kernel: to have a crash dump taken, say. One that fails leaves it to the watchdog."},
	{"LISTEN_ADDRESS", "127.0.0.1:9631", "host:port", "Where metrics and probes are served."},
	{"WEB_CONFIG_FILE", "", "a file", "TLS and users for LISTEN_ADDRESS, in the exporter-toolkit's format."},
	{"STATE_DIR", "/var/lib/shaman", "a directory", "What survives a reboot."},
	{"RUN_DIR", "/run/shaman", "a directory", "What survives a restart of the daemon, and is empty after a reboot."},
	{"BOOT_ID_FILE", "/proc/sys/kernel/random/boot_id", "a file", "Where the id of this boot is read."},
	{"HARDWARE_ID", "", "text", "Id of this machine. The DMI product_uuid if not set."},
	{"NODE_MEMORY", "0", sizes, "Memory that VEs may use; 0 = the host's."},
	{"CPU_POOL", "", "a name", "VEs of this node are relocated within nodes of the same pool only."},
	{"MAX_VMS", "0", count, "Most virtual machines that may run here; 0 = no limit."},
	{"MAX_CTS", "0", count, "Most containers that may run here; 0 = no limit."},
	{"MAX_VES", "0", count, "Most VEs that may run here; 0 = no limit."},
	{"RESCAN_INTERVAL", "1s", durations, "How often the repository is looked at without being told to."},
	{"LOG_LEVEL", "2", "0 error, 1 warn, 2 info, 4 debug", "What is logged."},
	{"LOG_FORMAT", "json", "json or console", "How it is logged."},
}

var clusterKeys = []Key{
	{"LOCK_TIMEOUT", "10s", "whole seconds, at least 2", "The lease. Cuts of up to half of it are harmless. Daemons take a new value over when they restart."},
	{"SELF_FENCE_TIMEOUT", "", durations, "How long a node may be without any contact before an armed watchdog resets it, and a master without the mount before it resigns. LOCK_TIMEOUT if not set."},
	{"WATCHDOG_TIMEOUT", "5s", "whole seconds, 0 or at least 2", "Time-out of the hardware watchdog, which resets a node without contact; 0 = off."},
	{"WATCHDOG_TRUST_VIRTUAL", "no", yesNo, "Whether a virtual machine's watchdog counts as proof."},
	{"FENCE_METHODS", "storage,agent,watchdog,manual", "storage, agent, watchdog, rebooted, manual, joined by commas", "Ways of proving a lost node harmless, run side by side. rebooted always counts."},
	{"STOP_BUDGET", "15s", durations, "How long a node may take to stop all its VEs by force."},
	{"HEARTBEAT_INTERVAL", "", durations, "Pause between two heartbeats on the mount. The smaller of 1s and LOCK_TIMEOUT/10 if not set."},
	{"LEASE_LOST_ACTION", "reboot", "reboot or none (crash and halt mean reboot)", "What a node does after it was ordered to stop everything, and has: reset the machine, or wait to be let in again."},
	{"POOL_CHECK_TIMEOUT", "30s", durations, "How often the whole pool, and what waits for room, is looked at."},
	{"RELOCATION_SKIP_THRESHOLD", "", "a whole number of at least 2", "With that many nodes lost at once nothing more is taken over. 3 if not set, 2 in clusters of 3."},
	{"NODE_CRASH_PER_HOUR_THRESHOLD", "3", count, "A node that crashes that often in an hour is suspended when it comes back; 0 = never."},
	{"RESOURCE_RELOCATION_MODE", "drs,round-robin", "drs, round-robin, spare, joined by commas", "The relocation policies, in order."},
	{"MAX_PARALLEL_STARTS", "4", "a whole number from 1 to 256", "Starts at the same time on one node. Taken over at the next admission."},
	{"START_RETRIES", "1", count, "How often a failed start is tried again on the same node."},
	{"RELOCATE_RETRIES", "1", count, "On how many other nodes it is tried before the resource is broken."},
	{"ACTION_TIMEOUT", "60s", durations, "Deadline of one call to the hypervisor, and of an action that nobody takes."},
	{"LOCK_RETRY_TIMEOUT", "150s", durations, "How long a start waits for a dead client's file lock."},
	{"HOST_MEMORY_RESERVE", "512MiB", sizes, "Memory of every node that relocation leaves alone."},
	{"SHUTDOWN_POLICY", "freeze", "freeze or failover", "What an orderly shutdown of a host means for its VEs: they wait for it, or are started elsewhere."},
	{"LEASE_CHECK_TIMEOUT_FOR_SLAVE", "0s", durations, "Extra patience after a node's lease has ended."},
	{"LEASE_CHECK_TIMEOUT_FOR_MASTER", "", durations, "Accepted for compatibility; the election needs no extra time."},
	{"WATCHDOG_ACTION", "", "text", "Accepted for compatibility; the watchdog device resets the machine."},
}

// LocalReference returns the keys of the local file.
func LocalReference() []Key { return slices.Clone(localKeys) }

// ClusterReference returns the cluster-wide keys.
func ClusterReference() []Key { return slices.Clone(clusterKeys) }

func known(keys []Key, name string) bool {
	return slices.ContainsFunc(keys, func(k Key) bool { return k.Name == name })
}

// unknown says that a key does not exist, and which one may be meant.
func unknown(keys []Key, name string) string {
	best, dist := "", 4
	for _, k := range keys {
		if d := distance(strings.ToUpper(name), k.Name); d < dist {
			best, dist = k.Name, d
		}
	}
	if best != "" {
		return fmt.Sprintf("unknown key %q; did you mean %s?", name, best)
	}
	return fmt.Sprintf("unknown key %q; the configuration reference lists all keys", name)
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := min(row[j+1]+1, row[j]+1)
			if a[i] == b[j] {
				next = min(next, prev)
			} else {
				next = min(next, prev+1)
			}
			prev, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

// Reference renders all keys as Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString("# Configuration\n\nBoth levels are `KEY=VALUE`. Unknown keys, bad values and unsafe relations between time-outs are refused.\n")
	for _, part := range []struct {
		title, intro string
		keys         []Key
	}{
		{"The local file", "`/etc/shaman/shaman.conf`, one a node. The environment variable `SHAMAN_<KEY>` overrides a key. Lines that are empty or begin with `#` are ignored.", localKeys},
		{"Cluster-wide parameters", "`shaman set-config KEY=VALUE`, kept in etcd; `KEY=` returns to the default.", clusterKeys},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| key | default | allowed | meaning |\n| --- | --- | --- | --- |\n", part.title, part.intro)
		for _, k := range part.keys {
			def := ""
			if k.Default != "" {
				def = "`" + k.Default + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Name, def, k.Allowed, k.Meaning)
		}
	}
	return b.String()
}
