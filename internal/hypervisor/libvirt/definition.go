package libvirt

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// metadataURI is the namespace of shaman's element in a domain's <metadata>:
//
//	<shaman:ha xmlns:shaman="https://shaman-ha.github.io/xmlns/libvirt/domain/1.0" enabled="yes" priority="10"/>
const metadataURI = "https://shaman-ha.github.io/xmlns/libvirt/domain/1.0"

// definition is what shaman reads of a domain's XML.
type definition struct {
	text     string
	name     string
	uuid     uuid
	memory   cluster.Bytes
	vcpus    int
	ha       bool
	asked    bool // high availability is, or was meant to be
	priority uint32
	unfit    string
}

type domainXML struct {
	Type   string `xml:"type,attr"`
	Name   string `xml:"name"`
	UUID   string `xml:"uuid"`
	Memory struct {
		Unit  string `xml:"unit,attr"`
		Value string `xml:",chardata"`
	} `xml:"memory"`
	VCPU    string     `xml:"vcpu"`
	HA      []haXML    `xml:"metadata>ha"`
	OS      osXML      `xml:"os"`
	Devices devicesXML `xml:"devices"`
}

type haXML struct {
	XMLName  xml.Name
	Enabled  string `xml:"enabled,attr"`
	Priority string `xml:"priority,attr"`
}

type osXML struct {
	Firmware string `xml:"firmware,attr"`
	Loader   struct {
		Path      string `xml:",chardata"`
		ReadOnly  string `xml:"readonly,attr"`
		Type      string `xml:"type,attr"`
		Stateless string `xml:"stateless,attr"`
	} `xml:"loader"`
	NVRAM struct {
		Path   string    `xml:",chardata"`
		Type   string    `xml:"type,attr"`
		Source sourceXML `xml:"source"`
	} `xml:"nvram"`
	Kernel string `xml:"kernel"`
	Initrd string `xml:"initrd"`
	DTB    string `xml:"dtb"`
}

type sourceXML struct {
	File   string `xml:"file,attr"`
	Dev    string `xml:"dev,attr"`
	Dir    string `xml:"dir,attr"`
	Name   string `xml:"name,attr"`
	Pool   string `xml:"pool,attr"`
	Volume string `xml:"volume,attr"`
	Path   string `xml:"path,attr"`
}

type storeXML struct {
	Type   string    `xml:"type,attr"`
	Device string    `xml:"device,attr"`
	Source sourceXML `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Dir string `xml:"dir,attr"`
	} `xml:"target"`
}

type devicesXML struct {
	Disks       []storeXML `xml:"disk"`
	Filesystems []storeXML `xml:"filesystem"`
	TPMs        []struct {
		Backend struct {
			Type   string    `xml:"type,attr"`
			Source sourceXML `xml:"source"`
		} `xml:"backend"`
	} `xml:"tpm"`
}

// place tells what lies where all nodes see it.
type place struct {
	mount string
}

func (p place) shared(file string) bool {
	file = filepath.Clean(file)
	return filepath.IsAbs(file) && strings.HasPrefix(file, strings.TrimSuffix(p.mount, "/")+"/")
}

// parse reads a domain's XML.
func (p place) parse(text string) (definition, error) {
	var x domainXML
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return definition{}, fmt.Errorf("read a domain's definition: %w", err)
	}
	id, err := parseUUID(x.UUID)
	if err != nil {
		return definition{}, fmt.Errorf("read the definition of domain %q: %w", x.Name, err)
	}
	d := definition{text: text, name: x.Name, uuid: id, memory: bytesOf(x.Memory.Value, x.Memory.Unit)}
	d.vcpus, _ = strconv.Atoi(strings.TrimSpace(x.VCPU)) // 0 = not known
	var bad string
	d.ha, d.priority, bad = parameters(x.HA)
	d.unfit, d.asked = bad, d.ha || bad != ""
	if d.unfit == "" {
		d.unfit = p.unfit(x)
	}
	return d, nil
}

// bytesOf reads libvirt's scaled integers: without a unit they are KiB.
func bytesOf(value, unit string) cluster.Bytes {
	n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	if err != nil {
		return 0
	}
	scale := map[string]int64{
		"b": 1, "bytes": 1, "KB": 1e3, "k": 1 << 10, "KiB": 1 << 10, "": 1 << 10, "MB": 1e6, "M": 1 << 20, "MiB": 1 << 20,
		"GB": 1e9, "G": 1 << 30, "GiB": 1 << 30, "TB": 1e12, "T": 1 << 40, "TiB": 1 << 40,
	}[unit]
	return cluster.Bytes(n * scale)
}

// parameters reads shaman's element. What cannot be understood is said, and HA is off.
func parameters(all []haXML) (ha bool, priority uint32, bad string) {
	var found []haXML
	for _, h := range all {
		if h.XMLName.Space == metadataURI {
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		return false, 0, ""
	}
	if len(found) > 1 {
		return false, 0, "the domain's metadata has more than one element ha of shaman; remove all but one ('virsh edit')"
	}
	h := found[0]
	switch h.Enabled {
	case "yes":
		ha = true
	case "no", "":
	default:
		return false, 0, fmt.Sprintf("the domain's metadata says enabled=%q; it has to be yes or no ('virsh edit')", h.Enabled)
	}
	if h.Priority == "" {
		return ha, 0, ""
	}
	n, err := strconv.ParseUint(h.Priority, 10, 32)
	if err != nil {
		return false, 0, fmt.Sprintf("the domain's metadata says priority=%q; it has to be a number from 0 to 4294967295 ('virsh edit')", h.Priority)
	}
	return ha, uint32(n), ""
}

// element is shaman's metadata for these parameters.
func element(ha bool, priority uint32) string {
	word := "no"
	if ha {
		word = "yes"
	}
	return fmt.Sprintf("<ha enabled='%s' priority='%d'/>", word, priority)
}

// unfit names the first thing that another node would not find.
func (p place) unfit(x domainXML) string {
	local := func(what, file string) string {
		if file = strings.TrimSpace(file); file == "" || p.shared(file) {
			return ""
		}
		return fmt.Sprintf("%s %s does not lie on the cluster's shared file system %s; move it there", what, file, p.mount)
	}
	for _, s := range []string{
		local("kernel", x.OS.Kernel), local("initrd", x.OS.Initrd), local("dtb", x.OS.DTB),
		p.unfitFirmware(x.OS, local),
	} {
		if s != "" {
			return s
		}
	}
	for _, d := range x.Devices.Disks {
		if s := p.unfitStore("disk", d, local); s != "" {
			return s
		}
	}
	for _, f := range x.Devices.Filesystems {
		if s := p.unfitStore("filesystem", f, local); s != "" {
			return s
		}
	}
	for _, t := range x.Devices.TPMs {
		if t.Backend.Type == "emulator" && !p.shared(t.Backend.Source.Path) {
			return "the state of its emulated TPM lies on this node alone (tpm emulator); remove the TPM"
		}
	}
	return ""
}

// unfitFirmware judges the firmware: what is only read comes with each node's
// packages, what is written to belongs to the VE.
func (p place) unfitFirmware(o osXML, local func(what, file string) string) string {
	l := o.Loader
	readOnly := l.ReadOnly == "yes" || l.Type == "rom" || l.Type == ""
	if path := strings.TrimSpace(l.Path); !readOnly || !strings.HasPrefix(path, "/usr/") {
		if s := local("loader", path); s != "" {
			return s
		}
	}
	if l.Stateless == "yes" {
		return ""
	}
	switch file := strings.TrimSpace(o.NVRAM.Path); {
	case o.NVRAM.Type == "network":
	case o.NVRAM.Source.File != "":
		return local("nvram", o.NVRAM.Source.File)
	case o.NVRAM.Source.Dev != "":
		return p.device("nvram", o.NVRAM.Source.Dev)
	case file != "":
		return local("nvram", file)
	case l.Type == "pflash" || o.Firmware == "efi":
		return "it names no file for its UEFI variables, so that they would lie on this node; give it an <nvram> below " + p.mount
	}
	return ""
}

func (p place) device(what, dev string) string {
	return fmt.Sprintf("%s %s is a block device of this node, and whether others have it is not known; put the image below %s, or name its network source", what, dev, p.mount)
}

// unfitStore judges a disk, a CD or floppy in its drive, or a directory.
func (p place) unfitStore(what string, s storeXML, local func(what, file string) string) string {
	if s.Device == "cdrom" || s.Device == "floppy" {
		what = s.Device
	}
	switch s.Type {
	case "file":
		return local(what, s.Source.File)
	case "block":
		if s.Source.Dev == "" {
			return ""
		}
		return p.device(what, s.Source.Dev)
	case "dir":
		return local(what, s.Source.Dir)
	case "mount", "": // of filesystems
		return local(what, s.Source.Dir)
	case "bind":
		return local(what, s.Source.Dir)
	case "network", "ram":
		return ""
	case "volume":
		if s.Source.Volume == "" {
			return ""
		}
		return fmt.Sprintf("%s %s of pool %s: a pool does not tell whether other nodes have it; name its file or its network source", what, s.Source.Volume, s.Source.Pool)
	}
	return fmt.Sprintf("%s %s%s is of type %s, which is of this node alone", what, s.Target.Dev, s.Target.Dir, s.Type)
}
