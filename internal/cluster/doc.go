// Package cluster holds the nouns that every other package speaks in: nodes,
// resources, VEs, placements, failovers, actions.
//
// It does no I/O, keeps no state, writes no log and reads no clock. Everybody
// may import it; it imports the standard library only.
package cluster
