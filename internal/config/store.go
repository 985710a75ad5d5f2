package config

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Store is the cluster-wide configuration in etcd.
type Store struct {
	client *clientv3.Client
	prefix string
}

// NewStore returns the parameters of one cluster.
func NewStore(cl *clientv3.Client, keys etcd.Layout) *Store {
	return &Store{client: cl, prefix: keys.Config()}
}

// Get reads all parameters that were set.
func (s *Store) Get(ctx context.Context) (map[string]string, error) {
	set, _, err := s.get(ctx)
	return set, err
}

func (s *Store) get(ctx context.Context) (map[string]string, map[string]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, s.prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, nil, fmt.Errorf("read the cluster-wide configuration: %w", err)
	}
	set, mods := map[string]string{}, map[string]int64{}
	for _, kv := range resp.Kvs {
		k := strings.TrimPrefix(string(kv.Key), s.prefix)
		set[k], mods[k] = string(kv.Value), kv.ModRevision
	}
	return set, mods, nil
}

// Set changes parameters, all or none, if nobody else changed any meanwhile;
// accept is asked about the whole that results.
func (s *Store) Set(ctx context.Context, changes map[string]string, accept func(merged map[string]string) error) error {
	for range 8 {
		set, mods, err := s.get(ctx)
		if err != nil {
			return err
		}
		var cmps []clientv3.Cmp
		var ops []clientv3.Op
		for _, k := range clusterKeys {
			cmps = append(cmps, etcd.Unchanged(s.prefix+k.Name, mods[k.Name]))
		}
		for k, v := range changes {
			if v == "" {
				delete(set, k)
				ops = append(ops, clientv3.OpDelete(s.prefix+k))
			} else {
				set[k] = v
				ops = append(ops, clientv3.OpPut(s.prefix+k, v))
			}
		}
		if err := accept(set); err != nil {
			return err
		}
		_, err = etcd.Commit(ctx, s.client, cmps, ops)
		if err == nil {
			return nil
		}
		if !errors.Is(err, etcd.ErrConflict) {
			return fmt.Errorf("change the cluster-wide configuration: %w", err)
		}
	}
	return fmt.Errorf("change the cluster-wide configuration: %w", etcd.ErrConflict)
}
