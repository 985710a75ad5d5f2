package libvirt

import (
	"errors"
	"fmt"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// What libvirt and QEMU say when somebody else holds the disks: QEMU's own image
// lock, virtlockd's and sanlock's leases. libvirt has no code of its own for them.
var lockTexts = []string{
	`Failed to get "write" lock`, `Failed to get shared "write" lock`, `Failed to get "consistent read" lock`, "Failed to lock byte",
	"Is another process using the image", "Lockspace resource", "Failed to acquire lock", "Failed to acquire lease",
}

// What tells of storage or of the node, not of the VE. libvirt passes on the
// text of the system's error, never its number.
var holdTexts = []string{
	"Read-only file system", "No space left on device", "Input/output error", "Stale file handle", "Disk quota exceeded",
	"Transport endpoint is not connected", "Connection timed out", "Cannot allocate memory", "Too many open files",
	"Failed to terminate process", // it hangs in the kernel, which waits for storage
	"cannot acquire state change lock",
}

// classify gives an answer of libvirt the class by which shaman decides.
func classify(err error) error {
	if err == nil {
		return nil
	}
	for _, class := range []error{cluster.ErrCannotAsk, cluster.ErrHold, cluster.ErrLocked, cluster.ErrNoVE} {
		if errors.Is(err, class) {
			return err
		}
	}
	has := func(texts []string) bool {
		for _, t := range texts {
			if strings.Contains(err.Error(), t) {
				return true
			}
		}
		return false
	}
	switch {
	case lost(err):
		return fmt.Errorf("%w: libvirtd ended the connection before it answered: %w", cluster.ErrCannotAsk, err)
	case isCode(err, golibvirt.ErrNoDomain):
		return fmt.Errorf("libvirt: %w: %w", cluster.ErrNoVE, err)
	case has(lockTexts):
		return fmt.Errorf("libvirt: %w: %w", cluster.ErrLocked, err)
	case isCode(err, golibvirt.ErrOperationTimeout), has(holdTexts):
		return fmt.Errorf("libvirt: %w: %w", cluster.ErrHold, err)
	}
	return fmt.Errorf("libvirt: %w", err)
}

func isCode(err error, codes ...golibvirt.ErrorNumber) bool {
	var e golibvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == uint32(c) {
			return true
		}
	}
	return false
}

// unsupported tells that this hypervisor, or a libvirt this old, has no such call.
func unsupported(err error) bool {
	return errors.Is(err, golibvirt.ErrUnsupported) || isCode(err, golibvirt.ErrNoSupport, golibvirt.ErrArgumentUnsupported)
}
