package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/resources"
)

// story is what the cluster says of itself, against what the VEs and the mounts say.
type story struct {
	f      *Findings
	events []cluster.Event
}

// checkStory holds the events against the VEs' own logs and against what each node
// did to names on the mount.
func (l *Lab) checkStory(ctx context.Context, f *Findings) error {
	events, _, err := resources.NewStore(l.Mount(), nil).Events(ctx)
	if err != nil {
		return err
	}
	s := story{f: f, events: events}
	s.proofsComeFirst()
	s.countCauses(l)
	return l.checkAnswers(s)
}

// proofsComeFirst: what a failover starts, it starts after its proof.
func (s story) proofsComeFirst() {
	proven := map[string]bool{}
	for _, e := range s.events {
		switch {
		case e.Kind == "fenced" || e.Kind == "sealed":
			proven[e.Failover] = true
		case e.Kind == "action-started" && e.Failover != "" && !proven[e.Failover]:
			s.f.Problems = append(s.f.Problems, fmt.Sprintf("%s was started on %s at %s for failover %s, of which no proof was recorded before", e.Resource, e.Node, e.Time.Format(time.RFC3339Nano), e.Failover))
		}
	}
}

// causeSlack is how long after a start its event may be written.
const causeSlack = 15 * time.Second

// countCauses counts the lives of VEs for whose start no event gives a cause: that
// of a daemon which died before it could write it.
func (s story) countCauses(l *Lab) {
	for _, id := range l.VEs {
		lives, err := l.Lives(id)
		if err != nil {
			continue // told by the caller
		}
		for _, life := range lives {
			n, err := l.Node(life.Node)
			if err != nil || !s.caused(n.HostID, id, life.Started) {
				s.f.Uncaused++
			}
		}
	}
}

func (s story) caused(on cluster.NodeID, id string, at time.Time) bool {
	for _, e := range s.events {
		after := e.Time.Sub(at)
		if e.Node == on && (string(e.Resource) == id || strings.HasPrefix(string(e.Resource), id+"~")) &&
			(e.Kind == "action-started" || e.Kind == "boot-started") && after > -time.Second && after < causeSlack {
			return true
		}
	}
	return false
}

// NamesLog is what a node did to names on the mount, a line each:
// "<unix ns> <what> <names>".
func (l *Lab) NamesLog(n Node) string { return filepath.Join(l.nodeDir(n), "names.log") }

// checkAnswers: after a node has said that everything is stopped, and until it is
// admitted again, it touches no resource.
func (l *Lab) checkAnswers(s story) error {
	for _, n := range l.Nodes {
		var from time.Time
		for _, e := range s.events {
			if e.Node != n.HostID {
				continue
			}
			switch {
			case e.Kind == "order-answered" && from.IsZero():
				from = e.Time
			case e.Kind == "admitted" && !from.IsZero():
				if err := l.untouched(n, from, e.Time, s.f); err != nil {
					return err
				}
				from = time.Time{}
			}
		}
	}
	return nil
}

// untouched looks into the names log; admission itself begins before its event.
func (l *Lab) untouched(n Node, from, to time.Time, f *Findings) error {
	file, err := os.Open(l.NamesLog(n))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what %s did on the mount: %w", n.Name, err)
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		var ns int64
		var what, name string
		if k, _ := fmt.Sscan(sc.Text(), &ns, &what, &name); k != 3 {
			continue
		}
		base := strings.TrimPrefix(name, ".")
		resource := strings.HasPrefix(base, "ct-") || strings.HasPrefix(base, "vm-")
		if at := time.Unix(0, ns); resource && at.After(from) && at.Before(to) {
			f.Problems = append(f.Problems, fmt.Sprintf("%s touched a resource at %s, between its answer that everything is stopped (%s) and its next admission (%s): %s",
				n.Name, at.Format(time.RFC3339Nano), from.Format(time.RFC3339Nano), to.Format(time.RFC3339Nano), sc.Text()))
		}
	}
	return nil
}
