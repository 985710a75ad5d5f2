package scripts

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// Exit codes of scripts that mean more than "failed". They are those of
// sysexits.h as far as it has them.
const (
	exitNoVE      = 66 // EX_NOINPUT: this node knows no such resource, so it does not run here
	exitCannotAsk = 69 // EX_UNAVAILABLE: what would know cannot be asked
	exitHold      = 74 // EX_IOERR: trouble of the node or its storage
	exitLocked    = 75 // EX_TEMPFAIL: a lock that a dead node left is still held
)

// busyRetry is how long a script may be "busy" for: written a moment ago, and
// held open by a process that is between fork and exec.
const busyRetry = 2 * time.Second

// runScript runs one script. An exit code other than 0 is an error of its class.
func runScript(ctx context.Context, former *driverkit.Former, path string, args, env []string, stdin string) (driverkit.Result, error) {
	tool := driverkit.Tool{Path: path, Args: args, Env: env, Stdin: stdin, Former: former}
	var r driverkit.Result
	var err error
	for end := time.Now().Add(busyRetry); ; {
		r, err = tool.Run(ctx)
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err != nil {
		if text := r.Text(); text != "" {
			err = fmt.Errorf("%w (it said: %s)", err, brief(text))
		}
		return r, err
	}
	return r, exitError(path, r)
}

// exitError is what an exit code means.
func exitError(path string, r driverkit.Result) error {
	if r.Code == 0 {
		return nil
	}
	said := brief(r.Text())
	if said == "" {
		said = "it said nothing"
	}
	err := fmt.Errorf("%s ended with exit code %d: %s", path, r.Code, said)
	switch r.Code {
	case exitNoVE:
		return fmt.Errorf("%w: %w", cluster.ErrNoVE, err)
	case exitCannotAsk:
		return fmt.Errorf("%w: %w", cluster.ErrCannotAsk, err)
	case exitHold:
		return fmt.Errorf("%w: %w", cluster.ErrHold, err)
	case exitLocked:
		return fmt.Errorf("%w: %w", cluster.ErrLocked, err)
	}
	return err
}

// brief bounds a script's words for logs and records.
func brief(s string) string {
	const most = 500
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + " …"
	}
	return s
}

// runChain runs the scripts for a purpose one after the other, until one fails,
// and returns what they printed.
func runChain(ctx context.Context, f finder, former *driverkit.Former, purpose string, kind cluster.Kind, args, env []string) (out string, ran int, err error) {
	chain, err := f.chain(purpose, kind)
	if err != nil {
		return "", 0, err
	}
	args = append([]string{purpose}, args...)
	env = append([]string{"SHAMAN_PURPOSE=" + purpose, "SHAMAN_TYPE=" + string(kind)}, env...)
	if end, ok := ctx.Deadline(); ok {
		env = append(env, "SHAMAN_TIMEOUT="+strconv.Itoa(max(1, int(time.Until(end).Seconds()))))
	}
	var all strings.Builder
	for i, s := range chain {
		r, err := runScript(ctx, former, s.path, args, env, "")
		if err != nil {
			return all.String(), i, err
		}
		all.WriteString(r.Stdout)
		if r.Stdout != "" && !strings.HasSuffix(r.Stdout, "\n") {
			all.WriteByte('\n')
		}
	}
	return all.String(), len(chain), nil
}

// description is what describe says of a resource.
type description struct {
	state     cluster.VEState
	cause     cluster.StopCause
	memory    cluster.Bytes
	vcpus     int
	uuid      string
	ha        string // "", yes or no
	priority  *uint32
	autostart bool
	unfit     string
}

// parseDescription reads KEY=VALUE lines. Of a key that is there twice the later
// one counts, so that a script with a higher number can correct an earlier one.
func parseDescription(out string) (description, error) {
	d := description{}
	for _, line := range strings.Split(out, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return d, fmt.Errorf("describe printed %q, which is not KEY=VALUE; what is for people goes to stderr", brief(line))
		}
		if err := d.set(key, value); err != nil {
			return d, fmt.Errorf("describe printed %s: %w", brief(line), err)
		}
	}
	if d.state == "" {
		return d, errors.New("describe printed no STATE; want STATE=running, STATE=stopped or STATE=unknown")
	}
	return d, nil
}

func (d *description) set(key, value string) error {
	var err error
	switch key {
	case "STATE":
		d.state = cluster.VEState(value)
		if d.state != cluster.VERunning && d.state != cluster.VEStopped && d.state != cluster.VEUnknown {
			err = fmt.Errorf("%q is not allowed; want running, stopped or unknown", value)
		}
	case "CAUSE":
		d.cause = cluster.StopCause(value)
		if d.cause != cluster.CauseStop && d.cause != cluster.CauseCrash && d.cause != cluster.CauseUnknown {
			err = fmt.Errorf("%q is not allowed; want stop, crash or nothing", value)
		}
	case "MEMORY":
		d.memory, err = parseSize(value)
	case "VCPUS":
		d.vcpus, err = parseCount(value)
	case "UUID":
		d.uuid = value
	case "HA":
		d.ha = value
		_, err = parseYes(value)
	case "PRIORITY":
		var n uint32
		n, err = parsePriority(value)
		d.priority = &n
	case "AUTOSTART":
		d.autostart, err = parseYes(value)
	case "UNFIT":
		d.unfit = value
	default:
		err = errors.New("is not known; known are STATE, CAUSE, MEMORY, VCPUS, UUID, HA, PRIORITY, AUTOSTART, UNFIT")
	}
	return err
}

// found is a resource that enumerate printed.
type found struct{ path, name string }

// parseEnumeration reads lines of a path, or of a path, a tabulator and a name.
func parseEnumeration(out string) ([]found, error) {
	var all []found
	for _, line := range strings.Split(out, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if strings.TrimSpace(line) == "" {
			continue
		}
		path, name, _ := strings.Cut(line, "\t")
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("enumerate printed %q, which is not an absolute path (or a path, a tabulator and a name)", brief(line))
		}
		all = append(all, found{path: filepath.Clean(path), name: name})
	}
	return all, nil
}
