package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"go.uber.org/zap"
)

// TestEveryMetricIsDocumented compares what a daemon registers, with labels,
// with the first column of the tables in docs/metrics.md.
func TestEveryMetricIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(shaman_[^`]*)` \\|").FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, row[1])
	}
	slices.Sort(documented)
	if diff := cmp.Diff(registered(t), documented); diff != "" {
		t.Errorf("docs/metrics.md does not have the metrics that a daemon serves, each once as `name{labels}` at the beginning of a table's row (-daemon +page):\n%s", diff)
	}
}

var described = regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]*)".*variableLabels: \{([^}]*)\}`)

// registered are the metrics of a daemon that is a member of a cluster, as
// "name" or "name{labels}". Nothing of it runs.
func registered(t *testing.T) []string {
	dir := t.TempDir()
	file := filepath.Join(dir, "shaman.conf")
	text := "CLUSTER_NAME=c\nCLUSTER_MOUNT=/mnt\nHOST_ID=00000000000000a1\nETCD_ENDPOINTS=127.0.0.1:1\nSTATE_DIR=" + dir + "\nRUN_DIR=" + dir + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	local, _, err := config.LoadLocal(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Options{Local: local, Logger: zap.NewNop(), Drivers: []hypervisor.Driver{drivertest.NewFake()}})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{Daemon: d}
	if err := m.build(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range []*prometheus.Registry{d.registry, m.reg} {
		ch := make(chan *prometheus.Desc)
		go func() {
			r.Describe(ch)
			close(ch)
		}()
		for desc := range ch {
			w := described.FindStringSubmatch(desc.String())
			switch {
			case w == nil:
				t.Errorf("cannot read %s", desc)
			case !strings.HasPrefix(w[1], "shaman_"): // the runtime's own
			case w[2] == "":
				t.Errorf("%s has no help", w[1])
			case w[3] == "":
				out = append(out, w[1])
			default:
				out = append(out, w[1]+"{"+w[3]+"}")
			}
		}
	}
	slices.Sort(out)
	return out
}
