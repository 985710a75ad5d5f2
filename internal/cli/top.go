package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/spf13/cobra"
)

// topEvery is how often top looks again by itself.
const topEvery = time.Second

func (a *app) topCmd() *cobra.Command {
	var which nodeFlags
	grouped := false
	c := &cobra.Command{Use: "top", Short: "Show the cluster live", Args: cobra.NoArgs,
		Long: `Show the cluster live, with the progress of running failovers.

Keys: g group by status, v more columns, Enter or Space look again now, arrows
and page keys scroll, h help, q quit.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if !isTerminal(a.in) || !isTerminal(a.tty) {
				return fail(exitUsage, "top needs a terminal; use 'shaman stat'")
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			v := statView{self: a.self, verbose: a.verbose, grouped: grouped}
			if which.given() {
				s := a.look(c.Context())
				n, err := a.nodeOf(s, which)
				if err != nil {
					return a.reach(err)
				}
				v.only = n.ID
			}
			m := topModel{view: v, busy: true, look: func() seen { // Init looks at once
				s := a.look(c.Context())
				return seen{at: time.Now(), stat: a.stat(s), etcdErr: s.trouble(), mountErr: s.mountErr}
			}}
			_, err := tea.NewProgram(m, tea.WithContext(c.Context()), tea.WithInput(a.in), tea.WithOutput(a.tty)).Run()
			if c.Context().Err() != nil {
				return context.Cause(c.Context())
			}
			return err
		}}
	which.add(c, "resources of the node with this %s only")
	c.Flags().BoolVarP(&grouped, "group", "g", false, "group resources by status")
	return c
}

// seen is one look at the cluster.
type seen struct {
	at                time.Time
	stat              statJSON
	etcdErr, mountErr error
}

// tick asks for the next look. Only the one that the last look set counts: a
// look that a key asked for sets its own, and there must not be ever more.
type tick struct{ after int }

// topModel is the screen of top.
type topModel struct {
	view   statView
	look   func() seen
	last   *seen
	busy   bool
	looks  int // finished
	help   bool
	top    int // first line shown
	height int
	width  int
}

// Init implements tea.Model.
func (m topModel) Init() tea.Cmd { return m.refresh() }

func (m topModel) refresh() tea.Cmd { return func() tea.Msg { return m.look() } }

// Update implements tea.Model.
func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.height, m.width = msg.Height, msg.Width
	case seen:
		m.last, m.busy = &msg, false
		m.looks++
		next := tick{after: m.looks}
		return m, tea.Tick(topEvery, func(time.Time) tea.Msg { return next })
	case tick:
		if !m.busy && msg.after == m.looks {
			m.busy = true
			return m, m.refresh()
		}
	case tea.KeyPressMsg:
		return m.key(msg.String())
	}
	return m, nil
}

func (m topModel) key(k string) (tea.Model, tea.Cmd) {
	page := max(1, m.height-3)
	switch k {
	case "q", "esc", "ctrl+c":
		return m, tea.Quit
	case "g":
		m.view.grouped = !m.view.grouped
	case "v":
		m.view.verbose = !m.view.verbose
	case "h":
		m.help = !m.help
	case "down", "j":
		m.top = min(m.top+1, m.lastTop())
	case "up", "k":
		m.top = max(0, m.top-1)
	case "pgdown":
		m.top = min(m.top+page, m.lastTop())
	case "pgup":
		m.top = max(0, m.top-page)
	case "home":
		m.top = 0
	case "enter", "space":
		if !m.busy {
			m.busy = true
			return m, m.refresh()
		}
	}
	return m, nil
}

// topHelp fits into 80 columns.
const topHelp = "g group · v more · Enter/Space look again · ↑↓ PgUp PgDn scroll · h help · q"

// View implements tea.Model.
func (m topModel) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	return v
}

// lastTop is the first line of the last screen.
func (m topModel) lastTop() int {
	if m.last == nil || m.height == 0 {
		return 0
	}
	return max(0, len(m.body())-m.room(len(m.head())))
}

func (m topModel) room(head int) int { return max(1, m.height-head) }

func (m topModel) text() string {
	if m.last == nil {
		return "looking at the cluster …"
	}
	head, lines := m.head(), m.body()
	if m.height > 0 {
		room := m.room(len(head))
		from := min(m.top, max(0, len(lines)-room))
		lines = lines[from:min(len(lines), from+room)]
	}
	if m.width > 0 {
		for i, l := range lines {
			lines[i] = lipgloss.NewStyle().MaxWidth(m.width).Render(l)
		}
	}
	return strings.Join(append(head, lines...), "\n")
}

// head is what stays on the screen: the clock, the help, and what is wrong.
func (m topModel) head() []string {
	s := m.last
	head := []string{lipgloss.NewStyle().Bold(true).Render(fmt.Sprintf("shaman top   %s   h help, q quit", s.at.Format("15:04:05")))}
	if m.help {
		head = append(head, topHelp)
	}
	for _, trouble := range []struct {
		what string
		err  error
	}{{"etcd", s.etcdErr}, {"mount", s.mountErr}} {
		if trouble.err == nil {
			continue
		}
		text := trouble.what + ": " + clean(trouble.err.Error())
		if m.width > 0 { // what to do stands at the end: it must not be cut off
			text = lipgloss.Wrap(text, m.width, "")
		}
		for l := range strings.SplitSeq(text, "\n") {
			head = append(head, alarm.Render(l))
		}
	}
	return head
}

// body is what can be scrolled.
func (m topModel) body() []string {
	s := m.last
	var b bytes.Buffer
	j := s.stat
	j.Resources, j.Unparseable = append([]resourceJSON(nil), j.Resources...), append([]unparseableJSON(nil), j.Unparseable...)
	j.filter(m.view.only)
	for _, f := range j.Failovers {
		if cluster.Phase(f.Phase).Open() {
			fmt.Fprintln(&b, progress(f, j))
		}
	}
	renderStat(&b, j, m.view)
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	for i, l := range lines {
		lines[i] = paint(l)
	}
	return lines
}

var (
	alarm = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red)
	warn  = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
)

// paint makes what needs an operator stand out.
func paint(l string) string {
	for _, word := range []string{"AwaitingFence", "Crashed", "Isolated", "HELD:", "UNPARSEABLE", "Broken", "broken:", "awaiting-fence"} {
		if strings.Contains(l, word) {
			return alarm.Render(l)
		}
	}
	for _, word := range []string{"Recovering", "Inactive", "Suspended", "Pool", "waits for room", "Fenced"} {
		if strings.Contains(l, word) {
			return warn.Render(l)
		}
	}
	return l
}

const barWidth = 30

// progress is a failover that is under way, as one line.
func progress(f failoverJSON, j statJSON) string {
	name := f.Node
	for _, n := range j.Nodes {
		if n.HostID == f.Node && n.Name != "" {
			name = n.Name
		}
	}
	done, full := f.Started+f.Stopped+f.Broken+f.Waiting, 0
	if f.Total > 0 {
		full = min(barWidth, barWidth*done/f.Total)
	}
	return fmt.Sprintf("failover of %s: %-14s [%s%s] %d/%d  %s", name, f.Phase, strings.Repeat("█", full), strings.Repeat("·", barWidth-full), done, f.Total, took(f))
}
