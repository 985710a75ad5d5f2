package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Local is the configuration of one node.
type Local struct {
	ClusterName, ClusterMount      string
	HostID                         string
	NodeName, NodeAddress          string
	EtcdEndpoints                  []string
	EtcdCACert, EtcdCert, EtcdKey  string
	EtcdUsername, EtcdPasswordFile string
	Hypervisors                    []string
	LibvirtURI, LibvirtLXCURI      string
	FenceDir                       string
	WatchdogDevice, ResetCommand   string
	ListenAddress, WebConfigFile   string
	StateDir, RunDir               string
	BootIDFile, HardwareID         string
	NodeMemory                     cluster.Bytes
	CPUPool                        string
	MaxVMs, MaxCTs, MaxVEs         int
	RescanInterval                 time.Duration
	LogLevel                       int
	LogFormat                      string

	from map[string]string // key → where its value came from
	text map[string]string
}

var (
	clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	nodeName    = regexp.MustCompile(`^[^\s/,]{1,255}$`)
)

// drivers are the words in HYPERVISORS.
var drivers = []string{"process", "libvirt", "libvirt-lxc", "lxc", "prlctl", "scripts"}

// libvirtURI accepts the daemon of this host only: VEs of another are that one's.
func libvirtURI(v string) (string, error) {
	u, err := url.Parse(v)
	if err != nil || u.Scheme == "" || u.Host != "" {
		return "", fmt.Errorf("%q is not allowed; want the URI of this host's own daemon, such as qemu:///system or lxc:///, with ?socket=PATH for another socket", v)
	}
	return v, nil
}

// LoadLocal reads a node's file; SHAMAN_<KEY> of the environment (as "K=V")
// overrides a key. All errors of the file are reported together, as a UsageError.
func LoadLocal(path string, environ []string) (Local, []Warning, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Local{}, nil, &UsageError{fmt.Errorf("read the configuration: %w; copy the example and edit it, or name another file with --config", err)}
	}
	return parseLocal(path, data, environ)
}

func parseLocal(path string, data []byte, environ []string) (Local, []Warning, error) {
	l := Local{from: map[string]string{}, text: map[string]string{}}
	var errs []error
	var warns []Warning
	for _, k := range localKeys {
		l.text[k.Name], l.from[k.Name] = k.Default, "default"
	}
	seen := map[string]int{}
	for i, text := range strings.Split(string(data), "\n") {
		text = strings.TrimSuffix(text, "\r")
		if strings.TrimSpace(text) == "" || strings.HasPrefix(strings.TrimSpace(text), "#") {
			continue
		}
		where := fmt.Sprintf("%s:%d", path, i+1)
		key, value, ok := strings.Cut(text, "=")
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s: %.80q is not KEY=VALUE", where, text))
			continue
		case strings.TrimSpace(key) != key || strings.TrimSpace(value) != value:
			errs = append(errs, fmt.Errorf("%s: %s: blanks around '=' or at the ends are not allowed", where, strings.TrimSpace(key)))
			continue
		}
		if !known(localKeys, key) {
			msg := unknown(localKeys, key)
			if known(clusterKeys, key) {
				msg = key + " is a cluster-wide parameter; set it with 'shaman set-config'"
			}
			errs = append(errs, fmt.Errorf("%s: %s", where, msg))
			continue
		}
		if first, dup := seen[key]; dup {
			errs = append(errs, fmt.Errorf("%s: %s is set a second time, first in line %d", where, key, first))
			continue
		}
		seen[key] = i + 1
		l.text[key], l.from[key] = value, where
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		key, ours := strings.CutPrefix(name, "SHAMAN_")
		if !ours {
			continue
		}
		if known(localKeys, key) {
			l.text[key], l.from[key] = value, "environment variable "+name
		} else if !slices.ContainsFunc([]string{"VE_", "LAB_", "RUN", "COMMAND", "FAILPOINT"}, func(p string) bool { return strings.HasPrefix(key, p) }) {
			warns = append(warns, Warning("environment variable "+name+" is not used: "+unknown(localKeys, key)))
		}
	}
	for _, k := range localKeys {
		if err := l.set(k.Name, l.text[k.Name]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", l.from[k.Name], k.Name, err))
		}
	}
	errs = append(errs, l.check(path)...)
	if err := errors.Join(errs...); err != nil {
		return l, warns, &UsageError{err}
	}
	return l, warns, nil
}

func (l *Local) set(key, v string) (err error) {
	switch key {
	case "CLUSTER_NAME":
		if l.ClusterName = v; v != "" && !clusterName.MatchString(v) {
			err = fmt.Errorf("%q is not allowed; want letters, digits, '.', '_' and '-', at most 63", v)
		}
	case "CLUSTER_MOUNT":
		if v != "" { // check says that it is missing
			l.ClusterMount, err = absolute(v)
		}
	case "HOST_ID":
		if l.HostID = v; v != "" {
			_, err = cluster.ParseNodeID(v)
		}
	case "NODE_NAME":
		if l.NodeName = v; v == "" {
			l.NodeName, err = os.Hostname()
		} else if !nodeName.MatchString(v) {
			err = fmt.Errorf("%q is not allowed; want a name without blanks, commas or slashes", v)
		}
	case "NODE_ADDRESS":
		l.NodeAddress = v
	case "ETCD_ENDPOINTS":
		l.EtcdEndpoints, err = endpoints(v)
	case "ETCD_CACERT":
		l.EtcdCACert = v
	case "ETCD_CERT":
		l.EtcdCert = v
	case "ETCD_KEY":
		l.EtcdKey = v
	case "ETCD_USERNAME":
		l.EtcdUsername = v
	case "ETCD_PASSWORD_FILE":
		l.EtcdPasswordFile = v
	case "HYPERVISORS":
		l.Hypervisors = strings.Split(v, ",")
		for _, h := range l.Hypervisors {
			if !slices.Contains(drivers, h) {
				err = fmt.Errorf("%q is no driver of this version; there are: %s", h, strings.Join(drivers, ", "))
			}
		}
	case "LIBVIRT_URI":
		l.LibvirtURI, err = libvirtURI(v)
	case "LIBVIRT_LXC_URI":
		l.LibvirtLXCURI, err = libvirtURI(v)
	case "WATCHDOG_DEVICE":
		l.WatchdogDevice, err = absolute(v)
	case "RESET_COMMAND":
		l.ResetCommand = v
	case "FENCE_DIR":
		l.FenceDir, err = absolute(v)
	case "LISTEN_ADDRESS":
		l.ListenAddress = v
		if _, _, e := net.SplitHostPort(v); e != nil {
			err = fmt.Errorf("%q is not allowed; want host:port", v)
		}
	case "WEB_CONFIG_FILE":
		l.WebConfigFile = v
	case "STATE_DIR":
		l.StateDir, err = absolute(v)
	case "RUN_DIR":
		l.RunDir, err = absolute(v)
	case "BOOT_ID_FILE":
		l.BootIDFile, err = absolute(v)
	case "HARDWARE_ID":
		l.HardwareID = v
	case "NODE_MEMORY":
		l.NodeMemory, err = ParseSize(v)
	case "CPU_POOL":
		l.CPUPool = v
	case "MAX_VMS":
		l.MaxVMs, err = parseCount(v, 0, 1<<30)
	case "MAX_CTS":
		l.MaxCTs, err = parseCount(v, 0, 1<<30)
	case "MAX_VES":
		l.MaxVEs, err = parseCount(v, 0, 1<<30)
	case "RESCAN_INTERVAL":
		if l.RescanInterval, err = ParseDuration(v); err == nil && (l.RescanInterval < 100*time.Millisecond || l.RescanInterval > time.Minute) {
			err = fmt.Errorf("%q is out of range; want 100ms to 60s", v)
		}
	case "LOG_LEVEL":
		l.LogLevel, err = parseCount(v, 0, 4)
	case "LOG_FORMAT":
		if l.LogFormat = v; v != "json" && v != "console" {
			err = fmt.Errorf("%q is not allowed; want json or console", v)
		}
	}
	return err
}

func absolute(v string) (string, error) {
	if !filepath.IsAbs(v) {
		return v, fmt.Errorf("%q is not allowed; want an absolute path", v)
	}
	return filepath.Clean(v), nil
}

func endpoints(v string) ([]string, error) {
	if v == "" {
		return nil, nil
	}
	var out []string
	for _, e := range strings.Split(v, ",") {
		host := strings.TrimPrefix(strings.TrimPrefix(e, "https://"), "http://")
		if _, _, err := net.SplitHostPort(host); err != nil {
			return nil, fmt.Errorf("%q is not allowed; want host:port, or a URL of http or https with a port", e)
		}
		out = append(out, e)
	}
	return out, nil
}

// check looks at what more than one key has a say in.
func (l *Local) check(path string) (errs []error) {
	for _, k := range []string{"CLUSTER_NAME", "CLUSTER_MOUNT", "ETCD_ENDPOINTS"} {
		if l.text[k] == "" {
			errs = append(errs, fmt.Errorf("%s: %s is missing; it is required", path, k))
		}
	}
	for _, pair := range [][2]string{{"ETCD_CERT", "ETCD_KEY"}, {"ETCD_USERNAME", "ETCD_PASSWORD_FILE"}} {
		given := pair[0]
		if l.text[given] == "" {
			given = pair[1]
		}
		if (l.text[pair[0]] == "") != (l.text[pair[1]] == "") {
			errs = append(errs, fmt.Errorf("%s: %s and %s need each other", l.from[given], pair[0], pair[1]))
		}
	}
	if l.EtcdPasswordFile != "" {
		st, err := os.Stat(l.EtcdPasswordFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: ETCD_PASSWORD_FILE: %w; want a file of mode 0600", l.from["ETCD_PASSWORD_FILE"], err))
		} else if st.Mode().Perm()&0o077 != 0 {
			errs = append(errs, fmt.Errorf("%s: ETCD_PASSWORD_FILE: %s may be read by others (mode %04o); run 'chmod 600 %s'", l.from["ETCD_PASSWORD_FILE"], l.EtcdPasswordFile, st.Mode().Perm(), l.EtcdPasswordFile))
		}
	}
	if l.NodeAddress == "" {
		l.NodeAddress = l.NodeName
	}
	return errs
}

// Lines renders the values; verbose adds where each came from.
func (l Local) Lines(verbose bool) []string {
	var out []string
	for _, k := range localKeys {
		if l.text[k.Name] == "" && !verbose {
			continue
		}
		line := k.Name + "=" + l.text[k.Name]
		if verbose {
			line += "\t# " + l.from[k.Name]
		}
		out = append(out, line)
	}
	return out
}

// vendorHostID is where a node of the original's storage has its id.
const vendorHostID = "/etc/vstorage/host_id"

// ResolveHostID returns this node's id; it makes and keeps one if there is none.
func ResolveHostID(l Local) (cluster.NodeID, error) {
	if id, err := KnownHostID(l); id != "" || err != nil {
		return id, err
	}
	return makeHostID(l)
}

// KnownHostID is ResolveHostID for who only looks: "" if there is no id yet.
func KnownHostID(l Local) (cluster.NodeID, error) {
	if l.HostID != "" {
		return cluster.ParseNodeID(l.HostID)
	}
	for _, file := range []string{vendorHostID, filepath.Join(l.StateDir, "host_id")} {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the host id: %w", err)
		}
		id, err := cluster.ParseNodeID(strings.TrimSpace(string(data)))
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		return id, nil
	}
	return "", nil
}

func makeHostID(l Local) (cluster.NodeID, error) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	id := hex.EncodeToString(b[:])
	if err := os.MkdirAll(l.StateDir, 0o755); err != nil {
		return "", fmt.Errorf("keep the host id: %w", err)
	}
	tmp := filepath.Join(l.StateDir, "host_id."+id)
	if err := os.WriteFile(tmp, []byte(id+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("keep the host id: %w", err)
	}
	defer os.Remove(tmp)
	// A link does not replace: of two processes that make an id one wins.
	if err := os.Link(tmp, filepath.Join(l.StateDir, "host_id")); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("keep the host id: %w", err)
	}
	return ResolveHostID(l)
}

// BootID reads the id of this boot.
func BootID(l Local) (string, error) {
	data, err := os.ReadFile(l.BootIDFile)
	if err != nil {
		return "", fmt.Errorf("read the id of this boot: %w", err)
	}
	if id := strings.TrimSpace(string(data)); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("read the id of this boot: %s: %w", l.BootIDFile, errEmpty)
}

// Hardware returns the id of this machine; "" if it has none.
func Hardware(l Local) string {
	if l.HardwareID != "" {
		return l.HardwareID
	}
	data, err := os.ReadFile("/sys/class/dmi/id/product_uuid")
	if err != nil {
		return "" // not every machine has one; the method "rebooted" then proves nothing
	}
	return strings.ToLower(strings.TrimSpace(string(data)))
}
