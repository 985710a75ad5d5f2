package watchdog

import (
	"os"
	"path/filepath"
	"strings"
)

// Virtual tells whether this machine is itself a virtual one, and what says so.
// A virtual machine's watchdog stands still while its host pauses it, so it
// proves nothing unless WATCHDOG_TRUST_VIRTUAL says that it does.
func Virtual() (bool, string) { return VirtualAt("/") }

// vendors are what hypervisors call the machines that they make up, as DMI has
// it. Whole words of makers who build real machines too are not among them.
var vendors = []string{
	"qemu", "kvm", "bochs", "vmware", "virtualbox", "innotek", "xen", "parallels", "virtuozzo", "openstack", "rhev", "ovirt",
	"virtual machine", "bhyve", "google compute engine", "alibaba cloud ecs",
}

// VirtualAt is Virtual for the files below another root.
func VirtualAt(root string) (bool, string) {
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "" // not every machine has each of these files; what is not there says nothing
		}
		return strings.TrimSpace(string(data))
	}
	if kind := read("sys/hypervisor/type"); kind != "" {
		if kind != "xen" || !strings.Contains(read("proc/xen/capabilities"), "control_d") { // that one is the real machine's
			return true, "/sys/hypervisor/type says " + kind
		}
		return false, ""
	}
	for _, name := range []string{"sys/class/dmi/id/product_name", "sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/bios_vendor"} {
		word := read(name)
		for _, v := range vendors {
			if strings.Contains(strings.ToLower(word), v) {
				return true, "/" + name + " says " + word
			}
		}
	}
	for line := range strings.Lines(read("proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for _, flag := range strings.Fields(value) {
			if flag == "hypervisor" {
				return true, "the processor says that there is a hypervisor (/proc/cpuinfo)"
			}
		}
		return false, "" // all processors say the same
	}
	return false, ""
}
