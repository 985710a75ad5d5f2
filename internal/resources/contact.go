package resources

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Contact is the mount as this process came to know it: the uuid of its
// cluster, and the device under which it was read.
type Contact struct {
	uuid string
	dev  atomic.Uint64
}

// UUID is that of the mount's cluster.
func (c *Contact) UUID() string { return c.uuid }

// Connect reads the mount's identity and checks that it belongs to the cluster.
func (s *Store) Connect(ctx context.Context, clusterName string, etcdClusterID uint64) (*Contact, error) {
	id, dev, err := s.ReadIdentity(ctx)
	if err != nil {
		return nil, err
	}
	if id.Name != clusterName {
		return nil, fmt.Errorf("%s says cluster %q, CLUSTER_NAME says %q: %w", s.identityFile(), id.Name, clusterName, ErrOtherCluster)
	}
	if etcdClusterID != 0 && id.EtcdClusterID != 0 && id.EtcdClusterID != etcdClusterID {
		return nil, fmt.Errorf("%s was made with etcd cluster %x, ETCD_ENDPOINTS lead to %x: %w; %s", s.identityFile(), id.EtcdClusterID, etcdClusterID, ErrOtherCluster, "if etcd was rebuilt: "+recoverHint)
	}
	c := &Contact{uuid: id.UUID}
	c.dev.Store(dev)
	return c, nil
}

// Sync waits until all that was being changed when it was called has ended, though
// its caller may be gone, and flushes the whole shared file system.
func (s *Store) Sync(ctx context.Context) error {
	for _, freed := range s.names.all() {
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("wait for what is being changed on the shared file system: %w", context.Cause(ctx))
		}
	}
	return s.do(ctx, "flush the shared file system", func() error { return syncfs(s.root) })
}

// JoinedBefore tells whether a node has a directory on the mount.
func (s *Store) JoinedBefore(ctx context.Context, n cluster.NodeID) (bool, error) {
	return fetch(ctx, s, "look for the directory of "+string(n), func() (bool, error) { return exists(s.nodeDir(n)) })
}
