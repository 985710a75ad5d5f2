package libvirt

import (
	"encoding/hex"
	"fmt"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// uuid names a domain on all nodes.
type uuid golibvirt.UUID

func (u uuid) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func parseUUID(text string) (u uuid, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(text), "-", ""))
	if err != nil || len(b) != len(u) {
		return uuid{}, fmt.Errorf("%q is no UUID", text)
	}
	copy(u[:], b)
	return u, nil
}
