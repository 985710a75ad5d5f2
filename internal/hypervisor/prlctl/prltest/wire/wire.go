// Package wire is what the stand-in's tool and dispatcher say to each other.
package wire

// Socket is the name of the dispatcher's socket, beside the tool.
const Socket = "dispatcher.sock"

// Request is one call of the tool.
type Request struct {
	Args   []string
	Driver string // SHAMAN_DRIVER of its environment
}

// Answer is what the tool prints, and its exit code.
type Answer struct {
	Stdout, Stderr string
	Code           int
}
