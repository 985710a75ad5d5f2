package doctor

import (
	"fmt"
	"strings"
	"time"
)

// WatchdogPolicy is what the cluster wants of watchdogs.
type WatchdogPolicy struct {
	Timeout      time.Duration // WATCHDOG_TIMEOUT; 0 = off
	TrustVirtual bool
	Methods      []string // FENCE_METHODS
	Agents       bool     // fence agents are configured here
}

// shamanComm is the daemon's name, as /proc has it.
const shamanComm = "shaman-monitor"

// JudgeWatchdog judges this node's own device. self is its record; a node that
// is not joined has an empty one.
func JudgeWatchdog(w WatchdogFacts, p WatchdogPolicy, self Member) []Finding {
	j := judgement{check: Watchdog}
	if p.Timeout == 0 {
		if p.Agents {
			j.ok(w.Device, "WATCHDOG_TIMEOUT=0: off by decision; fence agents prove what has to be proven")
		} else {
			j.warn(w.Device, "shaman set-config WATCHDOG_TIMEOUT=5s, or give every node a fence agent", "WATCHDOG_TIMEOUT=0 and no fence agent is configured here: nothing proves a dead node harmless but an operator")
		}
		return j.found
	}
	foreign := foreignHolders(w.Holders)
	held := len(w.Holders) > len(foreign)
	switch {
	case self.Watchdog.Armed && self.Alive && w.Err == nil && (!w.Present || len(foreign) > 0 && !held):
		j.fail(w.Device, "systemctl stop shaman-monitor, and then start it: a stop disarms the other device",
			"the daemon has armed a watchdog, and it is not this one: WATCHDOG_DEVICE was changed since. A restart, or a crash, of the daemon would reset this machine")
	case w.Err != nil:
		j.warn(w.Device, "mend WATCHDOG_DEVICE, or run 'shaman doctor' as root", "the device cannot be looked at: %v", w.Err)
	case !w.Present:
		j.warn(w.Device, "modprobe softdog; echo softdog >/etc/modules-load.d/shaman.conf (better: the driver of the machine's own watchdog)",
			"there is no such device, so this node cannot reset itself when it has lost all contact")
	case w.NoWayOut:
		j.fail(w.Device, "load its driver with nowayout=0: 'options <module> nowayout=0' in /etc/modprobe.d/watchdog.conf, then reboot",
			"%s cannot be disarmed (nowayout): every stop of the daemon would reset the machine, so it is not armed", named(w))
	case len(foreign) > 0:
		for _, h := range foreign {
			j.warn(w.Device, letGo(h), "process %d (%s) holds it, so shaman cannot arm it", h.PID, h.Command)
		}
	case self.Watchdog.Armed:
		j.ok(w.Device, "%s is armed: resets this machine %s after it was last fed", named(w), self.Watchdog.Timeout)
	case self.Alive && held:
		j.warn(w.Device, "run 'shaman doctor' again in a moment", "shaman-monitor holds %s and has not published it: it is changing its numbers, or cannot reach etcd", named(w))
	case self.Alive:
		j.warn(w.Device, "journalctl -u shaman-monitor | grep -i watchdog", "%s is there and free, and the daemon has not armed it", named(w))
	default:
		j.ok(w.Device, "%s is there and free; the daemon arms it when it is admitted", named(w))
	}
	if w.Virtual {
		judgeVirtual(&j, w, p)
	}
	return j.found
}

func judgeVirtual(j *judgement, w WatchdogFacts, p WatchdogPolicy) {
	switch {
	case p.TrustVirtual:
		j.warn("this machine", "make sure that its host never pauses or migrates it; else 'shaman set-config WATCHDOG_TRUST_VIRTUAL=no'",
			"it is a virtual one (%s), and WATCHDOG_TRUST_VIRTUAL=yes: its watchdog stands still while it is paused, and it would wake up with its VEs running a second time", w.Why)
	case p.Agents:
		j.ok("this machine", "it is a virtual one (%s): its watchdog proves nothing to others, its fence agent has to", w.Why)
	default:
		j.warn("this machine", "give every node a fence agent (fence_virsh, fence_vmware_rest, …)", "it is a virtual one (%s): its watchdog proves nothing to others, and no fence agent is configured here", w.Why)
	}
}

func foreignHolders(hs []Holder) (out []Holder) {
	for _, h := range hs {
		if !strings.HasPrefix(h.Command, shamanComm) {
			out = append(out, h)
		}
	}
	return out
}

// letGo says how a holder is made to let go.
func letGo(h Holder) string {
	switch {
	case h.PID == 1 || h.Command == "systemd":
		return "RuntimeWatchdogSec=0 in /etc/systemd/system.conf, then 'systemctl daemon-reexec'"
	case h.Command == "sbd":
		return "systemctl disable --now sbd, if no other cluster needs it on this machine"
	case h.Command == "watchdog", h.Command == "wd_keepalive":
		return "systemctl disable --now watchdog wd_keepalive"
	}
	return fmt.Sprintf("find out what it is ('systemctl status %d'), stop it, or set WATCHDOG_DEVICE to another device", h.PID)
}

func named(w WatchdogFacts) string {
	if w.Identity == "" {
		return "the watchdog"
	}
	return "the watchdog '" + w.Identity + "'"
}

// JudgeWatchdogs judges what the other members have published.
func JudgeWatchdogs(members []Member, p WatchdogPolicy) []Finding {
	j := judgement{check: Watchdog}
	if p.Timeout == 0 {
		return nil // said already
	}
	for _, m := range members {
		switch {
		case m.Self, !m.Alive: // what a node that is away has published says nothing of now
		case !m.Watchdog.Armed:
			j.warn(m.Name, "run 'shaman doctor' on "+m.Name, "its watchdog is not armed")
		case !m.Watchdog.Counts(p.TrustVirtual):
			j.warn(m.Name, "", "its watchdog is armed, and counts for nothing: the node is a virtual machine (WATCHDOG_TRUST_VIRTUAL=no)")
		case m.Watchdog.Timeout != p.Timeout:
			j.warn(m.Name, "restart shaman-monitor there: 'systemctl restart shaman-monitor', VEs run on", "its watchdog is armed with %s, WATCHDOG_TIMEOUT is %s; the proof counts with what it published", m.Watchdog.Timeout, p.Timeout)
		default:
			j.ok(m.Name, "armed: resets the machine %s after it was last fed", m.Watchdog.Timeout)
		}
	}
	return j.found
}
