package prlctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// Exit codes of prlctl. Nearly every failure is 255, so the text alone tells them apart.
const (
	codeNoDispatcher = 253
	codeFrozen       = 254
)

// classes are the texts of prlctl, in lower case, by what they mean. The first that fits counts.
var classes = []struct {
	text  string
	class error
}{
	// The node's or the storage's trouble, not the VE's.
	{"when managing the cluster resource", cluster.ErrHold},
	{"read-only file system", cluster.ErrHold},
	{"no space left on device", cluster.ErrHold},
	{"disk quota exceeded", cluster.ErrHold},
	{"input/output error", cluster.ErrHold},
	{"stale file handle", cluster.ErrHold},
	{"stale nfs file handle", cluster.ErrHold},
	{"transport endpoint is not connected", cluster.ErrHold},
	{"connection timed out", cluster.ErrHold},
	{"cannot allocate memory", cluster.ErrHold},
	// Another server's claim, or another client's work, which ends.
	{"owner check failed", cluster.ErrLocked},
	{"is registered for", cluster.ErrLocked},
	{"you can force the registration", cluster.ErrLocked},
	{"belongs to another server", cluster.ErrLocked},
	{"locked", cluster.ErrLocked},
	// Before "could not be found": this is a bundle without its file, not an unknown VE.
	{"configuration file could be found", nil},
	{"could not be found", cluster.ErrNoVE},
}

// textKept bounds, in bytes, what an error repeats of prlctl's words.
const textKept = 1000

// words is what prlctl had to say, in one line, without its warnings.
func words(r driverkit.Result) string {
	var kept []string
	for line := range strings.Lines(r.Stderr) {
		if !strings.HasPrefix(strings.TrimSpace(line), "WARNING:") {
			kept = append(kept, strings.TrimRight(line, "\r\n"))
		}
	}
	r.Stderr = strings.Join(kept, "\n")
	s := r.Text()
	if s == "" {
		return "it said nothing"
	}
	if len(s) > textKept {
		s = s[:textKept] + " …"
	}
	return s
}

// failure is the error of a prlctl that ended with another code than 0.
func failure(verb string, r driverkit.Result) error {
	text := words(r)
	err := fmt.Errorf("prlctl %s ended with code %d: %s", verb, r.Code, text)
	switch r.Code {
	case codeNoDispatcher:
		return fmt.Errorf("%w: %w; is prl-disp running?", cluster.ErrCannotAsk, err)
	case codeFrozen:
		return fmt.Errorf("%w: %w", cluster.ErrLocked, err)
	}
	low := strings.ToLower(text)
	for _, c := range classes {
		if strings.Contains(low, c.text) {
			if c.class == nil {
				return err
			}
			return fmt.Errorf("%w: %w", c.class, err)
		}
	}
	return err
}

// unknown tells whether an error leaves open what happened.
func unknown(err error) bool { return errors.Is(err, cluster.ErrCannotAsk) }

// both is errors.Join in one line.
func both(a, b error) error {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return fmt.Errorf("%w; %w", a, b)
}
