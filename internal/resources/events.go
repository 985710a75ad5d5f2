package resources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

const (
	// eventsMax is the size at which a node's event log is rotated; one old one is kept.
	eventsMax = 8 << 20
	// eventQueue bounds what waits for a mount that does not answer.
	eventQueue = 4096
)

// EventLog appends to one node's event log on the mount. Its only writer is
// that node's daemon.
type EventLog struct {
	store *Store
	node  cluster.NodeID
	log   *zap.Logger
	queue chan cluster.Event
}

// NewEventLog returns a node's event log; Run writes it.
func NewEventLog(s *Store, node cluster.NodeID, log *zap.Logger) *EventLog {
	return &EventLog{store: s, node: node, log: log, queue: make(chan cluster.Event, eventQueue)}
}

// Add queues an event. It never blocks: with the queue full the event is in the
// daemon's own log only.
func (e *EventLog) Add(ev cluster.Event) {
	ev.Node = e.node
	if ev.Time.IsZero() {
		ev.Time = time.Now().UTC()
	}
	select {
	case e.queue <- ev:
	default:
		e.log.Warn("the event log on the mount is not written; an event is in this log only", zap.String("event", ev.Kind), zap.String("message", ev.Message))
	}
}

// Run writes queued events, many at a time, until the context ends.
func (e *EventLog) Run(ctx context.Context) error {
	for {
		var batch []cluster.Event
		select {
		case <-ctx.Done():
		case ev := <-e.queue:
			batch = []cluster.Event{ev}
		}
		if ctx.Err() == nil {
			e.drain(ctx, batch)
			continue
		}
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		e.drain(wctx, batch)
		return context.Cause(ctx)
	}
}

func (e *EventLog) drain(ctx context.Context, batch []cluster.Event) {
	for len(batch) < eventQueue {
		select {
		case ev := <-e.queue:
			batch = append(batch, ev)
			continue
		default:
		}
		break
	}
	if len(batch) == 0 {
		return
	}
	if err := e.write(ctx, batch); err != nil {
		e.log.Warn("cannot write the event log on the mount", zap.Int("events", len(batch)), zap.Error(err))
	}
}

func (e *EventLog) write(ctx context.Context, batch []cluster.Event) error {
	var b bytes.Buffer
	for _, ev := range batch {
		line, err := json.Marshal(ev)
		if err != nil {
			return fmt.Errorf("encode an event: %w", err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	file := filepath.Join(e.store.root, "events", string(e.node)+".jsonl")
	return e.store.do(ctx, "append to the event log", func() error {
		if st, err := os.Stat(file); err == nil && st.Size() > eventsMax {
			if err := os.Rename(file, file+".1"); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		data := b.Bytes()
		if st, err := f.Stat(); err == nil && st.Size() > 0 {
			var last [1]byte
			if _, err := f.ReadAt(last[:], st.Size()-1); err == nil && last[0] != '\n' {
				data = append([]byte{'\n'}, data...) // a write that ended half way spoils its own line only
			}
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	})
}

// Events reads the event logs of all nodes, merged by time. Lines that cannot
// be read are counted.
func (s *Store) Events(ctx context.Context) (out []cluster.Event, damaged int, err error) {
	type answer struct {
		events  []cluster.Event
		damaged int
	}
	a, err := fetch(ctx, s, "read the event logs", func() (a answer, err error) {
		dir := filepath.Join(s.root, "events")
		all, err := names(dir)
		if err != nil {
			return a, err
		}
		for _, name := range all {
			if !strings.HasSuffix(name, ".jsonl") && !strings.HasSuffix(name, ".jsonl.1") {
				continue
			}
			if st, err := os.Lstat(filepath.Join(dir, name)); err == nil && !st.Mode().IsRegular() {
				a.damaged++
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return a, err
			}
			for line := range bytes.Lines(data) {
				if len(bytes.TrimSpace(line)) == 0 {
					continue
				}
				var ev cluster.Event
				if json.Unmarshal(line, &ev) != nil {
					a.damaged++
					continue
				}
				a.events = append(a.events, ev)
			}
		}
		sort.SliceStable(a.events, func(i, j int) bool { return a.events[i].Time.Before(a.events[j].Time) })
		return a, nil
	})
	return a.events, a.damaged, err
}
