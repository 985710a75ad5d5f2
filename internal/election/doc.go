// Package election holds one lease a daemon and elects one master.
//
// A lease is valid as long as the *local* clock says so: from the moment at
// which the last acknowledged renewal was sent, for the lease's time less a
// margin. etcd counts from a later moment, so a holder that stops acting at the
// end of its validity has stopped before anybody else may act. Past that moment
// renewals go on: when one succeeds the lease is valid again, and only etcd's
// own word ends it.
//
// Mastership is handed down as a context and a term, and nothing asks "am I
// master?" to act afterwards. The term guards every write (etcd.CommitAs). What
// this package does not promise: that an old master's *other* effects, on the
// shared file system or through a fence agent, cannot land late. Those have
// arguments of their own.
//
// The stock session and election of the etcd client are not used: a session
// learns of its end up to a second after the key is gone, one hung etcd member
// ends all sessions at once, and a campaign can succeed without a lease.
package election
