package lxctest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
)

// nodeEnv tells a test binary that it is a node, and where to listen.
const nodeEnv = "SHAMAN_LXC_NODE"

// patience bounds the wait for what must come.
const patience = 60 * time.Second

// Node is a machine of its own to LXC; its drivers are asked from outside.
type Node struct {
	dir  string
	cmd  *exec.Cmd
	once sync.Once
}

// nodeScript is process 1 of a node. It takes in orphans.
const nodeScript = `mount --bind "$1" /run && ip link set lo up && { "$2" & while :; do wait; sleep 0.2; done; }`

// StartNode starts a node that ends with the test, and all containers on it. Main
// has to be called in TestMain.
func StartNode(t *testing.T) *Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "lxcnode") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{dir: dir}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// slave: what is mounted later, as the shared file system can be, is seen.
	n.cmd = exec.Command("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--net",
		"sh", "-c", nodeScript, "node", run, self)
	n.cmd.Env = append(os.Environ(), nodeEnv+"="+n.socket())
	n.cmd.Stdout, n.cmd.Stderr = os.Stderr, os.Stderr
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", n.socket()); err == nil {
			c.Close()
			return n
		}
		if time.Now().After(end) {
			t.Fatal("the node did not come up")
		}
	}
}

func (n *Node) socket() string { return filepath.Join(n.dir, "s") }

// Init is the process id of the node's process 1 on this machine.
func (n *Node) Init(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", n.cmd.Process.Pid, n.cmd.Process.Pid))
	var pid int
	if err == nil {
		_, err = fmt.Sscan(string(data), &pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Kill takes the node's power away.
func (n *Node) Kill() {
	n.once.Do(func() {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
	})
}

// Driver opens a driver on the node with options that open understands.
func (n *Node) Driver(t *testing.T, options any) hypervisor.Driver {
	t.Helper()
	data, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	r := &remote{node: n}
	a, err := r.call(t.Context(), request{Verb: "open", Options: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.id, r.name, r.kinds = a.ID, a.Name, a.Kinds
	return r
}

type request struct {
	ID       int
	Verb     string
	Options  json.RawMessage `json:",omitempty"`
	Path     string
	Force    bool
	Params   cluster.VEParams
	Deadline time.Time
	Ended    bool // the context had ended before the call
}

type answer struct {
	Hint     bool // not the answer yet
	ID       int
	Name     string
	Kinds    []cluster.Kind
	VEs      []cluster.VE
	Capacity cluster.Capacity
	Error    string
	Classes  []int // indexes of classes
}

var classes = []error{cluster.ErrCannotAsk, cluster.ErrHold, cluster.ErrLocked, cluster.ErrNoVE, context.Canceled, context.DeadlineExceeded}

// remoteError keeps the classes of an error across the wire.
type remoteError struct {
	text    string
	classes []error
}

func (e *remoteError) Error() string        { return e.text }
func (e *remoteError) Is(target error) bool { return slices.Contains(e.classes, target) }

// remote is a driver on a node.
type remote struct {
	node  *Node
	id    int
	name  string
	kinds []cluster.Kind
}

// call asks the node and waits for its answer, also past the end of ctx: whether
// the driver returns then is what is tested.
func (r *remote) call(ctx context.Context, q request, hint func()) (answer, error) {
	q.ID, q.Ended = r.id, ctx.Err() != nil
	q.Deadline, _ = ctx.Deadline()
	c, err := net.Dial("unix", r.node.socket())
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", cluster.ErrCannotAsk, err)
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return answer{}, fmt.Errorf("%w: %w", cluster.ErrCannotAsk, err)
	}
	stop := context.AfterFunc(ctx, func() {
		if u, ok := c.(*net.UnixConn); ok {
			_ = u.CloseWrite() // tells the node that ctx has ended
		}
	})
	defer stop()
	for dec := json.NewDecoder(c); ; {
		var a answer
		if err := dec.Decode(&a); err != nil {
			return a, fmt.Errorf("%w: the node: %w", cluster.ErrCannotAsk, err)
		}
		if a.Hint {
			hint()
			continue
		}
		if a.Error == "" {
			return a, nil
		}
		e := &remoteError{text: a.Error}
		for _, i := range a.Classes {
			e.classes = append(e.classes, classes[i])
		}
		return a, e
	}
}

func (r *remote) Name() string          { return r.name }
func (r *remote) Kinds() []cluster.Kind { return r.kinds }

func (r *remote) List(ctx context.Context) ([]cluster.VE, error) {
	a, err := r.call(ctx, request{Verb: "list"}, nil)
	return a.VEs, err
}

func (r *remote) Register(ctx context.Context, path string) error {
	_, err := r.call(ctx, request{Verb: "register", Path: path}, nil)
	return err
}

func (r *remote) Unregister(ctx context.Context, path string) error {
	_, err := r.call(ctx, request{Verb: "unregister", Path: path}, nil)
	return err
}

func (r *remote) Start(ctx context.Context, path string) error {
	_, err := r.call(ctx, request{Verb: "start", Path: path}, nil)
	return err
}

func (r *remote) Stop(ctx context.Context, path string, force bool) error {
	_, err := r.call(ctx, request{Verb: "stop", Path: path, Force: force}, nil)
	return err
}

func (r *remote) Barrier(ctx context.Context) error {
	_, err := r.call(ctx, request{Verb: "barrier"}, nil)
	return err
}

func (r *remote) Watch(ctx context.Context, hint func()) error {
	_, err := r.call(ctx, request{Verb: "watch"}, hint)
	return err
}

func (r *remote) Capacity(ctx context.Context) (cluster.Capacity, error) {
	a, err := r.call(ctx, request{Verb: "capacity"}, nil)
	return a.Capacity, err
}

func (r *remote) Configure(ctx context.Context, path string, p hypervisor.Params) error {
	_, err := r.call(ctx, request{Verb: "configure", Path: path, Params: p}, nil)
	return err
}

func (r *remote) Save(ctx context.Context, path string) error {
	_, err := r.call(ctx, request{Verb: "save", Path: path}, nil)
	return err
}

// Main serves drivers if this process is a node, and returns if it is none.
func Main(open func(options []byte) (hypervisor.Driver, error)) {
	socket := os.Getenv(nodeEnv)
	if socket == "" {
		return
	}
	_ = os.Unsetenv(nodeEnv)
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	s := &server{open: open}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		go s.serve(c)
	}
}

type server struct {
	open    func([]byte) (hypervisor.Driver, error)
	mu      sync.Mutex
	drivers []hypervisor.Driver
}

func (s *server) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	line, err := in.ReadBytes('\n')
	var q request
	if err != nil || json.Unmarshal(line, &q) != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !q.Deadline.IsZero() {
		var end context.CancelFunc
		ctx, end = context.WithDeadline(ctx, q.Deadline)
		defer end()
	}
	if q.Ended {
		cancel()
	}
	go func() { _, _ = io.Copy(io.Discard, in); cancel() }()
	var mu sync.Mutex
	enc := json.NewEncoder(c)
	send := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(a) // the test has gone, then
	}
	var a answer
	err = s.do(ctx, q, &a, func() { send(answer{Hint: true}) })
	if err != nil {
		a.Error = strings.TrimSpace(err.Error())
		for i, class := range classes {
			if errors.Is(err, class) {
				a.Classes = append(a.Classes, i)
			}
		}
	}
	send(a)
}

func (s *server) do(ctx context.Context, q request, a *answer, hint func()) (err error) {
	if q.Verb == "open" {
		d, err := s.open(q.Options)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drivers = append(s.drivers, d)
		a.ID, a.Name, a.Kinds = len(s.drivers)-1, d.Name(), d.Kinds()
		return nil
	}
	s.mu.Lock()
	d := s.drivers[q.ID]
	s.mu.Unlock()
	switch q.Verb {
	case "list":
		a.VEs, err = d.List(ctx)
	case "register":
		err = d.Register(ctx, q.Path)
	case "unregister":
		err = d.Unregister(ctx, q.Path)
	case "start":
		err = d.Start(ctx, q.Path)
	case "stop":
		err = d.Stop(ctx, q.Path, q.Force)
	case "barrier":
		err = d.Barrier(ctx)
	case "watch":
		err = d.Watch(ctx, hint)
	case "capacity":
		a.Capacity, err = d.Capacity(ctx)
	case "configure":
		err = d.Configure(ctx, q.Path, q.Params)
	case "save":
		err = d.Save(ctx, q.Path)
	default:
		err = fmt.Errorf("%q is no verb", q.Verb)
	}
	return err
}
