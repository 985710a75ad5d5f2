package resources

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// MaxSize bounds a resource file in bytes: anything larger was not written by
// shaman and is not read into memory.
const MaxSize = 64 << 10

// ParseError says why a resource file cannot be used.
type ParseError struct {
	Path string // of the file
	Line int    // from 1; 0 = the file as a whole
	Msg  string
}

func (e *ParseError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.Path, e.Msg)
	}
	return fmt.Sprintf("%s:%d: %s", e.Path, e.Line, e.Msg)
}

// Document is the content of a resource file. Lines with keys that shaman does
// not know are kept as they are, in order.
type Document struct {
	Path  string // of the VE
	lines []line
}

type line struct{ key, text string }

// The keys that shaman knows.
const (
	keyPriority  = "PRIORITY"
	keyState     = "STATE"
	keyMemory    = "MEMORY"
	keyVCPUs     = "VCPUS"
	keyUUID      = "UUID"
	keyLastNode  = "LAST_NODE"
	keyWaiting   = "WAITING"
	keyMigrating = "MIGRATING"
)

// ParseDocument reads a resource file's content; name is used in errors only.
func ParseDocument(name string, data []byte) (Document, error) {
	fail := func(n int, format string, args ...any) (Document, error) {
		return Document{}, &ParseError{Path: name, Line: n, Msg: fmt.Sprintf(format, args...)}
	}
	switch {
	case len(data) == 0:
		return fail(0, "the file is empty; want the path of the VE in the first line")
	case len(data) > MaxSize:
		return fail(0, "the file has %d bytes or more, at most %d are read; it is no resource file", len(data), MaxSize)
	case bytes.IndexByte(data, 0) >= 0:
		return fail(0, "the file is binary; want the path of the VE in the first line and KEY=VALUE lines below it")
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	d := Document{Path: strings.TrimSuffix(lines[0], "\r")}
	if !path.IsAbs(d.Path) || strings.Contains(d.Path, "\r") {
		return fail(1, "the first line is %q; want the absolute path of the VE", clip(d.Path))
	}
	seen := map[string]int{}
	for i, raw := range lines[1:] {
		text := strings.TrimSuffix(raw, "\r")
		if text == "" || text[0] == '#' {
			d.lines = append(d.lines, line{text: raw})
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \t") {
			return fail(i+2, "%q is not KEY=VALUE; the file may be half written", clip(text))
		}
		if msg := checkValue(key, value); msg != "" {
			return fail(i+2, "%s=%s: %s", key, clip(value), msg)
		}
		if first, dup := seen[key]; dup && isKnown(key) {
			return fail(i+2, "%s is set a second time, first in line %d", key, first)
		}
		seen[key] = i + 2
		if !isKnown(key) {
			text = raw
		}
		d.lines = append(d.lines, line{key: key, text: text})
	}
	return d, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func isKnown(key string) bool {
	switch key {
	case keyPriority, keyState, keyMemory, keyVCPUs, keyUUID, keyLastNode, keyWaiting, keyMigrating:
		return true
	}
	return false
}

// checkValue returns what is wrong with a value, or "".
func checkValue(key, value string) string {
	switch key {
	case keyPriority:
		if _, err := strconv.ParseUint(value, 10, 32); err != nil {
			return "want a whole number from 0 to 4294967295"
		}
	case keyState:
		if value != string(cluster.WantRunning) && value != string(cluster.WantStopped) {
			return "want running or stopped"
		}
	case keyMemory, keyVCPUs:
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n < 0 {
			return "want a whole number of 0 or more"
		}
	case keyLastNode, keyMigrating:
		if _, err := cluster.ParseNodeID(value); err != nil {
			return "want a host id of 16 hexadecimal digits"
		}
	}
	return ""
}

func (d Document) get(key string) string {
	for _, l := range d.lines {
		if l.key == key {
			return l.text[len(key)+1:]
		}
	}
	return ""
}

// set replaces, adds or, with an empty value, removes a line.
func (d *Document) set(key, value string) {
	value = strings.NewReplacer("\n", " ", "\r", " ", "\x00", " ").Replace(value)
	kept := make([]line, 0, len(d.lines)+1)
	done := value == ""
	for _, l := range d.lines {
		switch {
		case l.key != key:
			kept = append(kept, l)
		case !done:
			kept = append(kept, line{key: key, text: key + "=" + value})
			done = true
		}
	}
	if !done {
		kept = append(kept, line{key: key, text: key + "=" + value})
	}
	d.lines = kept
}

func (d Document) number(key string) int64 {
	n, err := strconv.ParseInt(d.get(key), 10, 64)
	if err != nil {
		return 0 // absent: a present value was checked when it was read
	}
	return n
}

// Resource returns what the document says of the resource of this id. Where the
// file lies is left to the caller.
func (d Document) Resource(id cluster.ResourceID) cluster.Resource {
	return cluster.Resource{
		ID: id, Kind: id.Kind(), Path: d.Path,
		Want:      cluster.Want(d.get(keyState)),
		Memory:    cluster.Bytes(d.number(keyMemory)),
		VCPUs:     int(d.number(keyVCPUs)),
		UUID:      d.get(keyUUID),
		Priority:  uint32(d.number(keyPriority)),
		LastNode:  cluster.NodeID(d.get(keyLastNode)),
		Waiting:   d.get(keyWaiting),
		Migrating: cluster.NodeID(d.get(keyMigrating)),
	}
}

// Apply writes a resource's parameters into the document; everything else in it stays.
func (d *Document) Apply(r cluster.Resource) {
	d.Path = r.Path
	num := func(n int64) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	d.set(keyPriority, num(int64(r.Priority)))
	d.set(keyState, string(r.Want))
	d.set(keyMemory, num(int64(r.Memory)))
	d.set(keyVCPUs, num(int64(r.VCPUs)))
	d.set(keyUUID, r.UUID)
	d.set(keyLastNode, string(r.LastNode))
	d.set(keyWaiting, r.Waiting)
	d.set(keyMigrating, string(r.Migrating))
}

// Bytes renders the file's content.
func (d Document) Bytes() ([]byte, error) {
	if !path.IsAbs(d.Path) || strings.ContainsAny(d.Path, "\n\r\x00") {
		return nil, errors.New("a resource needs the absolute path of its VE, without line breaks")
	}
	var b bytes.Buffer
	b.WriteString(d.Path)
	b.WriteByte('\n')
	for _, l := range d.lines {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("a resource file has at most %d bytes, this would have %d", MaxSize, b.Len())
	}
	return b.Bytes(), nil
}
