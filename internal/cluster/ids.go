package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// NodeID is a node's host id: 16 lower-case hexadecimal digits. It outlives
// reboots, addresses and names.
type NodeID string

// ParseNodeID checks the form of a host id.
func ParseNodeID(s string) (NodeID, error) {
	if len(s) != 16 {
		return "", fmt.Errorf("host id %q: want 16 hexadecimal digits, got %d characters", s, len(s))
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("host id %q: %q is not a lower-case hexadecimal digit", s, c)
		}
	}
	return NodeID(s), nil
}

// Epoch is the number of a mastership: the create revision of its election
// key. It grows strictly; 0 means none.
type Epoch int64

// Incarnation counts a node's memberships between two proven failovers, from 1.
type Incarnation int64

// Bytes is an amount of memory or storage in bytes.
type Bytes int64

// Kind is the type of a VE: "vm", "ct", or what a resource script adds.
type Kind string

// The kinds that shaman knows by itself.
const (
	KindVM Kind = "vm"
	KindCT Kind = "ct"
)

// Role says which kinds of resources a node may receive: the kind in upper
// case, or RoleSpare.
type Role string

// RoleSpare marks a node that is kept empty for the policy "spare".
const RoleSpare Role = "SPARE"

// RoleOf returns the role that admits resources of this kind.
func RoleOf(k Kind) Role { return Role(strings.ToUpper(string(k))) }

// ResourceID names a resource: the name of its file, "<kind>-<name>" with the
// name percent-encoded outside [A-Za-z0-9._-]. It is what the command line and
// JSON show. The path, not the id, is a VE's identity.
type ResourceID string

// maxName bounds the encoded name, so that "~<host id>" and ".reason" still fit
// into a file name of 255 bytes.
const maxName = 200

// maxID bounds a whole id: with ".reason" it is a file name of 255 bytes.
const maxID = 248

// MakeResourceID encodes a VE's kind and name. A name over 200 encoded bytes
// keeps its first 160 and gets "~" and a hash of the whole; a name is never
// left ending in ".reason", which is taken by quarantine.
func MakeResourceID(kind Kind, name string) ResourceID {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	enc := b.String()
	if strings.HasSuffix(enc, ".reason") {
		enc = strings.TrimSuffix(enc, ".reason") + "%2Ereason"
	}
	if len(enc) > maxName {
		sum := sha256.Sum256([]byte(name))
		enc = enc[:160] + "~" + hex.EncodeToString(sum[:8])
	}
	return ResourceID(string(kind) + "-" + enc)
}

// ParseResourceID checks that s can be the name of a resource file.
func ParseResourceID(s string) (ResourceID, error) {
	kind, name, ok := strings.Cut(s, "-")
	if !ok || kind == "" || name == "" {
		return "", fmt.Errorf("resource %q: want <type>-<name>, such as vm-web or ct-101", s)
	}
	if strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".reason") || len(s) > maxID {
		return "", fmt.Errorf("resource %q: a name does not start with '.', does not end in '.reason' and has at most %d bytes", s, maxID)
	}
	for _, c := range kind {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return "", fmt.Errorf("resource %q: the type %q has characters outside [a-z0-9_]", s, kind)
		}
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-%~", c) {
			return "", fmt.Errorf("resource %q: the name has %q; encode it as %%XX", s, c)
		}
	}
	return ResourceID(s), nil
}

// Kind returns the part before the first dash.
func (r ResourceID) Kind() Kind {
	k, _, _ := strings.Cut(string(r), "-")
	return Kind(k)
}

// PoolID names a sealed repository: "<host id>.<incarnation>". Incarnation 0
// holds what an owner gave back itself, proven stopped and unregistered.
type PoolID struct {
	Node        NodeID
	Incarnation Incarnation
}

func (p PoolID) String() string { return fmt.Sprintf("%s.%d", p.Node, p.Incarnation) }

// ParsePoolID reads "<host id>.<incarnation>".
func ParsePoolID(s string) (PoolID, error) {
	host, inc, ok := strings.Cut(s, ".")
	if !ok {
		return PoolID{}, fmt.Errorf("pool directory %q: want <host id>.<incarnation>", s)
	}
	id, err := ParseNodeID(host)
	if err != nil {
		return PoolID{}, fmt.Errorf("pool directory %q: %w", s, err)
	}
	var n int64
	if _, err := fmt.Sscanf(inc, "%d", &n); err != nil || fmt.Sprint(n) != inc || n < 0 {
		return PoolID{}, fmt.Errorf("pool directory %q: %q is not an incarnation", s, inc)
	}
	return PoolID{Node: id, Incarnation: Incarnation(n)}, nil
}
