package cluster

import (
	"strings"
	"testing"
	"time"
)

func TestANodeThatCrashesAgainAndAgainIsSuspended(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	n := NodeRecord{Name: "node2"}
	n.NoteCrash(at, 3)
	n.NoteCrash(at.Add(59*time.Minute), 3)
	n.NoteCrash(at.Add(60*time.Minute), 3) // the first one is an hour ago
	if len(n.SuspendTokens) != 0 || len(n.Crashes) != 2 {
		t.Errorf("suspended %v after two crashes within an hour (%v)", n.SuspendTokens, n.Crashes)
	}
	n.NoteCrash(at.Add(61*time.Minute), 3)
	n.NoteCrash(at.Add(62*time.Minute), 3)
	if len(n.SuspendTokens) != 1 || n.SuspendTokens[0].ID != CrashToken || !strings.Contains(n.SuspendTokens[0].Description, "shaman resume node2 --token "+CrashToken) {
		t.Errorf("tokens %+v, want one that says how to go on", n.SuspendTokens)
	}
	never := NodeRecord{Crashes: []string{"garbage"}}
	for range 10 {
		never.NoteCrash(at, 0)
	}
	if len(never.SuspendTokens) != 0 || len(never.Crashes) != 10 {
		t.Errorf("a limit of 0 suspends: %v (%d crashes)", never.SuspendTokens, len(never.Crashes))
	}
}
