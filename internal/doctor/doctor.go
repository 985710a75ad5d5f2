// Package doctor finds what an operator gets wrong before a failover does.
//
// Each check is two halves: facts are gathered, with a deadline on every step
// and nothing but reading (the probe files on the mount aside), and a pure
// function judges them. So it can be told what is wrong while half of the
// cluster is away, and each judgement is a row of a table in the tests.
//
// Every finding says what was found, why it matters where that is not plain, and
// the next command. Nothing is mended from here.
package doctor

import (
	"fmt"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Level is how bad a finding is.
type Level string

// A FAIL is something that a failover would trip over; a WARN is worth an
// operator's daylight.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// Check names a group of findings.
type Check string

// The checks, in the order in which they are shown.
const (
	Configuration Check = "configuration"
	Secrets       Check = "secrets"
	Etcd          Check = "etcd"
	Mount         Check = "mount"
	Visibility    Check = "visibility"
	Members       Check = "cluster"
	Fencing       Check = "fencing"
	Watchdog      Check = "watchdog"
	Timeouts      Check = "timeouts"
	Versions      Check = "versions"
	Clock         Check = "clock"
	Autostart     Check = "autostart"
	Systemd       Check = "systemd"
)

// Checks returns all of them, in their order.
func Checks() []Check {
	return []Check{Configuration, Secrets, Etcd, Mount, Visibility, Members, Fencing, Watchdog, Timeouts, Versions, Clock, Autostart, Systemd}
}

// Finding is one line of the answer.
type Finding struct {
	Check   Check  `json:"check"`
	Level   Level  `json:"level"`
	Subject string `json:"subject"` // a node, file, endpoint, …
	Message string `json:"message"`
	Mend    string `json:"mend"` // what to do next; "" if nothing has to be done
}

// judgement collects the findings of one check.
type judgement struct {
	check Check
	found []Finding
}

func (j *judgement) add(l Level, subject, mend, format string, args ...any) {
	j.found = append(j.found, Finding{Check: j.check, Level: l, Subject: subject, Message: fmt.Sprintf(format, args...), Mend: mend})
}

func (j *judgement) ok(subject, format string, args ...any) { j.add(OK, subject, "", format, args...) }

func (j *judgement) warn(subject, mend, format string, args ...any) {
	j.add(Warn, subject, mend, format, args...)
}

func (j *judgement) fail(subject, mend, format string, args ...any) {
	j.add(Fail, subject, mend, format, args...)
}

// Sort orders findings by check; within one they stay in their order.
func Sort(fs []Finding) {
	order := Checks()
	slices.SortStableFunc(fs, func(a, b Finding) int { return slices.Index(order, a.Check) - slices.Index(order, b.Check) })
}

// Count tells how many findings are of a level.
func Count(fs []Finding, l Level) int {
	n := 0
	for _, f := range fs {
		if f.Level == l {
			n++
		}
	}
	return n
}

// OnlyEtcd tells whether etcd is all that fails.
func OnlyEtcd(fs []Finding) bool {
	return !slices.ContainsFunc(fs, func(f Finding) bool { return f.Level == Fail && f.Check != Etcd })
}

// Member is a joined node, as etcd has it.
type Member struct {
	ID       cluster.NodeID
	Name     string
	Self     bool
	Alive    bool // its daemon holds its lease
	Status   string
	Version  string // of its daemon, while it is alive
	Mount    cluster.Mount
	Watchdog cluster.Watchdog
	Inc      cluster.Incarnation
}

// round is a duration for people.
func round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
