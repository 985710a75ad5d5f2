// Package watchdog holds the machine's hardware watchdog: it feeds it while the
// node is in contact, and never a moment longer.
//
// An armed watchdog is a promise to the other nodes: when both of this node's
// channels have been silent for long enough, the machine has been reset, and its
// VEs may run elsewhere. So what counts here is not that the dog is fed, but that
// it is not fed when it must not be: after SELF_FENCE_TIMEOUT without contact,
// after an order to stop everything that was not carried out in time, and not by
// the next process either (see record).
package watchdog
