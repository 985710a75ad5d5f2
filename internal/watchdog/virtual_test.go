package watchdog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVirtual(t *testing.T) {
	const metal = "processor\t: 0\nflags\t\t: fpu vme de\n\nprocessor\t: 1\nflags\t\t: fpu vme de\n"
	tests := []struct {
		name  string
		files map[string]string
		want  bool
		why   string
	}{
		{"a real machine", map[string]string{"proc/cpuinfo": metal, "sys/class/dmi/id/sys_vendor": "Dell Inc.\n", "sys/class/dmi/id/product_name": "PowerEdge R650\n"}, false, ""},
		{"nothing can be read", nil, false, ""},
		{"the processor says it", map[string]string{"proc/cpuinfo": "flags\t\t: fpu hypervisor lahf_lm\n"}, true, "/proc/cpuinfo"},
		{"a flag whose name only contains the word", map[string]string{"proc/cpuinfo": "flags\t\t: fpu nohypervisor\nmodel name\t: hypervisor\n"}, false, ""},
		{"a guest of KVM", map[string]string{"proc/cpuinfo": metal, "sys/class/dmi/id/product_name": "KVM\n"}, true, "product_name says KVM"},
		{"a guest of Hyper-V", map[string]string{"sys/class/dmi/id/sys_vendor": "Microsoft Corporation\n", "sys/class/dmi/id/product_name": "Virtual Machine\n"}, true, "Virtual Machine"},
		{"a laptop of the maker of Hyper-V", map[string]string{"sys/class/dmi/id/sys_vendor": "Microsoft Corporation\n", "sys/class/dmi/id/product_name": "Surface Pro\n", "proc/cpuinfo": metal}, false, ""},
		{"a guest of Xen", map[string]string{"sys/hypervisor/type": "xen\n", "proc/xen/capabilities": "\n"}, true, "/sys/hypervisor/type says xen"},
		{"the machine that Xen's guests run on", map[string]string{"sys/hypervisor/type": "xen\n", "proc/xen/capabilities": "control_d\n", "proc/cpuinfo": "flags : hypervisor\n"}, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, data := range tt.files {
				file := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got, why := VirtualAt(root); got != tt.want || !strings.Contains(why, tt.why) || got != (why != "") {
				t.Errorf("%t, %q; want %t, %q", got, why, tt.want, tt.why)
			}
		})
	}
}
