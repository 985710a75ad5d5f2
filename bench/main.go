// Program bench measures what design section 14 promises about speed, and prints
// it as tables: the overhead of a failover against the raw cost of the same
// renames and transactions, placement, what an idle daemon costs, and sync. It asserts
// nothing: a machine that others use at the same time is no judge, so read the
// ratios first.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// parts are the words that -only may list, in the order in which they run.
var parts = []string{"failover", "placement", "idle", "sync"}

// options are the program's flags.
type options struct {
	only    []string
	sizes   []size
	runs    int
	lock    time.Duration
	idle    time.Duration
	dir     string // parent of all temporary directories; "" = the system's
	profile string // prefix of CPU profiles, one a size; "" = none
}

func main() { os.Exit(run()) }

func run() int {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	fmt.Printf("shaman bench: %s, %d cores, %d runs each\n", runtime.Version(), runtime.NumCPU(), o.runs)
	for _, p := range parts {
		if !slices.Contains(o.only, p) {
			continue
		}
		switch p {
		case "failover":
			err = benchFailover(ctx, o)
		case "placement":
			err = benchPlacement(o)
		case "idle":
			err = benchIdle(ctx, o)
		case "sync":
			err = benchSync(ctx, o)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", p, err)
			return 1
		}
	}
	return 0
}

func parse(args []string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := f.String("only", strings.Join(parts, ","), "what to measure, joined by `commas`")
	sizes := f.String("sizes", "3x100,3x1000,10x10000", "failovers to measure, as `NODESxVES` joined by commas")
	f.IntVar(&o.runs, "runs", 3, "how often each failover is measured")
	f.DurationVar(&o.lock, "lock-timeout", 5*time.Second, "LOCK_TIMEOUT of the clusters; it is waited for and not measured")
	f.DurationVar(&o.idle, "idle", 20*time.Second, "how long the idle daemon is watched")
	f.StringVar(&o.dir, "dir", "", "directory for mounts and etcd's data; default is the system's for temporary files")
	f.StringVar(&o.profile, "cpuprofile", "", "write CPU profiles of the failovers to files with this `prefix`")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.only = strings.Split(*only, ",")
	for _, p := range o.only {
		if !slices.Contains(parts, p) {
			return o, fmt.Errorf("-only: %q is not known; there are %s", p, strings.Join(parts, ", "))
		}
	}
	for _, word := range strings.Split(*sizes, ",") {
		var s size
		if _, err := fmt.Sscanf(word, "%dx%d", &s.nodes, &s.ves); err != nil || s.nodes < 3 || s.ves < 1 {
			return o, fmt.Errorf("-sizes: %q; want NODESxVES with 3 nodes or more", word)
		}
		o.sizes = append(o.sizes, s)
	}
	if o.runs < 1 {
		return o, fmt.Errorf("-runs %d; want 1 or more", o.runs)
	}
	return o, nil
}
