package doctor

import (
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestJudgeMembers(t *testing.T) {
	member := func(i int) Member {
		n := string(rune('0' + i))
		return Member{ID: cluster.NodeID("000000000000000" + n), Name: "node" + n, Self: i == 1, Alive: true, Status: "Active", Mount: cluster.MountOK}
	}
	tests := []struct {
		name  string
		given func(*MemberFacts)
		want  []string
		says  string
	}{
		{"all is well", func(*MemberFacts) {}, []string{"OK node1", "OK members"}, "3 nodes"},
		{"not joined", func(f *MemberFacts) { f.Self, f.Name = "9", "node9" }, []string{"WARN this node", "OK members"}, "shaman join"},
		{"not joined, and without an id", func(f *MemberFacts) { f.Self, f.Name = "", "node9" }, []string{"WARN this node", "OK members"}, "no host id yet"},
		{"not joined, and the name is taken", func(f *MemberFacts) { f.Self, f.Name = "9", "node2" }, []string{"FAIL node2", "OK members"}, "NODE_NAME"},
		{"two machines with one id", func(f *MemberFacts) { f.Hardware, f.Recorded = "a", "b" }, []string{"FAIL node1", "OK members"}, "must not share one"},
		{"another name than it joined with", func(f *MemberFacts) { f.Name = "new" }, []string{"WARN node1", "OK members"}, `"new"`},
		{"its daemon is stopped", func(f *MemberFacts) { f.Members[0].Alive, f.Members[0].Status = false, "Inactive" }, []string{"FAIL node1", "OK members"}, "nobody protects"},
		{"it is not admitted yet", func(f *MemberFacts) { f.Members[0].Alive, f.Members[0].Status = false, "Recovering" }, []string{"WARN node1", "OK members"}, "waits for"},
		{"it is suspended", func(f *MemberFacts) { f.Members[0].Status = "Suspended" }, []string{"WARN node1", "OK members"}, "no new VEs"},
		{"its mount is lost", func(f *MemberFacts) { f.Members[0].Mount = cluster.MountLost }, []string{"FAIL node1", "OK members"}, "lost"},
		{"another node is down", func(f *MemberFacts) { f.Members[2].Alive, f.Members[2].Status = false, "Crashed" }, []string{"OK node1", "WARN node3", "OK members"}, "Crashed"},
		{"another node's mount is slow", func(f *MemberFacts) { f.Members[2].Mount = cluster.MountSlow }, []string{"OK node1", "WARN node3", "OK members"}, "slow"},
		{"the brake", func(f *MemberFacts) { f.Brake = "2 nodes are lost at once" }, []string{"OK node1", "OK members", "FAIL brake"}, "failover release"},
		{"a failover waits", func(f *MemberFacts) { f.Waiting = []string{"node3"} }, []string{"OK node1", "OK members", "FAIL node3"}, "fence confirm node3"},
		{"broken and unusable files", func(f *MemberFacts) { f.Broken, f.Bad = 1, 2 }, []string{"OK node1", "OK members", "WARN resources", "WARN resources"}, "1 resource is broken"},
		{"nobody could count", func(f *MemberFacts) { f.Uncounted = errors.New("EIO") }, []string{"OK node1", "OK members", "WARN resources"}, "EIO"},
		{"keys that cannot be read", func(f *MemberFacts) { f.Damaged = errors.New("key x") }, []string{"OK node1", "OK members", "FAIL keys"}, "key x"},
		{"a cluster of one", func(f *MemberFacts) { f.Members = f.Members[:1] }, []string{"OK node1", "WARN members"}, "nobody can take"},
		{"a cluster of two", func(f *MemberFacts) { f.Members, f.Threshold = f.Members[:2], 3 }, []string{"OK node1", "OK members"}, ""},
		{"a brake that never holds", func(f *MemberFacts) { f.Threshold = 4 }, []string{"OK node1", "WARN members"}, "never holds"},
		{"a brake that holds late", func(f *MemberFacts) { f.Threshold = 3 }, []string{"OK node1", "WARN members"}, "no room"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := MemberFacts{Self: member(1).ID, Name: "node1", Hardware: "a", Recorded: "a", Members: []Member{member(1), member(2), member(3)}, Threshold: 2}
			tt.given(&f)
			verdict(t, JudgeMembers(f), tt.want, tt.says)
		})
	}
}

func TestJudgeVersions(t *testing.T) {
	of := func(name, v string) Member { return Member{Name: name, Alive: true, Version: v} }
	verdict(t, JudgeVersions([]Member{of("a", "1.2"), of("b", "1.2"), {Name: "dead", Version: "1.1"}}, "1.2"), []string{"OK"}, "2 nodes")
	verdict(t, JudgeVersions([]Member{of("a", "1.2"), of("b", "1.1"), of("c", "1.1")}, "1.2"), []string{"WARN"}, "1.1 on b, c; 1.2 on a")
	verdict(t, JudgeVersions([]Member{of("a", "1.2")}, "1.3"), []string{"WARN this command"}, "1.3")
	verdict(t, JudgeVersions(nil, "1.3"), nil)
}

func TestJudgeBudget(t *testing.T) {
	b := Budget{Noticed: 10500 * time.Millisecond, Storage: 15 * time.Second, Agent: 2 * time.Second, Watchdog: 28 * time.Second}
	verdict(t, JudgeBudget(b), []string{"OK"}, "by agent 12.5s and what the switch takes, by watchdog 38.5s, by storage at most 25.5s")
	b.Watchdog = time.Minute
	verdict(t, JudgeBudget(b), []string{"WARN"}, "more than 1m0s")
	b.Watchdog, b.Agent, b.Warnings = 0, 0, []string{"WATCHDOG_ACTION has no effect"}
	verdict(t, JudgeBudget(b), []string{"WARN", "OK"}, "no effect")
	verdict(t, JudgeBudget(Budget{Unknown: true}), []string{"WARN"}, "defaults")
	verdict(t, JudgeBudget(Budget{Err: errors.New("START_RETRIES: many")}), []string{"FAIL"}, "START_RETRIES: many")
}

func TestJudgeStarts(t *testing.T) {
	verdict(t, JudgeStarts(StartFacts{Systemd: true, Enabled: true}, true), []string{"OK", "OK shaman-monitor.service"}, "start nothing by themselves")
	verdict(t, JudgeStarts(StartFacts{Systemd: true, Guests: []string{"/x"}}, true), []string{"WARN /x", "WARN shaman-monitor.service"}, "systemctl enable shaman-monitor")
	verdict(t, JudgeStarts(StartFacts{Systemd: true}, false), []string{"OK", "WARN shaman-monitor.service"}, "after 'shaman join'")
	verdict(t, JudgeStarts(StartFacts{}, true), []string{"OK", "OK"}, "does not run systemd")
}

func TestJudgeLocal(t *testing.T) {
	verdict(t, JudgeLocal("/c", nil, nil), []string{"OK /c"})
	verdict(t, JudgeLocal("/c", []string{"SHAMAN_X is not used"}, nil), []string{"WARN /c", "OK /c"}, "SHAMAN_X")
	verdict(t, JudgeLocal("/c", nil, errors.Join(errors.New("/c:3: unknown key"), errors.New("/c: CLUSTER_NAME is missing"))), []string{"FAIL /c", "FAIL /c"}, "3: unknown key", "CLUSTER_NAME is missing")
	verdict(t, JudgeHostID("00000000000000a1", nil), []string{"OK host id"})
	verdict(t, JudgeHostID("", nil), []string{"WARN host id"}, "join makes one")
	verdict(t, JudgeHostID("", errors.New("no hex")), []string{"FAIL host id"}, "no hex")
}

func TestFindingsAreSortedAndCounted(t *testing.T) {
	fs := []Finding{{Check: Systemd, Level: OK}, {Check: Etcd, Level: Fail, Subject: "1"}, {Check: Secrets, Level: Warn}, {Check: Etcd, Level: OK, Subject: "2"}}
	Sort(fs)
	verdictOrder := ""
	for _, f := range fs {
		verdictOrder += string(f.Check) + f.Subject + " "
	}
	if verdictOrder != "secrets etcd1 etcd2 systemd " {
		t.Errorf("sorted as %s", verdictOrder)
	}
	if Count(fs, OK) != 2 || Count(fs, Warn) != 1 || Count(fs, Fail) != 1 || !OnlyEtcd(fs) {
		t.Error("miscounted")
	}
	if OnlyEtcd(append(fs, Finding{Check: Mount, Level: Fail})) {
		t.Error("the mount fails too")
	}
}
