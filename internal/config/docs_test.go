package config

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the pages under docs/ that are generated")

func TestTheConfigurationPageIsTheReference(t *testing.T) {
	page := filepath.Join("..", "..", "docs", "configuration.md")
	if *update {
		if err := os.WriteFile(page, []byte(Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Reference(), string(have)); diff != "" {
		t.Errorf("docs/configuration.md is not what the keys say; run 'go test ./internal/config -run Page -update' (-keys +page):\n%s", diff)
	}
}

func TestTheExampleShowsEveryLocalKeyWithItsDefault(t *testing.T) {
	file := filepath.Join("..", "..", "deploy", "systemd", "shaman.conf.example")
	l, _, err := LoadLocal(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string][]string{}
	for _, w := range regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		shown[w[1]] = append(shown[w[1]], w[2])
	}
	for _, k := range LocalReference() {
		want := []string{k.Default}
		if l.from[k.Name] != "default" { // required: an example instead
			want = []string{l.text[k.Name]}
		}
		if diff := cmp.Diff(want, shown[k.Name]); diff != "" {
			t.Errorf("%s: %s (-default +shown):\n%s", file, k.Name, diff)
		}
		delete(shown, k.Name)
	}
	for k := range shown {
		t.Errorf("%s shows %s, which is no key", file, k)
	}
}
