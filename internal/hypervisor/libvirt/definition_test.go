package libvirt

import (
	"strings"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
)

const someUUID = "11111111-2222-4333-8444-555555555555"

// withDevices is a domain with HA on.
func withDevices(os, devices string) string {
	return `<domain type='kvm'><name>web 1</name><uuid>` + someUUID + `</uuid>
<metadata><other:thing xmlns:other="urn:x"><other:ha enabled="no"/></other:thing><shaman:ha xmlns:shaman="` + metadataURI + `" enabled="yes" priority="7"/></metadata>
<memory unit='GiB'>2</memory><vcpu placement='static'>3</vcpu><os>` + os + `</os><devices>` + devices + `</devices></domain>`
}

func TestADefinitionIsRead(t *testing.T) {
	d, err := place{mount: "/vms"}.parse(withDevices("", ""))
	if err != nil {
		t.Fatal(err)
	}
	if d.name != "web 1" || d.uuid.String() != someUUID || d.memory != 2<<30 || d.vcpus != 3 || !d.ha || d.priority != 7 || d.unfit != "" {
		t.Errorf("read %+v", d)
	}
	for _, text := range []string{"", "<domain>", "<domain/>", "<domain><uuid>x</uuid></domain>"} {
		if _, err := (place{mount: "/vms"}).parse(text); err == nil {
			t.Errorf("%q was read without an error", text)
		}
	}
}

func TestWhatOtherNodesDoNotSeeMakesUnfit(t *testing.T) {
	p := place{mount: "/vms"}
	tests := []struct {
		name, os, devices string
		names             string // "" = fit
	}{
		{"a disk on the mount", "", `<disk type='file' device='disk'><source file='/vms/a.qcow2'/></disk>`, ""},
		{"a disk elsewhere", "", `<disk type='file' device='disk'><source file='/var/a.qcow2'/></disk>`, "disk /var/a.qcow2"},
		{"a disk that only begins like the mount", "", `<disk type='file'><source file='/vms2/a.qcow2'/></disk>`, "/vms2/a.qcow2"},
		{"a disk that leaves the mount", "", `<disk type='file'><source file='/vms/../var/a'/></disk>`, "/vms/../var/a"},
		{"the second disk counts", "", `<disk type='file'><source file='/vms/a'/></disk><disk type='file'><source file='/b'/></disk>`, "/b"},
		{"a network disk", "", `<disk type='network'><source protocol='rbd' name='p/i'/></disk>`, ""},
		{"a block device", "", `<disk type='block'><source dev='/dev/sdb'/></disk>`, "/dev/sdb"},
		{"a volume of a pool", "", `<disk type='volume'><source pool='p' volume='v'/></disk>`, "v of pool p"},
		{"an empty CD drive", "", `<disk type='file' device='cdrom'><target dev='sda'/></disk>`, ""},
		{"a local CD", "", `<disk type='file' device='cdrom'><source file='/iso/a.iso'/></disk>`, "cdrom /iso/a.iso"},
		{"a local floppy", "", `<disk type='file' device='floppy'><source file='/iso/a.img'/></disk>`, "floppy /iso/a.img"},
		{"a disk that is a device of the host", "", `<disk type='nvme'><target dev='vda'/></disk>`, "nvme"},
		{"a directory on the mount", "", `<filesystem type='mount'><source dir='/vms/ct'/><target dir='/'/></filesystem>`, ""},
		{"a directory elsewhere", "", `<filesystem type='mount'><source dir='/srv/ct'/><target dir='/'/></filesystem>`, "filesystem /srv/ct"},
		{"a file system in memory", "", `<filesystem type='ram'><source usage='10'/><target dir='/tmp'/></filesystem>`, ""},
		{"a kernel elsewhere", "<kernel>/boot/vmlinuz</kernel>", "", "kernel /boot/vmlinuz"},
		{"an initrd elsewhere", "<kernel>/vms/vmlinuz</kernel><initrd>/boot/initrd</initrd>", "", "initrd /boot/initrd"},
		{"firmware of the packages, variables on the mount", "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>/vms/n.fd</nvram>", "", ""},
		{"variables elsewhere", "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/n.fd</nvram>", "", "nvram /var/lib/libvirt/qemu/nvram/n.fd"},
		{"variables elsewhere, said the new way", "<loader readonly='yes' type='pflash'>/usr/share/a.fd</loader><nvram type='file'><source file='/n.fd'/></nvram>", "", "nvram /n.fd"},
		{"variables nowhere", "<loader readonly='yes' type='pflash'>/usr/share/a.fd</loader>", "", "UEFI variables"},
		{"variables nowhere, chosen by libvirt", " ", "", ""},
		{"firmware that is written to", "<loader readonly='no' type='pflash'>/usr/share/a.fd</loader>", "", "loader /usr/share/a.fd"},
		{"firmware without variables", "<loader readonly='yes' type='pflash' stateless='yes'>/usr/share/a.fd</loader>", "", ""},
		{"an emulated TPM", "", `<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>`, "TPM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := p.parse(withDevices(tt.os, tt.devices))
			if err != nil {
				t.Fatal(err)
			}
			if (d.unfit == "") != (tt.names == "") || !strings.Contains(d.unfit, tt.names) {
				t.Errorf("unfit %q, want %q named", d.unfit, tt.names)
			}
		})
	}
}

func TestParametersInTheMetadata(t *testing.T) {
	ours := func(attrs string) string {
		return `<domain><uuid>` + someUUID + `</uuid><metadata><x:ha xmlns:x="` + metadataURI + `" ` + attrs + `/></metadata></domain>`
	}
	tests := []struct {
		name, text string
		ha         bool
		priority   uint32
		bad        string
	}{
		{"none", `<domain><uuid>` + someUUID + `</uuid></domain>`, false, 0, ""},
		{"on", ours(`enabled="yes"`), true, 0, ""},
		{"off, with a priority", ours(`enabled="no" priority="4294967295"`), false, 4294967295, ""},
		{"a word that is none of ours", ours(`enabled="true"`), false, 0, `enabled="true"`},
		{"a priority that is no number", ours(`enabled="yes" priority="high"`), false, 0, `priority="high"`},
		{"a priority too high", ours(`enabled="yes" priority="4294967296"`), false, 0, "4294967296"},
		{"of another namespace", strings.ReplaceAll(ours(`enabled="yes"`), metadataURI, "urn:x"), false, 0, ""},
		{"what Configure writes", strings.Replace(ours(""), ` />`, "/>", 1), false, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := place{mount: "/vms"}.parse(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if d.ha != tt.ha || d.priority != tt.priority || (d.unfit == "") != (tt.bad == "") || !strings.Contains(d.unfit, tt.bad) {
				t.Errorf("HA %v, priority %d, unfit %q; want %v, %d, %q named", d.ha, d.priority, d.unfit, tt.ha, tt.priority, tt.bad)
			}
		})
	}
}

func TestStatesAreNotTakenForWhatTheyAreNot(t *testing.T) {
	at := func(id int32, s golibvirt.DomainState, reason int32) domain {
		return domain{Domain: golibvirt.Domain{ID: id}, state: s, reason: reason}
	}
	out := at(3, golibvirt.DomainPaused, int32(golibvirt.DomainPausedMigration))
	out.outgoing = true
	tests := []struct {
		name  string
		x     domain
		state cluster.VEState
		cause cluster.StopCause
	}{
		{"running", at(1, golibvirt.DomainRunning, 1), cluster.VERunning, ""},
		{"shutting down", at(1, golibvirt.DomainShutdown, 1), cluster.VERunning, ""},
		{"paused by a user", at(1, golibvirt.DomainPaused, int32(golibvirt.DomainPausedUser)), cluster.VERunning, ""},
		{"paused by a full disk", at(1, golibvirt.DomainPaused, int32(golibvirt.DomainPausedIoerror)), cluster.VERunning, ""},
		{"crashed, and kept", at(1, golibvirt.DomainCrashed, 1), cluster.VERunning, ""},
		{"starting", at(1, golibvirt.DomainShutoff, 0), cluster.VEUnknown, ""},
		{"starting, its process is there", at(1, golibvirt.DomainPaused, int32(golibvirt.DomainPausedStartingUp)), cluster.VEUnknown, ""},
		{"no state", at(1, golibvirt.DomainNostate, 0), cluster.VEUnknown, ""},
		{"migrating in", at(1, golibvirt.DomainPaused, int32(golibvirt.DomainPausedMigration)), cluster.VEUnknown, ""},
		{"migrating out, at the switch", out, cluster.VERunning, ""},
		{"left behind by a migration with postcopy", at(1, golibvirt.DomainPaused, int32(golibvirt.DomainPausedPostcopy)), cluster.VEUnknown, ""},
		{"seen at different moments", at(inactive, golibvirt.DomainRunning, 1), cluster.VEUnknown, ""},
		{"shut down", at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffShutdown)), cluster.VEStopped, cluster.CauseStop},
		{"saved", at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffSaved)), cluster.VEStopped, cluster.CauseStop},
		{"destroyed", at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffDestroyed)), cluster.VEStopped, cluster.CauseUnknown},
		{"migrated away", at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffMigrated)), cluster.VEStopped, cluster.CauseUnknown},
		{"crashed", at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffCrashed)), cluster.VEStopped, cluster.CauseCrash},
		{"failed to start", at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffFailed)), cluster.VEStopped, cluster.CauseCrash},
		{"never started", at(inactive, golibvirt.DomainShutoff, 0), cluster.VEStopped, cluster.CauseUnknown},
	}
	for _, tt := range tests {
		if s, c := tt.x.judge(false); s != tt.state || c != tt.cause {
			t.Errorf("%s: %q by %q, want %q by %q", tt.name, s, c, tt.state, tt.cause)
		}
	}
	if _, c := at(inactive, golibvirt.DomainShutoff, int32(golibvirt.DomainShutoffShutdown)).judge(true); c != cluster.CauseUnknown {
		t.Errorf("a container's shutdown is told by %q: libvirt-lxc says that of a killed one too", c)
	}
}
