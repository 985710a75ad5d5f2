package prltest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var tool string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "prltest")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if tool, err = Build(dir); err != nil {
		panic(err)
	}
	m.Run()
}

// rig is a server with a VM "a", registered as UUID u-a.
type rig struct {
	*testing.T
	*Server
	mount, a string
}

func newRig(t *testing.T) rig {
	r := rig{t, NewServer(t, tool), t.TempDir(), ""}
	r.a = r.put("a", "VM")
	r.want(0, "", "register", r.a, "--preserve-uuid")
	return r
}

func (r rig) put(name, kind string) string {
	r.Helper()
	home := filepath.Join(r.mount, name)
	if err := (Conf{UUID: "u-" + name, Name: name, Type: kind, HA: "yes", Autostart: "auto", Memory: 512, CPUs: 2}).Write(home); err != nil {
		r.Fatal(err)
	}
	return home
}

func (r rig) change(home string, f func(*Conf)) {
	r.Helper()
	c, err := ReadConf(home)
	if err == nil {
		f(&c)
		err = c.Write(home)
	}
	if err != nil {
		r.Fatal(err)
	}
}

func (r rig) conf(home string) Conf {
	r.Helper()
	c, err := ReadConf(home)
	if err != nil {
		r.Fatal(err)
	}
	return c
}

func (r rig) call(args ...string) (code int, stdout, stderr string) {
	r.Helper()
	cmd := exec.Command(r.Program(), args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		r.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// want runs the tool and wants a code, and a text on stdout, or on stderr if it failed.
func (r rig) want(code int, text string, args ...string) {
	r.Helper()
	c, out, errs := r.call(args...)
	in := out
	if code != 0 {
		in = errs
	}
	if c != code || !strings.Contains(in, text) {
		r.Errorf("prlctl %s: code %d, stdout %q, stderr %q; want %d and %q", strings.Join(args, " "), c, out, errs, code, text)
	}
}

// json runs a list and reads it.
func (r rig) json(args ...string) (all []map[string]any) {
	r.Helper()
	_, out, _ := r.call(append([]string{"list", "-j"}, args...)...)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		r.Fatalf("%v: %q", err, out)
	}
	return all
}

func (r rig) status(want string) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		all := r.json("-a", "-o", "name,status")
		if len(all) > 0 && all[0]["status"] == want {
			return
		}
		if time.Now().After(end) {
			r.Fatalf("%v, want %s", all, want)
		}
	}
}

// second is another server, which has registered the VE a by force.
func (r rig) second() rig {
	o := rig{r.T, NewServer(r.T, tool), r.mount, r.a}
	o.want(0, "", "register", r.a, "--preserve-uuid", "--force")
	return o
}

var registering = map[int]func(rig){
	11: func(r rig) {
		if id := r.conf(r.a).UUID; id != "u-a" {
			r.Errorf("UUID %s", id)
		}
	},
	12: func(r rig) {
		b := r.put("b", "VM")
		r.want(0, "", "register", b)
		if id := r.conf(b).UUID; id == "u-b" {
			r.Errorf("UUID %s", id)
		}
	},
	13: func(r rig) { r.want(255, "--uuid", "register", r.put("b", "VM"), "--preserve-uuid", "--uuid", "x") },
	14: func(r rig) {
		r.want(0, "The virtual environment has been successfully registered.", "register", r.put("b", "CT"))
	},
	15: func(r rig) {
		r.want(255, "Failed to register the virtual environment: ", "register", r.mount+"/none")
	},
	16: func(r rig) { r.want(0, "", "register", r.put("b", "VM"), "--ignore-ha-cluster") },
	17: func(r rig) {
		r.want(255, "No virtual machine configuration file could be found in the location", "register", r.mount+"/none")
	},
	18: func(r rig) { r.want(255, "is already registered.", "register", r.a, "--preserve-uuid") },
	19: func(r rig) {
		b := r.put("b", "VM")
		r.change(b, func(c *Conf) { c.UUID = "u-a" })
		r.want(255, "due to an ID conflict.", "register", b, "--preserve-uuid")
	},
	20: func(r rig) {
		b := r.put("b", "VM")
		r.change(b, func(c *Conf) { c.Name = "a" })
		r.want(255, "is already used by another virtual machine or template.", "register", b, "--preserve-uuid")
	},
	21: func(r rig) {
		o := rig{r.T, NewServer(r.T, tool), r.mount, r.a}
		o.want(255, "You can force the registration, but this will revoke all access", "register", r.a, "--preserve-uuid")
	},
	22: func(r rig) { r.second().want(0, "exist stopped", "status", "a") },
	23: func(r rig) {
		if o := r.second(); r.conf(r.a).Owner != o.UUID {
			r.Errorf("owner %s", r.conf(r.a).Owner)
		}
	},
	24: func(r rig) { r.second(); r.Kill(r.T); r.want(255, "could not be found", "status", "a") },
	25: func(r rig) { r.want(0, "The VM has been successfully unregistered.", "unregister", "a") },
	26: func(r rig) {
		o := r.second()
		r.want(0, "", "unregister", "a")
		if r.conf(r.a).Owner != o.UUID {
			r.Errorf("owner %s", r.conf(r.a).Owner)
		}
	},
	59: func(r rig) {
		r.want(0, "", "start", "a")
		r.want(255, "Failed to unregister the VM", "unregister", "a")
	},
}

var running = map[int]func(rig){
	1: func(r rig) { r.want(0, "Starting the VM...", "start", "a") },
	2: func(r rig) { r.want(255, "Failed", "start", "none") },
	3: func(r rig) {
		if _, _, errs := r.call("start", "a"); !strings.HasPrefix(errs, "WARNING: You are using a deprecated CLI component") {
			r.Errorf("stderr %q", errs)
		}
	},
	5: func(r rig) { r.want(0, "", "start", "a") },
	6: func(r rig) { r.Down(); r.want(253, "", "list"); r.Up(r.T) },
	7: func(r rig) { r.Fail("start", 254, "frozen"); r.want(254, "frozen", "start", "a") },
	8: func(r rig) {
		for _, verb := range []string{"start", "stop", "status", "set", "unregister", "register"} {
			r.want(255, "", verb, "none")
		}
	},
	9:  func(r rig) { r.want(0, "", "stop", "a"); r.want(0, "", "stop", "a", "--kill") },
	27: func(r rig) { r.want(0, "The VM has been successfully started.", "start", "a") },
	28: func(r rig) { r.want(0, "", "start", "a"); r.want(255, "is running.", "start", "a") },
	29: func(r rig) { r.second(); r.want(255, "Owner check failed on the server '"+r.UUID, "start", "a") },
	30: func(r rig) {
		r.want(0, "", "start", "a")
		r.want(0, "The VM has been successfully stopped.", "stop", "a")
	},
	31: func(r rig) {
		r.want(0, "", "start", "a")
		r.want(0, "has been forcibly stopped", "stop", "a", "--kill")
	},
	32: func(r rig) { r.want(0, "", "start", "a"); r.want(0, "VM u-a exist running", "status", "u-a") },
	33: func(r rig) {
		r.want(255, "Failed to get VM config: The virtual machine could not be found.", "status", "none")
	},
	34: func(r rig) {
		r.want(0, "", "status", "a")
		r.want(0, "", "status", "u-a")
		r.want(0, "", "status", "{u-a}")
	},
	35: func(r rig) {
		r.want(0, "", "set", "a", "--ha-enable", "no", "--ha-prio", "7")
		if c := r.conf(r.a); c.HA != "no" || c.Prio != 7 {
			r.Errorf("%+v", c)
		}
	},
	36: func(r rig) { r.want(0, "\nThe VM has been successfully configured.", "set", "a", "--ha-prio", "1") },
	37: func(r rig) { r.want(255, "Failed to configure the virtual machine.", "set", "a", "--ha-prio", "-1") },
	55: func(r rig) {
		r.want(0, "", "set", "a", "--autostart", "off")
		if c := r.conf(r.a); c.Autostart != "off" {
			r.Errorf("%+v", c)
		}
	},
	56: func(r rig) {
		resume := r.Hang()
		cmd := exec.Command(r.Program(), "start", "a")
		if err := cmd.Start(); err != nil {
			r.Fatal(err)
		}
		connected := func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.conns) > 0 }
		for end := time.Now().Add(20 * time.Second); !connected() && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		time.Sleep(50 * time.Millisecond) // it sends its request; were it killed before that, there were nothing to prove
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		resume()
		r.status("running")
	},
	57: func(r rig) {
		r.change(r.a, func(c *Conf) { c.Stubborn = true })
		r.want(0, "", "start", "a")
		cmd := exec.Command(r.Program(), "stop", "a")
		if err := cmd.Start(); err != nil {
			r.Fatal(err)
		}
		r.status("running")
		r.want(0, "", "stop", "a", "--kill")
		if err := cmd.Wait(); err != nil {
			r.Error(err)
		}
	},
	58: func(r rig) { r.want(0, "", "start", "a"); r.Kill(r.T); r.status("running") },
	60: func(r rig) { r.Put(r.a, "starting"); r.want(255, "is locked", "start", "a") },
	61: func(r rig) { r.Put(r.a, "mounted"); r.want(0, "", "umount", "a"); r.status("stopped") },
	62: func(r rig) {
		r.change(r.a, func(c *Conf) { c.Suspended = true })
		r.status("suspended")
		r.want(0, "", "start", "a")
		r.status("running")
	},
}

var listing = map[int]func(rig){
	4: func(r rig) {
		if _, _, errs := r.call("list", "-a"); errs != "" {
			r.Errorf("stderr %q", errs)
		}
	},
	10: func(r rig) { r.want(1, "Unknown field: X", "list", "-o", "X") },
	38: func(r rig) {
		if all := r.json("-o", "name"); len(all) != 0 {
			r.Errorf("%v", all)
		}
	},
	39: func(r rig) {
		if all := r.json("-a", "-o", "name"); len(all) != 1 {
			r.Errorf("%v", all)
		}
	},
	40: func(r rig) {
		if all := r.json("-a", "-o", "name,home"); len(all[0]) != 2 || all[0]["name"] != "a" || all[0]["home"] != r.a {
			r.Errorf("%v", all)
		}
	},
	41: func(r rig) {
		if all := r.json("-a", "-o", "ha_prio"); all[0]["ha_prio"] != "0" {
			r.Errorf("%v", all)
		}
	},
	42: func(r rig) {
		if all := r.json("-a", "-o", "uuid"); all[0]["uuid"] != "u-a" {
			r.Errorf("%v", all)
		}
	},
	43: func(r rig) {
		if all := r.json("-a", "-o", "id"); all[0]["id"] != "{u-a}" {
			r.Errorf("%v", all)
		}
	},
	44: func(r rig) { r.want(0, "[\n\n]\n", "list", "-j") },
	45: func(r rig) {
		if all := r.json("-a", "-o", "description"); all[0]["description"] != "-" {
			r.Errorf("%v", all)
		}
	},
	46: func(r rig) {
		if all := r.json("-a", "--vmtype", "ct", "-o", "name"); len(all) != 0 {
			r.Errorf("%v", all)
		}
	},
	47: func(r rig) {
		r.want(0, "", "register", r.put("b", "CT"), "--preserve-uuid")
		if all := r.json("-a", "-o", "type"); all[0]["type"] != "VM" || all[1]["type"] != "CT" {
			r.Errorf("%v", all)
		}
	},
	48: func(r rig) {
		for _, s := range States {
			r.Put(r.a, s)
			r.status(s)
		}
	},
	49: func(r rig) {
		all := r.json("-a", "-i")
		for key, want := range map[string]any{"ID": "u-a", "Name": "a", "Type": "VM", "State": "stopped", "Description": ""} {
			if all[0][key] != want {
				r.Errorf("%s: %v, want %v", key, all[0][key], want)
			}
		}
	},
	50: func(r rig) {
		ha, _ := r.json("-a", "-i", "-f")[0]["High Availability"].(map[string]any)
		if ha["enabled"] != "yes" || ha["prio"] != 0.0 {
			r.Errorf("%v", ha)
		}
	},
	51: func(r rig) { r.second(); r.status("invalid") },
	52: func(r rig) {
		if all := r.json("-a", "-o", "ha_enable"); all[0]["ha_enable"] != "yes" {
			r.Errorf("%v", all)
		}
	},
	53: func(r rig) {
		all := r.json("-a", "-i")
		hw, _ := all[0]["Hardware"].(map[string]any)
		if all[0]["Autostart"] != "auto" || fmt.Sprint(hw["cpu"], hw["memory"]) != "map[cpus:2] map[size:512Mb]" {
			r.Errorf("%v", all)
		}
	},
	54: func(r rig) {
		hw, _ := r.json("-a", "-i")[0]["Hardware"].(map[string]any)
		if disk, _ := hw["hdd0"].(map[string]any); disk["image"] != r.a+"/harddisk.hdd" {
			r.Errorf("%v", hw)
		}
	},
}

func TestFacts(t *testing.T) {
	if len(Facts) != len(registering)+len(running)+len(listing) {
		t.Errorf("%d facts, %d checks", len(Facts), len(registering)+len(running)+len(listing))
	}
	for i, f := range Facts {
		t.Run(fmt.Sprintf("%d %s", f.N, f.What), func(t *testing.T) {
			if f.N != i+1 || f.Where == "" || f.Shape == "" {
				t.Fatalf("fact %d has number %d, place %q, shape %q", i+1, f.N, f.Where, f.Shape)
			}
			for _, checks := range []map[int]func(rig){registering, running, listing} {
				if check := checks[f.N]; check != nil {
					check(newRig(t))
					return
				}
			}
			t.Fatal("nothing checks it")
		})
	}
}
