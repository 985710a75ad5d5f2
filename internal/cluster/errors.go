package cluster

import "errors"

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
