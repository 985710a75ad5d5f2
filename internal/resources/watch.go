package resources

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// fullPass is how often everything is read again although no name changed: a
// file edited in place leaves its directory's time stamp alone.
const fullPass = 60 * time.Second

// Watch calls hint, which must not block, when a node's repository may have
// changed: after events of the kernel, whenever a rescan finds the directory's
// stamp changed, and once in a while in any case. Events are hints only: the
// kernel does not report what other nodes do on a network file system, its
// queue overflows, and a directory that is renamed away goes silent.
func (s *Store) Watch(ctx context.Context, n cluster.NodeID, rescan time.Duration, log *zap.Logger, hint func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the repository: %w; raise fs.inotify.max_user_instances if it is exhausted", err)
	}
	defer w.Close()
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	var stamp string
	var lastFull time.Time
	watching := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case ev, ok := <-w.Events:
			if !ok {
				return errors.New("the file system watcher ended")
			}
			if ev.Name == s.RepositoryDir(n) && ev.Has(fsnotify.Remove|fsnotify.Rename) {
				watching = false
			}
			if !strings.HasPrefix(filepath.Base(ev.Name), ".") || ev.Name == s.RepositoryDir(n) {
				hint()
			}
		case err := <-w.Errors:
			// An overflow names no file: everything has to be read again.
			log.Debug("file system events were lost", zap.Error(err))
			hint()
		case now := <-tick.C:
			next, err := s.RepositoryStamp(ctx, n)
			if errors.Is(err, fs.ErrNotExist) {
				watching = false
			}
			if err == nil && !watching {
				watching = s.do(ctx, "watch the repository", func() error { return w.Add(s.RepositoryDir(n)) }) == nil
				hint()
			}
			if next != stamp || now.Sub(lastFull) >= fullPass {
				stamp, lastFull = next, now
				hint()
			}
		}
	}
}
