package doctor

import (
	"strings"
	"testing"
)

// verdict is one row's expectation: the findings as "LEVEL subject", and words
// that their messages and mends must have.
func verdict(t *testing.T, got []Finding, want []string, says ...string) {
	t.Helper()
	var levels []string
	var text strings.Builder
	for _, f := range got {
		levels = append(levels, strings.TrimSpace(string(f.Level)+" "+f.Subject))
		text.WriteString(f.Message + "\n" + f.Mend + "\n")
		if f.Message == "" || strings.HasSuffix(f.Message, ".") || strings.Contains(f.Message, "%!") || strings.Contains(f.Mend, "%!") {
			t.Errorf("a message for people: %q, %q", f.Message, f.Mend)
		}
		if f.Level == Fail && f.Mend == "" {
			t.Errorf("%q does not say what to do next", f.Message)
		}
	}
	if strings.Join(levels, "; ") != strings.Join(want, "; ") {
		t.Errorf("found %q, want %q\n%s", levels, want, &text)
	}
	for _, w := range says {
		if !strings.Contains(text.String(), w) {
			t.Errorf("it does not say %q:\n%s", w, &text)
		}
	}
}
