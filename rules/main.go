// rules takes the safety rules out of the code, one at a time, and makes sure that
// some test notices. The code on the disk stays as it is: the compiler is given the
// changed file in its place (go test -overlay).
//
//	go run ./rules            all of them
//	go run ./rules seal       those whose name has that text in it
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rule is one rule: the line of code that keeps it, what stands there without it, and
// the test that has to fail then.
type rule struct {
	name      string
	file      string
	code      string // has to be in the file exactly once
	without   string
	pkg, test string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	only := strings.Join(args, " ")
	var failed []string
	tried := 0
	for _, r := range rules {
		if !strings.Contains(r.name, only) {
			continue
		}
		tried++
		begin := time.Now()
		said, err := tryWithout(r)
		if err != nil {
			failed = append(failed, r.name)
			fmt.Printf("FAIL  %s: %v\n", r.name, err)
			continue
		}
		fmt.Printf("ok    %-70s %5.1f s  %s\n", r.name, time.Since(begin).Seconds(), said)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d rules can be taken out without a test that fails: %s", len(failed), tried, strings.Join(failed, "; "))
	}
	fmt.Printf("rules: %d rules taken out, each noticed by a test\n", tried)
	return nil
}

// tryWithout runs the test of a rule without the rule, and with it if that makes
// sense to know: a test that fails anyway says nothing.
func tryWithout(r rule) (said string, err error) {
	data, err := os.ReadFile(r.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(data), r.code); n != 1 {
		return "", fmt.Errorf("%s has %q %d times, want once: the code has moved, adapt the rule", r.file, r.code, n)
	}
	dir, err := os.MkdirTemp("", "rules-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	changed := filepath.Join(dir, filepath.Base(r.file))
	if err := os.WriteFile(changed, []byte(strings.Replace(string(data), r.code, r.without, 1)), 0o600); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(r.file)
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {abs: changed}})
	if err != nil {
		return "", err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, terr := exec.CommandContext(ctx, "go", "test", "-count=1", "-overlay", overlayFile, "-run", r.test, r.pkg).CombinedOutput()
	text := string(out)
	switch {
	case terr == nil:
		return "", fmt.Errorf("%s passes without it", r.test)
	case strings.Contains(text, "[build failed]"), strings.Contains(text, "[setup failed]"):
		return "", fmt.Errorf("it does not build without it:\n%s", text)
	}
	return "noticed by " + firstFailed(text), nil
}

func firstFailed(out string) string {
	for _, line := range strings.Split(out, "\n") {
		if _, name, ok := strings.Cut(line, "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " (")
			return name
		}
	}
	return "a panic or a time-out"
}
