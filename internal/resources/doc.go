// Package resources keeps the repositories on the shared file system: one small
// file a VE, in the directory of the node that owns it.
//
// The directory a file lies in is the record of ownership; there is no second
// list that could disagree. One rename is the commit point of every change of
// hands: Seal takes a dead node's directory away, Claim gives one file of it to
// its new node, GiveBack and MarkBroken let go of one.
//
// Any call may hang or fail in the ways of network file systems. All I/O
// therefore runs in workers with deadlines, no answer means "unknown", and the
// result of a failed rename is found out by looking (NFS can answer ENOENT to a
// rename that succeeded). What cannot be parsed is reported and left where it is.
//
// Not promised: that a node which was sealed cannot write into the sealed
// directory through an old handle. Fencing comes before sealing for that reason.
package resources
