package prltest

// Fact is one thing that is known of the original, and that the stand-in does.
type Fact struct {
	N     int
	What  string
	Where string // section of the public reference; "assumption" = no public source says it
	Shape string // as it stands there, or what is assumed
}

// Assumption marks what no public source says.
const Assumption = "assumption"

// Facts are checked against the stand-in one by one.
var Facts = []Fact{
	{1, "normal messages go to stdout", "shaman.md 8.2", "normal messages → stdout, errors → stderr"},
	{2, "errors go to stderr", "shaman.md 8.2", "normal messages → stdout, errors → stderr"},
	{3, "actions warn on stderr", "shaman.md 8.2", "WARNING: You are using a deprecated CLI component"},
	{4, "list does not warn", "shaman.md 8.2", "All actions but list and exec print on stderr"},
	{5, "success is 0", "shaman.md 8.2", "Exit codes: 0 ok"},
	{6, "no dispatcher is 253", "shaman.md 8.2", "253 can't connect to the dispatcher"},
	{7, "a frozen VM is 254", "shaman.md 8.2", "254 VM in frozen state"},
	{8, "every other failure is 255", "shaman.md 8.2", "practically every failure exits 255"},
	{9, "stop of a stopped VE succeeds", "shaman.md 8.2", "stop of a stopped VE exits 0"},
	{10, "an unknown list field is 1", "shaman.md 8.2", "Unknown field: X, exit 1"},
	{11, "register keeps the UUID by a flag", "shaman.md 8.2", "register <path> [--preserve-uuid | --uuid <UUID>]"},
	{12, "register gives a new UUID by default", "shaman.md 8.2", "Default: UUID regenerated"},
	{13, "register refuses both UUID flags", "shaman.md 8.2", "--preserve-uuid with --uuid is refused"},
	{14, "register says so", "shaman.md 8.2", "The virtual environment has been successfully registered."},
	{15, "a failed register says so", "shaman.md 8.2", "Failed to register the virtual environment: <err>"},
	{16, "register takes --ignore-ha-cluster", "shaman.md 8.2", "[--ignore-ha-cluster] (last one hidden)"},
	{17, "a directory without a configuration is refused", "shaman.md 8.2", "No virtual machine configuration file could be found in the location"},
	{18, "a registered VE is not registered again", "shaman.md 8.2", "is already registered."},
	{19, "a UUID is not registered twice", "shaman.md 8.2", "due to an ID conflict."},
	{20, "a name is not registered twice", "shaman.md 8.2", "is already used by another virtual machine or template."},
	{21, "a VE of another server needs --force", "shaman.md 8.2", "You can force the registration, but this will revoke all access"},
	{22, "with --force it is registered", "shaman.md 3", "Forced registration of a VE on shared storage revokes the old owner's access"},
	{23, "registering writes the new owner", "shaman.md 3.2", "config.pvs holds ServerUuid; registering elsewhere rewrites it"},
	{24, "a dispatcher that comes back drops VEs of others", "shaman.md 3.2", "auto-unregisters the VM locally if they differ"},
	{25, "unregister says so", "shaman.md 8.2", "has been successfully unregistered."},
	{26, "unregister by a non-owner touches nothing shared", "shaman.md 3.2", "unregister on a non-owner just removes the local config link"},
	{27, "start says so", "shaman.md 8.2", "has been successfully started."},
	{28, "start of a running VE is refused", "shaman.md 8.2", "PRL_ERR_VM_ALREADY_RUNNING … is running."},
	{29, "start of another server's VE is refused", "shaman.md 8.3", "Owner check failed on the server '<me>'"},
	{30, "stop says so", "shaman.md 8.2", "has been successfully stopped."},
	{31, "stop --kill says so", "shaman.md 8.2", "has been forcibly stopped"},
	{32, "status of a VE", "shaman.md 8.2", "VM <id as given> exist running"},
	{33, "an unknown VE", "shaman.md 8.2", "Failed to get VM config: The virtual machine could not be found."},
	{34, "a VE is named by UUID or name", "shaman.md 8.2", "start <id|name>"},
	{35, "set of HA", "shaman.md 8.2", "--ha-enable <yes|no>, --ha-prio <n>"},
	{36, "set says so", "shaman.md 8.2", "has been successfully configured."},
	{37, "a failed set says so", "shaman.md 8.2", "Failed to configure the virtual machine."},
	{38, "list shows running VEs only", "shaman.md 8.2", "Without -a: only running"},
	{39, "list -a shows all", "shaman.md 8.2", "[-a,--all]"},
	{40, "list -o -j: an object a VE, keys as asked for", "shaman.md 8.2", "array of objects; keys are the field names asked for"},
	{41, "list -o -j: all values are strings", "shaman.md 8.2", "all values strings (also ha_prio)"},
	{42, "list -o uuid has no braces", "shaman.md 8.2", "braces stripped only for key uuid"},
	{43, "list -o id has braces", "shaman.md 8.2", "with -o id they stay"},
	{44, "an empty list", "shaman.md 8.2", "empty list = [, empty line, ]"},
	{45, "an empty text is a dash", "shaman.md 8.2", "Empty text → -"},
	{46, "list --vmtype", "shaman.md 8.2", "[--vmtype ct|vm|all]"},
	{47, "types are VM and CT", "shaman.md 8.2", "type(T,2: VM/CT)"},
	{48, "all states are words of the list", "shaman.md 8.2", "status values: stopped, starting, restoring …"},
	{49, "list -i -j has other keys", "shaman.md 8.2", "keys ID (no braces), EnvID, Name, Description, Type, State"},
	{50, "list -i -f -j: the priority is a number", "shaman.md 8.2", "\"High Availability\": {\"enabled\": \"yes\", \"prio\": 0}"},
	{51, "a VE of another server is invalid", "shaman.md 8.2", "invalid (= unknown state: the \"invalid\" duplicates of 8.9)"},
	{52, "HA is on by default", "shaman.md 2.5", "Default: HA on for every VE on an HA node"},
	{53, "list -i -j tells autostart, CPUs and memory", Assumption, "Autostart; Hardware: cpu: cpus; memory: size \"512Mb\""},
	{54, "list -i -j tells a disk's image", Assumption, "Hardware: hdd0: image"},
	{55, "autostart is switched by set", Assumption, "--autostart <on|off|auto>"},
	{56, "a killed tool does not end the dispatcher's work", Assumption, "the start comes through"},
	{57, "a VE that is asked to shut down is running until it does", Assumption, "status running"},
	{58, "a killed dispatcher leaves guests alone", Assumption, "status running"},
	{59, "a running VE is not unregistered", Assumption, "Failed to unregister the VM"},
	{60, "a VE that is being started is locked", Assumption, "is locked"},
	{61, "a mounted container is closed by umount", Assumption, "umount <id>"},
	{62, "a suspended VE is started by start", Assumption, "start <id>"},
}
