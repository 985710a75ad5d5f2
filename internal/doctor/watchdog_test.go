package doctor

import (
	"io/fs"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestJudgeWatchdog(t *testing.T) {
	const dev = " /dev/watchdog"
	on := WatchdogPolicy{Timeout: 5 * time.Second, Agents: true}
	free := WatchdogFacts{Device: "/dev/watchdog", Present: true, Identity: "iTCO_wdt"}
	change := func(f func(*WatchdogFacts)) WatchdogFacts {
		w := free
		f(&w)
		return w
	}
	held := func(pid int, command string) WatchdogFacts {
		return change(func(w *WatchdogFacts) { w.Holders = []Holder{{pid, command}} })
	}
	virtual := change(func(w *WatchdogFacts) { w.Virtual, w.Why = true, "DMI says KVM" })
	up := Member{Name: "node1", Self: true, Alive: true}
	fed := up
	fed.Watchdog = cluster.Watchdog{Armed: true, Timeout: 5 * time.Second}
	tests := []struct {
		name   string
		given  WatchdogFacts
		policy WatchdogPolicy
		self   Member
		want   []string
		says   string
	}{
		{"armed", held(77, "shaman-monitor"), on, fed, []string{"OK" + dev}, "'iTCO_wdt' is armed: resets this machine 5s"},
		{"the daemon has armed another one", WatchdogFacts{Device: "/dev/watchdog"}, on, fed, []string{"FAIL" + dev}, "WATCHDOG_DEVICE was changed since"},
		{"the daemon holds it and has not published it", held(77, "shaman-monitor"), on, up, []string{"WARN" + dev}, "has not published it"},
		{"free, before the join", free, on, Member{}, []string{"OK" + dev}, "when it is admitted"},
		{"free, and the daemon has not armed it", free, on, up, []string{"WARN" + dev}, "has not armed it"},
		{"not there", WatchdogFacts{Device: "/dev/watchdog"}, on, up, []string{"WARN" + dev}, "modprobe softdog; echo softdog >/etc/modules-load.d/shaman.conf"},
		{"not to be looked at", WatchdogFacts{Device: "/dev/watchdog", Err: fs.ErrPermission}, on, up, []string{"WARN" + dev}, "as root"},
		{"systemd holds it", held(1, "systemd"), on, up, []string{"WARN" + dev}, "RuntimeWatchdogSec=0"},
		{"sbd holds it", held(9, "sbd"), on, up, []string{"WARN" + dev}, "disable --now sbd"},
		{"the watchdog daemon holds it", held(9, "wd_keepalive"), on, up, []string{"WARN" + dev}, "disable --now watchdog"},
		{"somebody holds it", held(9, "mine"), on, up, []string{"WARN" + dev}, "process 9 (mine)"},
		{"it cannot be disarmed", change(func(w *WatchdogFacts) { w.NoWayOut = true }), on, up, []string{"FAIL" + dev}, "nowayout"},
		{"off by decision, with agents", WatchdogFacts{Device: "/dev/watchdog", NoWayOut: true}, WatchdogPolicy{Agents: true}, up, []string{"OK" + dev}, "off by decision"},
		{"off, and no agent", WatchdogFacts{Device: "/dev/watchdog"}, WatchdogPolicy{}, up, []string{"WARN" + dev}, "but an operator"},
		{"a virtual machine", virtual, on, fed, []string{"OK" + dev, "OK this machine"}, "DMI says KVM"},
		{"a virtual machine without agents", virtual, WatchdogPolicy{Timeout: time.Second}, fed, []string{"OK" + dev, "WARN this machine"}, "fence_virsh"},
		{"a virtual machine that is trusted", virtual, WatchdogPolicy{Timeout: time.Second, TrustVirtual: true}, fed, []string{"OK" + dev, "WARN this machine"}, "WATCHDOG_TRUST_VIRTUAL=no"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { verdict(t, JudgeWatchdog(tt.given, tt.policy, tt.self), tt.want, tt.says) })
	}
}

func TestJudgeWatchdogs(t *testing.T) {
	w := func(name string, d cluster.Watchdog) Member { return Member{Name: name, Alive: true, Watchdog: d} }
	members := []Member{
		{Name: "away", Watchdog: armed}, {Name: "me", Self: true}, w("good", armed), w("off", cluster.Watchdog{}),
		w("virtual", cluster.Watchdog{Armed: true, Virtual: true, Timeout: 5 * time.Second}), w("older", cluster.Watchdog{Armed: true, Timeout: 9 * time.Second}),
	}
	verdict(t, JudgeWatchdogs(members, WatchdogPolicy{Timeout: 5 * time.Second}), []string{"OK good", "WARN off", "WARN virtual", "WARN older"}, "run 'shaman doctor' on off", "systemctl restart")
	verdict(t, JudgeWatchdogs(members, WatchdogPolicy{}), nil)
}
