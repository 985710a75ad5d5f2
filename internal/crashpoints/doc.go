// Package crashpoints holds a cluster inside one process, in which whoever acts can
// be killed before and after each of its operations: every call on the shared file
// system, every request to etcd, every call of the hypervisor.
//
// The daemons are the real ones, and so is the etcd; each daemon has a FUSE mount of
// its own over one directory, an interceptor in its etcd client, and a driver in
// memory. Its death is that from one operation on nothing it does has any effect.
// Besides dying there, an operation can fail although it took effect, fail without
// effect, answer late, be carried out twice, or show an old name or listing.
//
// Everything is in the tests; there is nothing to import.
package crashpoints
