package libvirttest

import (
	"context"
	_ "embed" // the guests
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

var (
	//go:embed guest.asm
	guestSource string
	//go:embed domain.xml
	vmXML string
	//go:embed container.xml
	containerXML string
	//go:embed container.sh
	containerScript string
)

// assembled is the boot sector.
var assembled = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "libvirttest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	src, obj, bin := filepath.Join(dir, "guest.asm"), filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
	if err := os.WriteFile(src, []byte(guestSource), 0o644); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"as", "--32", src, "-o", obj},
		{"ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", obj, "-o", bin},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return os.ReadFile(bin)
})

// Guest is a VE on the shared file system; libvirt does not know it by itself.
type Guest struct {
	Name, UUID string
	Container  bool
	Disk       string // the disk, or the directory of a container
	XML        string
}

// Where a guest's disk keeps its two words (guest.asm).
const (
	bootsAt    = 512
	stubbornAt = 514
	diskSize   = 1 << 20
)

// NewVM makes a virtual machine whose disk lies in dir.
func NewVM(dir, name string, stubborn bool) (Guest, error) {
	g := Guest{Name: name, UUID: NewUUID(), Disk: filepath.Join(dir, name+".img")}
	sector, err := assembled()
	if err != nil {
		return g, err
	}
	disk := make([]byte, diskSize)
	copy(disk, sector)
	if stubborn {
		disk[stubbornAt] = 1
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(g.Disk, disk, 0o644)); err != nil {
		return g, err
	}
	g.XML = g.fill(vmXML)
	return g, nil
}

// NewContainer makes a container whose files lie in dir.
func NewContainer(dir, name string, stubborn bool) (Guest, error) {
	g := Guest{Name: name, UUID: NewUUID(), Container: true, Disk: filepath.Join(dir, name)}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "run"} {
		if err := os.MkdirAll(filepath.Join(g.Disk, d), 0o755); err != nil {
			return g, err
		}
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		return g, err
	}
	data, err := os.ReadFile(box)
	if err != nil {
		return g, err
	}
	err = errors.Join(os.WriteFile(filepath.Join(g.Disk, "bin/busybox"), data, 0o755),
		os.WriteFile(filepath.Join(g.Disk, "bin/guest"), []byte(containerScript), 0o755))
	for _, tool := range []string{"sh", "cat", "mv", "rm", "sleep"} {
		err = errors.Join(err, os.Symlink("busybox", filepath.Join(g.Disk, "bin", tool)))
	}
	if stubborn {
		err = errors.Join(err, os.WriteFile(filepath.Join(g.Disk, "stubborn"), nil, 0o644))
	}
	g.XML = g.fill(containerXML)
	return g, err
}

func (g Guest) fill(template string) string {
	esc := func(s string) string {
		var b strings.Builder
		_ = xml.EscapeText(&b, []byte(s)) // a Builder takes all
		return b.String()
	}
	return strings.NewReplacer("@NAME@", esc(g.Name), "@UUID@", g.UUID, "@DISK@", esc(g.Disk)).Replace(template)
}

// Starts counts how often it was started, on whichever node.
func (g Guest) Starts() (int, error) {
	if g.Container {
		data, err := os.ReadFile(filepath.Join(g.Disk, "boots"))
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(data)))
	}
	f, err := os.Open(g.Disk)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [2]byte
	_, err = f.ReadAt(b[:], bootsAt)
	return int(binary.LittleEndian.Uint16(b[:])), err
}

// Canonical returns the definition as a node's libvirt writes it, which is what
// shaman saves: libvirt completes a definition when it takes it.
func (n *Node) Canonical(g Guest) (text string, err error) {
	err = n.Call(g.hypervisor(), func(l *golibvirt.Libvirt) error {
		dom, err := l.DomainDefineXML(g.XML)
		if err != nil {
			return err
		}
		text, err = l.DomainGetXMLDesc(dom, golibvirt.DomainXMLInactive)
		return errors.Join(err, l.DomainUndefineFlags(dom, 0))
	})
	return text, err
}

func (g Guest) hypervisor() string {
	if g.Container {
		return "lxc"
	}
	return "qemu"
}

// Call runs f on a connection to the node's libvirtd.
func (n *Node) Call(hypervisor string, f func(*golibvirt.Libvirt) error) error {
	l := golibvirt.NewWithDialer(dialers.NewLocal(dialers.WithSocket(n.Socket())))
	uri := map[string]golibvirt.ConnectURI{"qemu": golibvirt.QEMUSystem, "lxc": "lxc:///", "test": golibvirt.TestDefault}[hypervisor]
	if err := l.ConnectToURI(uri); err != nil {
		return fmt.Errorf("connect to the libvirtd of %s: %w", n.Name, err)
	}
	return errors.Join(f(l), l.Disconnect())
}

// Migrate moves a running VM to another node while it runs. It is defined there
// afterwards, and here no more.
func Migrate(ctx context.Context, from, to *Node, domain string, more ...string) error {
	args := append([]string{
		"migrate", "--live", "--persistent", "--undefinesource",
		"--unsafe", // both nodes are one machine: its page cache is one, whatever libvirt believes of the file system
		"--migrateuri", "tcp://127.0.0.1", domain, to.URI("qemu"),
	}, more...)
	_, err := from.Virsh(ctx, "qemu", args...)
	return err
}
