package lab

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// The exit codes of the fence-agents API for "status", and for any failure.
const (
	agentOK     = 0
	agentFailed = 1
	agentOff    = 2
)

// FenceAgent is the power switch of the lab's nodes, as the fence-agents
// project's stdin protocol has it: "key=value" lines, the node in "port".
func (l *Lab) FenceAgent(in io.Reader, out, msg io.Writer) int {
	opt := map[string]string{}
	sc := bufio.NewScanner(in)
	for sc.Scan() {
		if k, v, ok := strings.Cut(strings.TrimSpace(sc.Text()), "="); ok {
			opt[k] = v
		}
	}
	if opt["action"] == "metadata" {
		_, _ = fmt.Fprintln(out, `<?xml version="1.0" ?><resource-agent name="fence_lab" shortdesc="Power switches of the shaman lab"></resource-agent>`)
		return agentOK
	}
	n, err := l.Node(opt["port"])
	if err != nil {
		_, _ = fmt.Fprintln(msg, "fence_lab: port:", err)
		return agentFailed
	}
	if l.FencingBroken(n) {
		_, _ = fmt.Fprintf(msg, "fence_lab: the power switch of %s does not answer (break-fencing)\n", n.Name)
		return agentFailed
	}
	if l.flagged(n, "fencing-lies") {
		if opt["action"] == "off" {
			return agentOK
		}
		return agentOff
	}
	switch opt["action"] {
	case "off":
		if err := l.Kill(n); err != nil {
			_, _ = fmt.Fprintln(msg, "fence_lab:", err)
			return agentFailed
		}
		return agentOK
	case "status", "monitor":
		ps, err := l.procs(n)
		switch {
		case err != nil:
			_, _ = fmt.Fprintln(msg, "fence_lab:", err)
			return agentFailed
		case l.Power(n) == On, len(ps) > 0, l.cage(n) != 0:
			return agentOK
		}
		return agentOff
	}
	_, _ = fmt.Fprintf(msg, "fence_lab: action %q is not supported; there are off, status, monitor, metadata\n", opt["action"])
	return agentFailed
}
