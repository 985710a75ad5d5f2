package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/daemon"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"go.uber.org/zap"
)

var update = flag.Bool("update", false, "rewrite the golden files and the golden text in the scripts")

// TestMain lets the scripts run side by side also where there are few processors:
// they wait for leases and time-outs, and compute little.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(max(6, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestScripts runs operators' sessions: the real command against a real etcd,
// a directory as the mount, and real daemons in this process whose hypervisors
// are fakes. The verbs of a session:
//
//	shaman CODE ARG...         run the command; it must end with that exit code
//	table FILE                 each line is CODE NODE ARG...; they run side by side
//	soon CODE REGEXP ARG...    run it until it does and its stdout matches
//	daemon start|stop|kill N   kill cuts the node off from etcd first, as a crash does
//	etcd stop|start
//	ve define|run|plain NODE NAME   a VE that stands, runs, or runs without high availability
//	ve end|forget|coming NODE NAME  one that stops by itself, is unregistered, or is being migrated there
//	ve migrate NODE NAME            one that runs there from now on, and was unregistered everywhere else
//	put KEY VALUE              write a key of etcd
//	resource NAME FILE         write what is the resource file of a VE
//	fault NODE VERB NAME       that call of the driver fails from now on
//	contract                   the last stdout is stat's JSON as the contract has it
//	doctorjson                 and doctor's
//
// stdout and stderr are compared after $WORK and times have been taken out.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update, RequireUniqueNames: true,
		Setup: setupSession,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"shaman": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).shaman(ts, args) },
			"soon":   func(ts *testscript.TestScript, _ bool, args []string) { of(ts).soon(ts, args) },
			"daemon": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).daemonVerb(ts, args) },
			"etcd": func(ts *testscript.TestScript, _ bool, args []string) {
				if args[0] == "stop" {
					of(ts).etcd.Stop()
				} else {
					of(ts).etcd.Restart()
				}
			},
			"ve": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).ve(ts, args) },
			"resource": func(ts *testscript.TestScript, _ bool, args []string) {
				file := filepath.Join(of(ts).work, args[1])
				ts.Check(os.WriteFile(file, []byte(filepath.Join(of(ts).work, "mount", "ves", args[0])+"\nSTATE=stopped\n"), 0o644))
			},
			"table": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).table(ts, ts.ReadFile(args[0])) },
			"put": func(ts *testscript.TestScript, _ bool, args []string) {
				ctx, cancel := context.WithTimeout(context.Background(), etcdtest.Patience)
				defer cancel()
				_, err := of(ts).etcd.Client(of(ts).t).Put(ctx, "/shaman/lab/"+args[0], args[1])
				ts.Check(err)
			},
			"fault": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).fault(ts, args) },
			"contract": func(ts *testscript.TestScript, _ bool, _ []string) {
				if err := checkContract([]byte(of(ts).last)); err != nil {
					ts.Fatalf("stat's JSON: %v", err)
				}
			},
			"doctorjson": func(ts *testscript.TestScript, _ bool, _ []string) {
				if err := checkDoctor([]byte(of(ts).last)); err != nil {
					ts.Fatalf("doctor's JSON: %v", err)
				}
			},
		},
	})
}

// session is what one script works on.
type session struct {
	t       testing.TB
	work    string
	etcd    *etcdtest.Server
	machine map[string]*machine
	last    string
}

// machine is a node of a session.
type machine struct {
	driver *drivertest.Fake
	cable  *etcdtest.Cable
	cancel func()
	stop   func() error // nil while its daemon does not run
}

type sessionKey struct{}

func of(ts *testscript.TestScript) *session { return ts.Value(sessionKey{}).(*session) }

const sessionNodes = 3

func setupSession(env *testscript.Env) error {
	t := env.T().(testing.TB)
	s := &session{t: t, work: env.WorkDir, etcd: etcdtest.Start(t), machine: map[string]*machine{}}
	env.Values[sessionKey{}] = s
	for i := 1; i <= sessionNodes; i++ {
		s.machine[fmt.Sprintf("node%d", i)] = &machine{driver: drivertest.NewFake(), cable: s.etcd.Cable(t)}
	}
	for _, c := range []conf{
		{file: "node1"}, {file: "node2", node: 2}, {file: "node3", node: 3},
		{file: "sameid", name: "other"}, {file: "samename", node: 2, name: "node1"},
		{file: "lostmount", mount: "nowhere"}, {file: "emptymount", node: 2, mount: "empty"}, {file: "emptymount1", mount: "empty"},
		{file: "foreign", cluster: "foreign", mount: "foreign"}, {file: "wrongmount", node: 2, mount: "foreign"},
		{file: "wrongmount1", mount: "foreign"}, {file: "twinmount", node: 2, mount: "twin"}, {file: "twinmount1", mount: "twin"},
	} {
		if err := s.write(c); err != nil {
			return err
		}
	}
	env.Defer(func() {
		for name, m := range s.machine {
			if m.stop != nil {
				if err := m.stop(); err != nil {
					t.Errorf("the daemon of %s: %v", name, err)
				}
			}
		}
	})
	for _, d := range []string{"mount", "empty", "foreign"} {
		if err := os.Mkdir(filepath.Join(env.WorkDir, d), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// conf is a configuration file that differs from node1's.
type conf struct {
	file    string
	node    int
	name    string
	cluster string
	mount   string
}

func (s *session) write(c conf) error {
	node := max(1, c.node)
	own := fmt.Sprintf("node%d", node)
	text := fmt.Sprintf(`CLUSTER_NAME=%s
CLUSTER_MOUNT=%s
HOST_ID=%016x
NODE_NAME=%s
NODE_ADDRESS=10.0.0.%d
ETCD_ENDPOINTS=%s
FENCE_DIR=%[7]s/fence.d
LISTEN_ADDRESS=127.0.0.1:0
STATE_DIR=%[7]s/state%[5]d
RUN_DIR=%[7]s/run%[5]d
HARDWARE_ID=machine%[5]d
`, cmp.Or(c.cluster, "lab"), filepath.Join(s.work, cmp.Or(c.mount, "mount")), node, cmp.Or(c.name, own), node, s.machine[own].cable.Endpoint(), s.work)
	return os.WriteFile(filepath.Join(s.work, c.file+".conf"), []byte(text), 0o600)
}

// plain takes out what differs from run to run.
func (s *session) plain(text string) string {
	text = strings.ReplaceAll(text, s.work, "$WORK")
	for _, m := range s.machine {
		text = strings.ReplaceAll(text, m.cable.Endpoint(), "ETCD")
	}
	return unstable.ReplaceAllString(text, "TIME")
}

var unstable = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?`)

func (s *session) run(args []string) (code int, out, msg string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*etcdtest.Patience)
	defer cancel()
	args = slices.Clone(args)
	for i, a := range args {
		if a == "--config" && i+1 < len(args) {
			args[i+1] = filepath.Join(s.work, args[i+1]+".conf")
		}
	}
	var stdout, stderr bytes.Buffer
	code = Run(ctx, args, Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr}, "1.2.3")
	return code, s.plain(stdout.String()), s.plain(stderr.String())
}

func (s *session) shaman(ts *testscript.TestScript, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code, out, msg := s.run(args[1:])
	s.last = out
	fmt.Fprint(ts.Stdout(), out)
	fmt.Fprint(ts.Stderr(), msg)
	if err := verdict(want, code, args, msg); err != nil {
		ts.Fatalf("%v", err)
	}
}

var complaint = regexp.MustCompile(`(?m)^shaman: `)

// verdict tells whether a run ended as it has to: every failure says why, unless
// it must be quiet.
func verdict(want, code int, args []string, msg string) error {
	if code != want {
		return fmt.Errorf("exit code %d, want %d; it said %q", code, want, msg)
	}
	if quiet := slices.Contains(args, "-q"); quiet && msg != "" || !quiet && (code == 0) == complaint.MatchString(msg) {
		return fmt.Errorf("with exit code %d the message was %q", code, msg)
	}
	return nil
}

// table runs commands side by side: each may have to wait for what does not answer.
func (s *session) table(ts *testscript.TestScript, text string) {
	var running sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		want, err := strconv.Atoi(f[0])
		ts.Check(err)
		running.Go(func() {
			code, _, msg := s.run(append([]string{"--config"}, f[1:]...))
			if err := verdict(want, code, f, msg); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", strings.TrimSpace(line), err))
			}
		})
	}
	running.Wait()
	ts.Check(errors.Join(errs...))
}

func (s *session) soon(ts *testscript.TestScript, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	for deadline := time.Now().Add(etcdtest.Patience); ; {
		code, out, msg := s.run(args[2:])
		if code == want && re.MatchString(out) {
			s.last = out
			fmt.Fprint(ts.Stdout(), out)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waited in vain for exit code %d and %q; got %d\n%s%s", want, args[1], code, out, msg)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *session) daemonVerb(ts *testscript.TestScript, args []string) {
	m := s.machine[args[1]]
	switch args[0] {
	case "start":
		local, _, err := config.LoadLocal(filepath.Join(s.work, args[1]+".conf"), nil)
		ts.Check(err)
		d, err := daemon.New(daemon.Options{Local: local, Logger: zap.NewNop(), Drivers: []hypervisor.Driver{m.driver.Reopen()}})
		ts.Check(err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		m.cancel = cancel
		m.stop = func() error {
			cancel()
			m.stop = nil
			select {
			case err := <-done:
				return err
			case <-time.After(2 * etcdtest.Patience):
				return errors.New("it does not end")
			}
		}
	case "kill":
		m.cable.Cut() // it ends without a last word
		m.cancel()
	default:
		ts.Check(m.stop())
	}
}

func (s *session) ve(ts *testscript.TestScript, args []string) {
	path := filepath.Join(s.work, "mount", "ves", args[2])
	ts.Check(os.MkdirAll(path, 0o755))
	def := drivertest.Definition{Memory: 64 << 20, NoHA: args[0] == "plain", Unsure: args[0] == "coming"}
	here := s.machine[args[1]].driver
	switch args[0] {
	case "end":
		here.End(path, cluster.CauseStop)
	case "forget":
		here.End(path, cluster.CauseUnknown)
		ts.Check(here.Unregister(context.Background(), path))
	case "migrate":
		for name, m := range s.machine {
			if name != args[1] {
				m.driver.End(path, cluster.CauseUnknown)
				ts.Check(m.driver.Unregister(context.Background(), path))
			}
		}
		here.Run(path, def)
	case "coming":
		here.Run(path, def)
	case "define":
		for _, m := range s.machine {
			m.driver.Define(path, def)
		}
	default:
		for _, m := range s.machine {
			m.driver.Define(path, def)
		}
		here.Run(path, def)
	}
}

func (s *session) fault(_ *testscript.TestScript, args []string) {
	s.machine[args[0]].driver.Inject(args[1], filepath.Join(s.work, "mount", "ves", args[2]), drivertest.Fault{Err: errors.New("no such disk")})
}
