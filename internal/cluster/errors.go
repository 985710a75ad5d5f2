package cluster

import (
	"errors"
	"slices"
	"strings"
)

// Classes of driver and file system errors. A driver wraps its errors with the
// class that fits; an error of no class counts as a failed attempt.
var (
	// ErrCannotAsk is returned if the hypervisor does not answer. It never means "stopped".
	ErrCannotAsk = errors.New("the hypervisor cannot be asked")
	// ErrHold is returned for trouble of the node or its storage (EROFS, ENOSPC, EIO,
	// ESTALE, time-outs): the queue waits and nothing becomes broken.
	ErrHold = errors.New("storage or node trouble")
	// ErrLocked is returned while a lock that a dead client left is still held.
	ErrLocked = errors.New("a lock is still held")
	// ErrNoVE is returned if the hypervisor does not know the VE.
	ErrNoVE = errors.New("no such VE")
)

// UnansweredError is returned beside what the other drivers of a node know, if
// some of them cannot be asked.
type UnansweredError struct {
	Kinds []Kind // that nothing is known of
	Err   error
}

// Error names what is not known, and why.
func (e *UnansweredError) Error() string { return e.Err.Error() }

// Unwrap returns the drivers' errors.
func (e *UnansweredError) Unwrap() error { return e.Err }

// Known tells what the error of a list says of one kind: nil if that is known.
func Known(err error, k Kind) error {
	var u *UnansweredError
	if errors.As(err, &u) && !slices.Contains(u.Kinds, k) {
		return nil
	}
	return err
}

// What a caller of the repositories decides by.
var (
	// ErrGone is returned if the resource is not where the caller thinks it is.
	ErrGone = errors.New("the resource is not there")
	// ErrRunsHere is why an owner does not let go of a VE that another node has too.
	ErrRunsHere = errors.New("it runs here too, or is being migrated")
	// ErrTaken is returned if the name is in use.
	ErrTaken = errors.New("a resource of this name is there already")
	// ErrSealed is returned if the repository is gone or of another incarnation:
	// it was taken over, and its former owner must not touch anything.
	ErrSealed = errors.New("the repository was taken over")
	// ErrTorn is returned if a slot on the mount was read in the middle of a write, or was never written.
	ErrTorn = errors.New("the slot holds no complete record")
	// ErrWentBack is returned if etcd does not know what was last done on the mount.
	ErrWentBack = errors.New("etcd was rebuilt or restored from a backup")
	// ErrForeignNonce is returned if another process writes this node's heartbeat.
	ErrForeignNonce = errors.New("another process writes the heartbeat of this host id")
)

// What a writer to etcd decides by. Any other error leaves the result unknown.
var (
	// ErrConflict is returned if a compare of the transaction did not hold: what
	// the caller had seen has changed.
	ErrConflict = errors.New("changed meanwhile")
	// ErrDeposed is returned if the writer is not master any more.
	ErrDeposed = errors.New("not master any more")
	// ErrNotJoined is returned if the node has no record in the cluster.
	ErrNotJoined = errors.New("this node is not joined to the cluster; run 'shaman join' on it")
	// ErrFailoverOpen is returned while a failover of the node is not sealed.
	ErrFailoverOpen = errors.New("a failover of this node is under way")
	// ErrOtherHolder is returned if alive/ is held by another process or lease.
	ErrOtherHolder = errors.New("another lease holds this node's alive key")
	// ErrNotAlive is returned if this node's alive key is not held by the lease under which it acts.
	ErrNotAlive = errors.New("this node is not admitted under its present lease")
)

// OneLine is an error's text for records, events and tables: joined errors are
// several lines by themselves.
func OneLine(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
