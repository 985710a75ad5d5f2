package prltest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest/wire"
)

const deprecated = "WARNING: You are using a deprecated CLI component that will be dropped in the next major release. Please use virsh instead\n"

const notFound = "Failed to get VM config: The virtual machine could not be found. The virtual machine is not registered in the virtual machine directory on this server."

// codeFailed is the exit code of practically every failure.
const codeFailed = 255

func done(a wire.Answer) func() (wire.Answer, bool) {
	return func() (wire.Answer, bool) { return a, true }
}

func ok(lines ...string) wire.Answer {
	return wire.Answer{Stdout: strings.Join(lines, "\n") + "\n", Stderr: deprecated}
}

func bad(format string, args ...any) wire.Answer {
	return wire.Answer{Stderr: deprecated + fmt.Sprintf(format, args...) + "\n", Code: codeFailed}
}

// begin does what is done at once, and returns what ends the verb. Not ok: the
// dispatcher was killed meanwhile.
func (s *Server) begin(q wire.Request, run int) func() (wire.Answer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, q)
	if len(q.Args) == 0 {
		return done(bad("Usage: prlctl ACTION"))
	}
	verb, args := q.Args[0], q.Args[1:]
	if verb == "list" {
		return done(s.list(args))
	}
	if f, faulty := s.faults[verb]; faulty {
		return done(f)
	}
	if s.late > 0 { // begun later, while other requests are answered
		late := s.late
		return func() (wire.Answer, bool) {
			time.Sleep(late) // how slow the dispatcher is; nothing waits for it to be over
			s.mu.Lock()
			if s.run != run {
				s.mu.Unlock()
				return wire.Answer{}, false
			}
			finish := s.verb(verb, args, run)
			s.mu.Unlock()
			return finish()
		}
	}
	return s.verb(verb, args, run)
}

// verb is called with mu held; what it returns is not.
func (s *Server) verb(verb string, args []string, run int) func() (wire.Answer, bool) {
	if len(args) == 0 {
		return done(bad("The name of the virtual environment is not specified"))
	}
	if verb == "register" {
		return done(s.register(args))
	}
	id, home := s.known(args[0])
	if id == "" {
		return done(bad(notFound))
	}
	c, err := ReadConf(home)
	if err != nil {
		return done(bad("Failed to get VM config: %v", err))
	}
	switch verb {
	case "status":
		return done(ok(fmt.Sprintf("%s %s exist %s", c.Type, args[0], s.status(id, home))))
	case "unregister":
		return done(s.unregister(c, home))
	case "start":
		return s.start(c, home, run)
	case "stop":
		return s.stop(c, slices.Contains(args, "--kill"), run)
	case "umount":
		delete(s.states, id)
		return done(ok("The " + c.Type + " has been successfully unmounted."))
	case "set":
		return done(s.configure(c, home, args[1:]))
	}
	return done(bad("Unrecognized action: %s", verb))
}

// known finds a registered VE by its UUID, with braces or not, or its name.
func (s *Server) known(name string) (id, home string) {
	for id, home := range s.ves {
		if c, err := ReadConf(home); id == strings.Trim(name, "{}") || (err == nil && c.Name == name) {
			return id, home
		}
	}
	return "", ""
}

func (s *Server) status(id, home string) string {
	if st := s.states[id]; st != "" {
		return st
	}
	if s.runs(id) {
		return "running"
	}
	c, err := ReadConf(home)
	switch {
	case err != nil, c.Owner != s.UUID:
		return "invalid"
	case c.Suspended:
		return "suspended"
	}
	return "stopped"
}

func (s *Server) register(args []string) wire.Answer {
	home := filepath.Clean(args[0])
	preserve, force := slices.Contains(args, "--preserve-uuid"), slices.Contains(args, "--force")
	fail := func(format string, a ...any) wire.Answer {
		r := bad("Failed to register the virtual environment: "+format, a...)
		r.Stdout = "Register the virtual environment...\n"
		return r
	}
	if preserve && slices.Contains(args, "--uuid") {
		return fail("--preserve-uuid and --uuid cannot be used together")
	}
	c, err := ReadConf(home)
	if err != nil {
		return fail("Unable to get the virtual machine configuration. No virtual machine configuration file could be found in the location %q.", home)
	}
	for id, other := range s.ves {
		switch oc, err := ReadConf(other); {
		case other == home:
			return fail("The virtual machine %q is already registered.", c.Name)
		case id == c.UUID && preserve:
			return fail("Cannot register this virtual machine due to an ID conflict.")
		case err == nil && oc.Name == c.Name:
			return fail("The name %s is already used by another virtual machine or template.", c.Name)
		}
	}
	if c.Owner != "" && c.Owner != s.UUID && !force {
		return fail("Failed to register the virtual machine %q on the shared storage. You can force the registration, but this will revoke all access to the Virtual Machine from the original server and the High Availability cluster it belongs to.", c.Name)
	}
	if !preserve {
		c.UUID = fmt.Sprintf("new-%d", time.Now().UnixNano())
	}
	c.Owner = s.UUID
	if err := c.Write(home); err != nil {
		return fail("%v", err)
	}
	s.ves[c.UUID] = home
	delete(s.states, c.UUID)
	s.save()
	return ok("Register the virtual environment...", "The virtual environment has been successfully registered.")
}

func (s *Server) unregister(c Conf, home string) wire.Answer {
	if st := s.status(c.UUID, home); st != "stopped" && st != "suspended" && st != "invalid" {
		return bad("Failed to unregister the %s: The virtual machine %q is %s.", c.Type, c.Name, st)
	}
	if c.Owner == s.UUID {
		c.Owner = ""
		if err := c.Write(home); err != nil {
			return bad("Failed to unregister the %s: %v", c.Type, err)
		}
	}
	delete(s.ves, c.UUID)
	delete(s.states, c.UUID)
	s.save()
	return ok("Unregister the "+c.Type+"...", "The "+c.Type+" has been successfully unregistered.")
}

func (s *Server) start(c Conf, home string, run int) func() (wire.Answer, bool) {
	fail := func(format string, a ...any) func() (wire.Answer, bool) {
		r := bad("Failed to start the "+c.Type+": "+format, a...)
		r.Stdout = "Starting the " + c.Type + "...\n"
		return done(r)
	}
	switch st := s.status(c.UUID, home); {
	case st == "running":
		return fail("The virtual machine %q is running.", c.Name)
	case c.Owner != s.UUID:
		return fail("Owner check failed on the server '%s': Container (%s) is registered for '%s'", s.UUID, home, c.Owner)
	case st != "stopped" && st != "suspended":
		return fail("The virtual machine %q is locked by another operation.", c.Name)
	}
	s.states[c.UUID] = "starting"
	delay := s.delay
	return func() (wire.Answer, bool) {
		time.Sleep(delay) // how long the guest takes; nothing waits for it to be over
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.run != run {
			return wire.Answer{}, false
		}
		delete(s.states, c.UUID)
		if c, err := ReadConf(home); err == nil {
			c.Starts, c.Suspended = c.Starts+1, false
			err = c.Write(home)
			if err == nil {
				err = os.WriteFile(s.guest(c.UUID), nil, 0o644)
			}
			if err != nil {
				return bad("Failed to start the %s: %v", c.Type, err), true
			}
		}
		s.cond.Broadcast()
		return ok("Starting the "+c.Type+"...", "The "+c.Type+" has been successfully started."), true
	}
}

func (s *Server) stop(c Conf, kill bool, run int) func() (wire.Answer, bool) {
	stopped := ok("Stopping the "+c.Type+"...", "The "+c.Type+" has been successfully stopped.")
	if kill {
		stopped = ok("Stopping the "+c.Type+"...", "The "+c.Type+" has been forcibly stopped")
	}
	if !s.runs(c.UUID) {
		if s.states[c.UUID] == "paused" {
			delete(s.states, c.UUID)
		}
		return done(stopped)
	}
	if kill || !c.Stubborn {
		s.states[c.UUID] = "stopping"
	}
	return func() (wire.Answer, bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if kill || !c.Stubborn {
			delete(s.states, c.UUID)
			os.Remove(s.guest(c.UUID))
			s.cond.Broadcast()
		}
		for s.runs(c.UUID) && s.run == run {
			s.cond.Wait()
		}
		return stopped, s.run == run
	}
}

func (s *Server) configure(c Conf, home string, args []string) wire.Answer {
	for i := 0; i+1 < len(args); i += 2 {
		v, valid := args[i+1], false
		switch args[i] {
		case "--ha-enable":
			c.HA, valid = v, v == "yes" || v == "no"
		case "--ha-prio":
			n, err := strconv.ParseUint(v, 10, 32)
			c.Prio, valid = n, err == nil
		case "--autostart":
			c.Autostart, valid = v, v == "on" || v == "off" || v == "auto"
		}
		if !valid {
			return bad("An incorrect value for %s is specified: %s\nFailed to configure the virtual machine.", args[i], v)
		}
	}
	if err := c.Write(home); err != nil {
		return bad("%v\nFailed to configure the virtual machine.", err)
	}
	return ok("", "The "+c.Type+" has been successfully configured.")
}

// list is the one verb without the warning on stderr.
func (s *Server) list(args []string) wire.Answer {
	if f, faulty := s.faults["list"]; faulty {
		return f
	}
	if s.raw != nil {
		return *s.raw
	}
	all, info, full, js := false, false, false, false
	fields := []string{"uuid", "status", "ip_configured", "type", "name"}
	kind := "all"
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "-a", "--all":
			all = true
		case "-i", "--info":
			info = true
		case "-f", "--full":
			full = true
		case "-j", "--json":
			js = true
		case "-o":
			i++
			fields = strings.Split(args[i], ",")
		case "--vmtype":
			i++
			kind = args[i]
		}
	}
	if _, unknown := s.field("", "", Conf{}, fields); unknown != "" {
		return wire.Answer{Stderr: "Unknown field: " + unknown + "\n", Code: 1}
	}
	var rows []string
	for _, id := range slices.Sorted(maps.Keys(s.ves)) {
		home := s.ves[id]
		c, err := ReadConf(home)
		if err != nil {
			c = Conf{UUID: id, Name: filepath.Base(home), Type: "VM", HA: "yes"}
		}
		if kind != "all" && !strings.EqualFold(kind, c.Type) || !all && !info && s.status(id, home) != "running" {
			continue
		}
		switch row, _ := s.field(id, home, c, fields); {
		case info:
			rows = append(rows, s.info(id, home, c, full))
		case js:
			rows = append(rows, jsonRow(fields, row))
		default:
			rows = append(rows, strings.Join(row, " "))
		}
	}
	if !js {
		return wire.Answer{Stdout: s.noise + strings.Join(append([]string{strings.ToUpper(strings.Join(fields, " "))}, rows...), "\n") + "\n"}
	}
	return wire.Answer{Stdout: s.noise + "[\n" + strings.Join(rows, ",\n") + "\n]\n"}
}

func jsonRow(fields, row []string) string {
	var lines []string
	for i, f := range fields {
		v := row[i]
		if f == "uuid" {
			v = strings.Trim(v, "{}")
		}
		lines = append(lines, fmt.Sprintf("\t\t%q: %q", f, v))
	}
	return "\t{\n" + strings.Join(lines, ",\n") + "\n\t}"
}

// field returns the values of fields, or the one that is unknown.
func (s *Server) field(id, home string, c Conf, fields []string) (row []string, unknown string) {
	for _, f := range fields {
		var v string
		switch f {
		case "uuid", "id", "ctid", "veid":
			v = "{" + id + "}"
		case "home", "private":
			v = home
		case "type":
			v = c.Type
		case "name":
			v = c.Name
		case "status":
			if id != "" {
				v = s.status(id, home)
			}
		case "ha_enable":
			v = c.HA
		case "ha_prio":
			v = strconv.FormatUint(c.Prio, 10)
		case "description", "ip", "ip_configured", "hostname", "dist":
		default:
			return nil, f
		}
		if v == "" {
			v = "-"
		}
		row = append(row, v)
	}
	return row, ""
}

func (s *Server) info(id, home string, c Conf, full bool) string {
	disk := c.Disk
	if disk == "" {
		disk = filepath.Join(home, "harddisk.hdd")
	}
	ha := ""
	if full {
		ha = fmt.Sprintf(",\n\t\t\"High Availability\": {\n\t\t\t\"enabled\": %q,\n\t\t\t\"prio\": %d\n\t\t}", c.HA, c.Prio)
	}
	return fmt.Sprintf("\t{\n\t\t\"ID\": %q,\n\t\t\"EnvID\": %q,\n\t\t\"Name\": %q,\n\t\t\"Description\": \"\",\n\t\t\"Type\": %q,\n\t\t\"State\": %q,\n\t\t\"Template\": \"no\",\n\t\t\"Home\": %q,\n\t\t\"Autostart\": %q,\n"+
		"\t\t\"Hardware\": {\n\t\t\t\"cpu\": {\n\t\t\t\t\"cpus\": %d\n\t\t\t},\n\t\t\t\"memory\": {\n\t\t\t\t\"size\": \"%dMb\"\n\t\t\t},\n\t\t\t\"hdd0\": {\n\t\t\t\t\"enabled\": true,\n\t\t\t\t\"image\": %q\n\t\t\t}\n\t\t}%s\n\t}",
		id, id, c.Name, c.Type, s.status(id, home), home+"/", c.Autostart, c.CPUs, c.Memory, disk, ha)
}
