package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// MemberFacts is the cluster as etcd and the mount have it.
type MemberFacts struct {
	Self      cluster.NodeID
	Name      string // NODE_NAME
	Hardware  string // HARDWARE_ID, of this machine
	Recorded  string // the hardware of nodes/<self>
	Members   []Member
	Brake     string // why nothing is taken over
	Waiting   []string
	Broken    int
	Bad       int   // files that cannot be used
	Uncounted error // why neither of them could be counted
	Damaged   error // keys in etcd that cannot be read
	// Threshold is RELOCATION_SKIP_THRESHOLD as it holds in a cluster of this size.
	Threshold int
}

// JudgeMembers judges who is in, and what waits for an operator.
func JudgeMembers(f MemberFacts) []Finding {
	j := judgement{check: Members}
	self := slices.IndexFunc(f.Members, func(m Member) bool { return m.ID == f.Self })
	if self < 0 {
		judgeJoin(&j, f)
	} else {
		judgeSelf(&j, f, f.Members[self])
	}
	for _, m := range f.Members {
		switch {
		case m.Self:
		case !m.Alive:
			j.warn(m.Name, "shaman stat", "it is %s", m.Status)
		case m.Mount != cluster.MountOK:
			j.warn(m.Name, "mend the mount there; 'shaman doctor' on it says more", "it says that its mount is %s", m.Mount)
		}
	}
	judgeSize(&j, f)
	if f.Damaged != nil {
		j.fail("keys", "upgrade shaman here, or mend the key", "%s", cluster.OneLine(f.Damaged))
	}
	if f.Brake != "" {
		j.fail("brake", "shaman stat; then mend the nodes, or 'shaman failover release NODE'", "%s", f.Brake)
	}
	for _, w := range f.Waiting {
		j.fail(w, "shaman fence status "+w+"; when you are sure that it is off: 'shaman fence confirm "+w+"'", "its failover waits for an operator's word; nothing of it moves until then")
	}
	if f.Uncounted != nil {
		j.warn("resources", "look at the lines of the check 'mount'", "the repositories could not be read: %s", cluster.OneLine(f.Uncounted))
	}
	if f.Broken > 0 {
		j.warn("resources", "shaman stat -g", "%s broken, and left alone until an operator mends the cause", plural(f.Broken, "resource is", "resources are"))
	}
	if f.Bad > 0 {
		j.warn("resources", "shaman stat", "%s be used; mend or remove them by hand", plural(f.Bad, "resource file cannot", "resource files cannot"))
	}
	return j.found
}

func judgeJoin(j *judgement, f MemberFacts) {
	for _, m := range f.Members {
		if m.Name == f.Name {
			j.fail(f.Name, "set another NODE_NAME", "node %s has this name already: operators and fence agents go by it", m.ID)
			return
		}
	}
	if f.Self == "" {
		j.warn("this node", "once no line says FAIL: 'shaman join'", "it is not joined; it has no host id yet, and join makes one")
		return
	}
	j.warn("this node", "once no line says FAIL: 'shaman join', then 'systemctl enable --now shaman-monitor'", "it is not joined (host id %s); its VEs are not protected", f.Self)
}

func judgeSelf(j *judgement, f MemberFacts, m Member) {
	switch {
	case f.Hardware != "" && f.Recorded != "" && f.Hardware != f.Recorded:
		j.fail(m.Name, "give one of the two machines another HOST_ID", "host id %s was admitted from another machine (hardware %s; this one is %s): two machines must not share one", f.Self, f.Recorded, f.Hardware)
	case m.Name != f.Name:
		j.warn(m.Name, "restart shaman-monitor to take the new name over, and rename its file in FENCE_DIR on every node", "NODE_NAME is %q, and the cluster knows this node as %q", f.Name, m.Name)
	case !m.Alive && m.Status == string(cluster.Recovering):
		j.warn(m.Name, "shaman stat: it says what the node waits for", "this node is back and not admitted yet")
	case !m.Alive:
		j.fail(m.Name, "systemctl start shaman-monitor; journalctl -u shaman-monitor", "this node is %s: its daemon is not in the cluster, and nobody protects the VEs here", m.Status)
	case m.Mount != cluster.MountOK:
		j.fail(m.Name, "look at the lines of the check 'mount'", "this node's daemon says that its mount is %s: nothing is started or moved here", m.Mount)
	case m.Status != string(cluster.Active):
		j.warn(m.Name, "shaman stat -v", "this node is %s: it gets no new VEs", m.Status)
	default:
		j.ok(m.Name, "this node is Active")
	}
}

func judgeSize(j *judgement, f MemberFacts) {
	n := len(f.Members)
	switch {
	case n == 0:
	case n == 1:
		j.warn("members", "join more nodes", "the cluster has one node: nobody can take its VEs over")
	case n == 2:
		j.ok("members", "2 nodes: each takes the other's VEs over")
	case f.Threshold > n:
		j.warn("members", fmt.Sprintf("shaman set-config RELOCATION_SKIP_THRESHOLD=%d", max(2, n/2)), "%d nodes, and RELOCATION_SKIP_THRESHOLD=%d is more than that: the brake never holds, also when the network is lost as a whole", n, f.Threshold)
	case f.Threshold > n/2+1:
		j.warn("members", fmt.Sprintf("shaman set-config RELOCATION_SKIP_THRESHOLD=%d", max(2, n/2)), "%d nodes, and up to %d lost at once are failed over (RELOCATION_SKIP_THRESHOLD=%d): those that are left may have no room", n, f.Threshold-1, f.Threshold)
	default:
		j.ok("members", "%d nodes; with %d lost at once nothing more is taken over (RELOCATION_SKIP_THRESHOLD)", n, f.Threshold)
	}
}

// JudgeVersions judges whether all daemons are of one version.
func JudgeVersions(members []Member, command string) []Finding {
	j := judgement{check: Versions}
	by := map[string][]string{}
	for _, m := range members {
		if m.Alive {
			by[m.Version] = append(by[m.Version], m.Name)
		}
	}
	switch len(by) {
	case 0:
		return nil
	case 1:
		for v, names := range by {
			if v != command {
				j.warn("this command", "install the same version everywhere, and restart the daemons one after the other", "it is version %s, the daemons are %s", command, v)
				break
			}
			j.ok("", "version %s on %s", v, plural(len(names), "node", "nodes"))
		}
		return j.found
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, v+" on "+strings.Join(by[v], ", "))
	}
	j.warn("", "upgrade them one after the other, and restart each daemon; VEs run on", "the daemons are of different versions: %s", strings.Join(parts, "; "))
	return j.found
}

// Budget is how long after a node's last renewal a proof can be there.
type Budget struct {
	Noticed  time.Duration // its lease is surely gone
	Unknown  bool          // etcd, which has the parameters, is out of reach
	Agent    time.Duration // of the slowest agent's status; 0 = none works
	Watchdog time.Duration // T_wd; 0 = off
	Storage  time.Duration // STOP_BUDGET
	Err      error         // the parameters cannot be used
	Warnings []string
}

// proofLimit is how long people will wait for a dead node's VEs without asking.
const proofLimit = 60 * time.Second

// JudgeBudget judges the time-outs; unsafe relations were refused when they were set.
func JudgeBudget(b Budget) []Finding {
	j := judgement{check: Timeouts}
	if b.Err != nil {
		j.fail("", "'shaman set-config KEY=' returns a parameter to its default", "the cluster-wide parameters cannot be used: %s", cluster.OneLine(b.Err))
		return j.found
	}
	if b.Unknown {
		j.warn("", "shaman doctor, once etcd is back", "the cluster-wide parameters are in etcd and cannot be read; where they matter the other lines take the defaults")
		return j.found
	}
	for _, w := range b.Warnings {
		j.warn("", "shaman get-config", "%s", w)
	}
	var ways []string
	slow := false
	way := func(name string, d time.Duration) {
		ways = append(ways, name+" "+round(d).String())
		slow = slow || d > proofLimit
	}
	if b.Agent > 0 {
		way("by agent", b.Noticed+b.Agent)
		ways[0] += " and what the switch takes"
	}
	if b.Watchdog > 0 {
		way("by watchdog", b.Noticed+b.Watchdog)
	}
	ways = append(ways, fmt.Sprintf("by storage at most %s (of a node that lives)", round(b.Noticed+b.Storage)))
	says := fmt.Sprintf("a lost node is noticed %s after its last renewal; proof %s", round(b.Noticed), strings.Join(ways, ", "))
	if slow {
		j.warn("", "shaman get-config -v; then LOCK_TIMEOUT, WATCHDOG_TIMEOUT or SELF_FENCE_TIMEOUT", "%s: more than %s until anything moves", says, proofLimit)
	} else {
		j.ok("", "%s", says)
	}
	return j.found
}

// JudgeStarts judges what this machine starts by itself.
func JudgeStarts(s StartFacts, joined bool) []Finding {
	auto := judgement{check: Autostart}
	for _, unit := range s.Guests {
		auto.warn(unit, "switch it off for the guests that shaman protects", "it may start guests at boot that live on another node by then")
	}
	if len(s.Guests) == 0 {
		auto.ok("", "the drivers of this node (process) start nothing by themselves, and nothing else was found that starts guests at boot")
	}
	sys := judgement{check: Systemd}
	switch {
	case !s.Systemd:
		sys.ok("", "this machine does not run systemd; take care that shaman-monitor is started at boot")
	case s.Enabled:
		sys.ok("shaman-monitor.service", "it starts at boot")
	case joined:
		sys.warn("shaman-monitor.service", "systemctl enable shaman-monitor", "it is not enabled: after a reboot this node does not come back by itself")
	default:
		sys.warn("shaman-monitor.service", "after 'shaman join': systemctl enable --now shaman-monitor", "it is not enabled")
	}
	return append(auto.found, sys.found...)
}
