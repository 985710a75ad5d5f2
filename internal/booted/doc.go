// Package booted boots a machine that is thrown away, with a real systemd as its
// process 1, to test what only systemd can show: the unit, its watchdog, restarts,
// shutdowns. It is imported by tests only.
//
// A Box is systemd-nspawn over an overlay of this machine's own root. Its disk is
// in memory, its network is the host's, and all of it is in one process namespace:
// cutting its power is one SIGKILL, and when that has returned nothing of the box
// is left. The test itself runs in a Room, a mount namespace of its own, so that
// the end of the test, whatever it is, is the end of all mounts and boxes.
package booted
