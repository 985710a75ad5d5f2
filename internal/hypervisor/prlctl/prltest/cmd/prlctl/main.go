// Command prlctl is the tool of the stand-in: it hands its arguments to the
// dispatcher whose socket lies beside it, and prints what that answers.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest/wire"
)

func main() {
	os.Exit(run()) //nolint:forbidigo // this is main
}

func run() int {
	const noDispatcher = 253
	conn, err := net.Dial("unix", filepath.Join(filepath.Dir(os.Args[0]), wire.Socket))
	if err != nil {
		fmt.Fprintln(os.Stderr, "Failed to connect to the dispatcher")
		return noDispatcher
	}
	defer conn.Close()
	var a wire.Answer
	if err := json.NewEncoder(conn).Encode(wire.Request{Args: os.Args[1:], Driver: os.Getenv("SHAMAN_DRIVER")}); err == nil {
		err = json.NewDecoder(conn).Decode(&a)
		if err == nil {
			fmt.Fprint(os.Stdout, a.Stdout)
			fmt.Fprint(os.Stderr, a.Stderr)
			return a.Code
		}
	}
	fmt.Fprintln(os.Stderr, "The connection to the dispatcher was lost")
	return noDispatcher
}
