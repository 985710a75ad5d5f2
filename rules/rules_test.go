package main

import (
	"os"
	"strings"
	"testing"
)

// TestRulesFitTheCode: whoever moves a line that keeps a rule moves the rule along.
// That a test notices when it is gone, 'make rules' shows.
func TestRulesFitTheCode(t *testing.T) {
	names := map[string]bool{}
	for _, r := range rules {
		data, err := os.ReadFile("../" + r.file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), r.code); n != 1 {
			t.Errorf("%s: %s has its line %d times, want once", r.name, r.file, n)
		}
		if names[r.name] || r.code == r.without {
			t.Errorf("%s: named twice, or nothing is taken out", r.name)
		}
		names[r.name] = true
	}
}
