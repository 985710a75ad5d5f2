package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/membership"
	"go.uber.org/zap"
)

// introduction is what a daemon has to know of its cluster before it can do
// anything. It is kept in RUN_DIR: a daemon that is restarted while etcd is out of
// reach must beat, and obey a master's order, all the same.
type introduction struct {
	Boot        string            `json:"boot"`
	Name        string            `json:"name"`
	Address     string            `json:"address"`
	Config      map[string]string `json:"config"`
	EtcdCluster uint64            `json:"etcd_cluster"`
	MountUUID   string            `json:"mount_uuid"`
}

func (d *Daemon) introductionFile() string {
	return filepath.Join(d.Local.RunDir, "introduction.json")
}

// introduce asks etcd, and waits until it answers and this node is joined. If an
// earlier daemon of this boot has left its knowledge, that does while etcd is
// away.
func (d *Daemon) introduce(ctx context.Context) (known introduction, err error) {
	members := membership.New(d.client, d.keys, d.Logger, func() {})
	last, kept := d.lastIntroduction()
	err = d.waitFor(ctx, "etcd, or to be joined", func() error {
		known, err = d.ask(ctx, members)
		if err != nil && kept && !errors.Is(err, cluster.ErrNotJoined) && ctx.Err() == nil {
			d.Logger.Warn("etcd is out of reach; going on with what the daemon before this one knew", zap.Error(err))
			known, err = last, nil
		}
		return err
	})
	if err == nil {
		d.keep(known)
	}
	return known, err
}

func (d *Daemon) ask(ctx context.Context, members *membership.Members) (introduction, error) {
	known := introduction{Boot: d.boot}
	rec, _, err := members.Get(ctx, d.host)
	if err != nil {
		return known, etcd.Explain(err)
	}
	known.Name, known.Address = rec.Name, rec.Address
	if known.Config, err = config.NewStore(d.client, d.keys).Get(ctx); err != nil {
		return known, etcd.Explain(err)
	}
	known.MountUUID, known.EtcdCluster, err = members.MountUUID(ctx)
	return known, etcd.Explain(err)
}

func (d *Daemon) lastIntroduction() (known introduction, ok bool) {
	data, err := os.ReadFile(d.introductionFile())
	ok = err == nil && json.Unmarshal(data, &known) == nil && known.Boot == d.boot
	return known, ok
}

// keep leaves what is known to the next daemon of this boot. Without it that one
// only has to wait for etcd.
func (d *Daemon) keep(known introduction) {
	data, err := json.Marshal(known)
	if err == nil {
		tmp := d.introductionFile() + ".tmp"
		if err = os.WriteFile(tmp, data, 0o600); err == nil {
			err = os.Rename(tmp, d.introductionFile())
		}
	}
	if err != nil {
		d.Logger.Warn("cannot keep what is known of the cluster for the next daemon", zap.Error(fmt.Errorf("write %s: %w", d.introductionFile(), err)))
	}
}
