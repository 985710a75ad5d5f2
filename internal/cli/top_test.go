package cli

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
)

// screen is a top of 80 columns that has seen the full snapshot.
func screen(t *testing.T, s *snapshot, height int) topModel {
	t.Helper()
	for i := range s.facts.Failovers { // what is open would have a time that goes on
		if s.facts.Failovers[i].DoneAt == "" {
			s.facts.Failovers[i].LostAt = ""
		}
	}
	m := topModel{view: statView{self: n1}, busy: true, look: func() seen { return seen{} }}
	m = step(t, m, tea.WindowSizeMsg{Width: 80, Height: height})
	return step(t, m, seen{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), stat: testApp().stat(s), etcdErr: s.etcdErr, mountErr: s.mountErr})
}

func step(t *testing.T, m topModel, msg tea.Msg) topModel {
	t.Helper()
	next, _ := m.Update(msg)
	return next.(topModel)
}

func press(t *testing.T, m topModel, keys ...string) topModel {
	t.Helper()
	for _, k := range keys {
		next, _ := m.key(k)
		m = next.(topModel)
	}
	return m
}

func TestTopScreen(t *testing.T) {
	away := awaySnapshot()
	away.etcdErr = errors.New("etcd does not answer; check ETCD_ENDPOINTS, the network, certificates and 'etcdctl endpoint health': context deadline exceeded")
	away.mountErr = errors.New("the mount is lost")
	for _, tt := range []struct {
		golden string
		m      topModel
	}{
		{"top.txt", screen(t, fullSnapshot(), 24)},
		{"top-verbose.txt", press(t, screen(t, fullSnapshot(), 60), "g", "v", "h")},
		{"top-end.txt", press(t, screen(t, fullSnapshot(), 24), "pgdown", "pgdown", "pgdown", "pgdown")},
		{"top-away.txt", screen(t, away, 24)},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			text := colour.ReplaceAllString(tt.m.text(), "")
			lines := strings.Split(text, "\n")
			if len(lines) > tt.m.height {
				t.Errorf("%d lines on a screen of %d", len(lines), tt.m.height)
			}
			for _, l := range lines {
				if lipgloss.Width(l) > 80 {
					t.Errorf("%d columns in a screen of 80: %q", lipgloss.Width(l), l)
				}
			}
			golden(t, tt.golden, text+"\n")
		})
	}
}

func TestTopHasSomethingToShowBeforeTheFirstLook(t *testing.T) {
	m := press(t, topModel{busy: true, height: 24}, "down", "pgdown", "g", "h", "up")
	if got := m.text(); got != "looking at the cluster …" {
		t.Errorf("got %q", got)
	}
}

func TestTopKeys(t *testing.T) {
	m := screen(t, fullSnapshot(), 24)
	if m = press(t, m, "g", "v", "h"); !m.view.grouped || !m.view.verbose || !m.help {
		t.Error("g, v, h switch grouping, columns and help on")
	}
	if m = press(t, m, "g", "v", "h"); m.view.grouped || m.view.verbose || m.help {
		t.Error("g, v, h switch them off again")
	}
	m = press(t, m, strings.Split(strings.Repeat("down ", 500), " ")...)
	last := m.top
	if m = press(t, m, "up"); m.top != last-1 || last == 0 || last > 60 {
		t.Errorf("after scrolling past the end by far, from line %d, 'up' leads to line %d", last, m.top)
	}
	if m = press(t, m, "home"); m.top != 0 {
		t.Errorf("home leads to line %d", m.top)
	}
	for _, k := range []string{"q", "esc", "ctrl+c"} {
		_, cmd := m.key(k)
		if cmd == nil {
			t.Fatalf("%s does nothing", k)
		}
		if _, quits := cmd().(tea.QuitMsg); !quits {
			t.Errorf("%s does not quit", k)
		}
	}
}

// Each look sets the next tick; those that keys ask for must not leave more and
// more of them behind.
func TestTopLooksOnceATickHoweverManyKeysArePressed(t *testing.T) {
	m := topModel{busy: true, look: func() seen { return seen{} }}
	if _, cmd := m.key("enter"); cmd != nil {
		t.Error("a second look while the first is under way")
	}
	m = step(t, m, seen{})
	for _, k := range []string{"enter", "space", "enter"} {
		next, cmd := m.key(k)
		m = next.(topModel)
		if cmd == nil {
			t.Fatalf("%s does not look again", k)
		}
		m = step(t, m, cmd())
	}
	looks := 0
	for after := range m.looks + 1 { // the ticks that all looks so far have set
		next, cmd := m.Update(tick{after: after})
		if m = next.(topModel); cmd != nil {
			looks++
		}
	}
	if looks != 1 {
		t.Errorf("%d looks follow, want 1", looks)
	}
}

func TestTopNeedsATerminalOnBothSides(t *testing.T) {
	var out, msg bytes.Buffer
	if code := Run(t.Context(), []string{"top"}, Streams{In: strings.NewReader(""), Out: &out, Err: &msg}, ""); code != exitUsage || out.Len() > 0 {
		t.Errorf("exit code %d, stdout %q", code, &out)
	}
}

var colour = regexp.MustCompile("\x1b\\[[0-9;]*m")
