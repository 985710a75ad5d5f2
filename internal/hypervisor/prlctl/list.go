package prlctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// fields are asked for by name: the tool has no memory, CPUs or autostart among them.
const fields = "uuid,home,type,name,status,ha_enable,ha_prio"

// The words of prlctl that decide something by themselves. All others are
// between two states, or unknown to this driver, which is treated alike.
const (
	statusRunning   = "running"
	statusPaused    = "paused"
	statusStopped   = "stopped"
	statusSuspended = "suspended"
	statusMounted   = "mounted"
	statusInvalid   = "invalid"
)

// entry is one VE as prlctl lists it.
type entry struct {
	uuid, path, name, status string
	kind                     cluster.Kind
	ha                       bool
	priority                 uint32
}

// state translates prlctl's word. Only what surely does not run and has its
// image closed is stopped: a suspended VE is (its memory lies in its own
// directory), a mounted container is not. A paused one holds its memory and its
// disks, and goes on at any time.
func (e entry) state() cluster.VEState {
	switch e.status {
	case statusRunning, statusPaused:
		return cluster.VERunning
	case statusStopped, statusSuspended:
		return cluster.VEStopped
	}
	return cluster.VEUnknown
}

// moving tells whether the state is one that passes by itself: something is at
// work on the VE. "mounted" and "invalid" last until somebody acts.
func (e entry) moving() bool {
	return e.state() == cluster.VEUnknown && e.status != statusMounted && e.status != statusInvalid
}

// home is the one spelling of a VE's path: its directory, without a slash at the
// end, whether it was named by that or by the configuration file in it.
func home(path string) string {
	if path == "" || path == "-" {
		return ""
	}
	path = filepath.Clean(path)
	if base := filepath.Base(path); base == "config.pvs" || base == "ve.conf" {
		path = filepath.Dir(path)
	}
	return path
}

// array finds the JSON array in what the tool printed: other lines may come before it.
func array(out string) ([]map[string]any, error) {
	last := errors.New("there is no JSON array in it")
	for rest := []byte(out); len(rest) > 0; {
		line := bytes.TrimLeft(rest, " \t\r")
		if bytes.HasPrefix(line, []byte("[")) {
			var all []map[string]any
			d := json.NewDecoder(bytes.NewReader(line))
			d.UseNumber()
			err := d.Decode(&all)
			if err == nil && all != nil {
				return all, nil
			}
			if err != nil {
				last = err
			}
		}
		_, after, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			break
		}
		rest = after
	}
	return nil, last
}

// str is a value as text: all values of "list -o -j" are strings, and numbers
// are taken too.
func str(v any) string {
	switch x := v.(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	}
	return ""
}

// parse reads the answer to "list -o". An entry that cannot be understood fails
// the whole: a VE that is left out would be taken for one that is not here.
func parse(out string) ([]entry, error) {
	all, err := array(out)
	if err != nil {
		return nil, fmt.Errorf("%w: what prlctl list printed cannot be read: %w", cluster.ErrCannotAsk, err)
	}
	var es []entry
	for i, m := range all {
		e := entry{
			uuid: strings.Trim(str(m["uuid"]), "{}"), path: home(str(m["home"])),
			name: str(m["name"]), status: strings.ToLower(str(m["status"])),
			// Who stops all HA VEs must not pass one by whose word is missing.
			ha: str(m["ha_enable"]) != "no",
		}
		switch strings.ToUpper(str(m["type"])) {
		case "VM":
			e.kind = cluster.KindVM
		case "CT":
			e.kind = cluster.KindCT
		}
		if p, err := strconv.ParseUint(str(m["ha_prio"]), 10, 32); err == nil {
			e.priority = uint32(p)
		}
		if e.uuid == "" || e.status == "" || e.kind == "" {
			return nil, fmt.Errorf("%w: entry %d of prlctl list has no uuid, status or type that is known: %v", cluster.ErrCannotAsk, i+1, m)
		}
		if e.path == "" {
			if e.state() == cluster.VEStopped || e.status == statusInvalid {
				continue // nothing can be done with it by its path, and it does no harm
			}
			return nil, fmt.Errorf("%w: prlctl list has no home for VE %s (%s), which is %s", cluster.ErrCannotAsk, e.uuid, e.name, e.status)
		}
		es = append(es, e)
	}
	return unique(es), nil
}

// unique keeps one entry a path: of duplicates, the one that runs or might.
func unique(es []entry) []entry {
	weight := func(e entry) int {
		switch {
		case e.state() == cluster.VERunning:
			return 3
		case e.moving():
			return 2
		case e.status == statusInvalid:
			return 0
		}
		return 1
	}
	best := map[string]entry{}
	for _, e := range es {
		if have, dup := best[e.path]; !dup || weight(e) > weight(have) {
			best[e.path] = e
		}
	}
	return slices.SortedFunc(maps.Values(best), func(a, b entry) int { return strings.Compare(a.path, b.path) })
}

// look asks prlctl for all VEs.
func (d *Driver) look(ctx context.Context) (es []entry, err error) {
	defer func() { d.answered(err) }()
	r, err := d.tool(ctx, "list", "-a", "--vmtype", "all", "-o", fields, "-j")
	if err != nil {
		return nil, err
	}
	if r.Code != 0 {
		return nil, fmt.Errorf("%w: %w", cluster.ErrCannotAsk, failure("list", r))
	}
	return parse(r.Stdout)
}

// find asks prlctl for the VE at path; nil = it knows none there.
func (d *Driver) find(ctx context.Context, path string) (*entry, error) {
	es, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if e.path == path {
			return &e, nil
		}
	}
	return nil, nil
}

// details are what only "list -i" tells.
type details struct {
	memory    cluster.Bytes
	cpus      int
	autostart bool
	outside   string // a disk that is not on the mount
}

func (d *Driver) below(path string) bool {
	return d.o.Mount == "" || path == d.o.Mount || strings.HasPrefix(path, strings.TrimSuffix(d.o.Mount, "/")+"/")
}

// readDetails reads the answer to "list -i -f", by UUID. What is missing in it stays zero.
func (d *Driver) readDetails(out string) (map[string]details, error) {
	all, err := array(out)
	if err != nil {
		return nil, fmt.Errorf("what prlctl list -i printed cannot be read: %w", err)
	}
	found := map[string]details{}
	for _, m := range all {
		id := strings.Trim(str(m["ID"]), "{}")
		if id == "" {
			return nil, fmt.Errorf("an entry of prlctl list -i has no ID")
		}
		var x details
		a := strings.ToLower(str(m["Autostart"]))
		x.autostart = a != "" && a != "off" && a != "-"
		hardware, _ := m["Hardware"].(map[string]any)
		cpu, _ := hardware["cpu"].(map[string]any)
		x.cpus, _ = strconv.Atoi(str(cpu["cpus"])) // a container may have "unlimited"
		memory, _ := hardware["memory"].(map[string]any)
		if mb, err := strconv.ParseInt(strings.TrimRight(str(memory["size"]), "MbB"), 10, 64); err == nil {
			x.memory = cluster.Bytes(mb) << 20
		}
		for _, name := range slices.Sorted(maps.Keys(hardware)) {
			disk, isDevice := hardware[name].(map[string]any)
			if !isDevice || !strings.HasPrefix(name, "hdd") {
				continue
			}
			for _, at := range []string{"image", "real"} {
				if p := str(disk[at]); strings.HasPrefix(p, "/") && !d.below(filepath.Clean(p)) {
					x.outside = name + " (" + p + ")"
				}
			}
		}
		found[id] = x
	}
	return found, nil
}

// parameters returns the details of all VEs, asking anew if what is known is old
// or lacks one. Nothing that decides hangs on them, so if prlctl does not tell
// them the last ones serve: it asks each guest's tools for them, which may hang.
func (d *Driver) parameters(ctx context.Context, es []entry) (map[string]details, error) {
	d.mu.Lock()
	known, fresh := d.details, time.Since(d.detailsAt) < d.t.details
	d.mu.Unlock()
	for _, e := range es {
		_, have := known[e.uuid]
		fresh = fresh && have
	}
	if fresh || len(es) == 0 {
		return known, nil
	}
	actx, cancel := context.WithTimeout(ctx, d.t.ask)
	defer cancel()
	r, err := d.tool(actx, "list", "-a", "--vmtype", "all", "-i", "-f", "-j")
	if err == nil && r.Code != 0 {
		err = failure("list -i", r)
	}
	var now map[string]details
	if err == nil {
		now, err = d.readDetails(r.Stdout)
	}
	if ctx.Err() != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if !d.detailsFailed {
			d.o.Logger.Warn("prlctl does not tell memory, CPUs, autostart and disks of the VEs; the last known ones are used, and none for new VEs; try 'prlctl list -a -i -f -j'", zap.Error(err))
		}
		d.detailsFailed, d.detailsAt = true, time.Now()
		return known, nil
	}
	d.details, d.detailsAt, d.detailsFailed = now, time.Now(), false
	return now, nil
}

// stale makes the next List ask for the details anew.
func (d *Driver) stale() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.detailsAt = time.Time{}
}
