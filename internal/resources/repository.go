package resources

import (
	"context"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Repository is one node's own repository: the view of the store that its
// daemon works with, and the only writer of that directory.
type Repository struct {
	store *Store
	self  cluster.NodeID
}

// Own returns the repository of the node that this daemon runs on.
func (s *Store) Own(self cluster.NodeID) *Repository { return &Repository{store: s, self: self} }

// List lists it; forced is for listings that decide.
func (r *Repository) List(ctx context.Context, forced bool) (cluster.Listing, error) {
	return r.store.Repository(ctx, r.self, forced)
}

// Census reads everything that the mount holds.
func (r *Repository) Census(ctx context.Context) (cluster.Census, error) { return r.store.Census(ctx) }

// FreshCensus reads it past all caches, for what decides.
func (r *Repository) FreshCensus(ctx context.Context) (cluster.Census, error) {
	return r.store.FreshCensus(ctx)
}

// Absent tells whether there is nothing at a VE's path.
func (r *Repository) Absent(ctx context.Context, path string) (bool, error) {
	return r.store.Absent(ctx, path)
}

// ClaimBroken takes a resource out of quarantine into the repository.
func (r *Repository) ClaimBroken(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID, path string) (cluster.ResourceID, error) {
	return r.store.ClaimBroken(ctx, r.self, inc, id, path)
}

// DropBroken deletes a quarantined resource whose VE is not there any more.
func (r *Repository) DropBroken(ctx context.Context, id cluster.ResourceID, path string) error {
	return r.store.DropBroken(ctx, id, path)
}

// Look reads one resource fresh, if the repository is of incarnation inc
// (ErrSealed) and holds it (ErrGone).
func (r *Repository) Look(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID) (cluster.Resource, error) {
	return fetch(ctx, r.store, "look at resource "+string(id), func() (cluster.Resource, error) {
		if err := r.store.mustOwn(r.self, inc); err != nil {
			return cluster.Resource{}, err
		}
		res, err := r.store.readOwn(r.self, id)
		res.Owner = r.self
		return res, err
	})
}

// Update rewrites one resource's parameters; lines that shaman does not know stay.
func (r *Repository) Update(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID, change func(*cluster.Resource)) error {
	// Nobody else of this process changes it between the reading and the writing.
	release, err := r.store.reserve(ctx, "update resource "+string(id), r.store.ownNames(r.self, id))
	if err != nil {
		return err
	}
	d, err := r.store.Document(ctx, r.self, id)
	if err != nil {
		release()
		return err
	}
	res := d.Resource(id)
	was := res
	change(&res)
	if res == was {
		release()
		return nil
	}
	d.Apply(res)
	data, err := d.Bytes()
	if err != nil {
		release()
		return fmt.Errorf("write resource %s: %w", id, err)
	}
	_, err = handOver(ctx, r.store, r.store.deadline, "write resource "+string(id), release, func() (struct{}, error) {
		return struct{}{}, r.store.put(r.self, inc, id, data, false)
	})
	return err
}

// Create writes a new resource; its name must be free (ErrTaken).
func (r *Repository) Create(ctx context.Context, inc cluster.Incarnation, res cluster.Resource) error {
	d := Document{}
	d.Apply(res)
	return r.store.Put(ctx, r.self, inc, res.ID, d, true)
}

// Claim takes resources out of a pool directory; see Store.Claim.
func (r *Repository) Claim(ctx context.Context, inc cluster.Incarnation, pool cluster.PoolID, ids []cluster.ResourceID) ([]cluster.Claimed, error) {
	return r.store.Claim(ctx, r.self, inc, pool, ids)
}

// GiveBack moves a resource into pool/<self>.0; see Store.GiveBack.
func (r *Repository) GiveBack(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID) (cluster.ResourceID, error) {
	return r.store.GiveBack(ctx, r.self, inc, id)
}

// Rename gives a resource another name.
func (r *Repository) Rename(ctx context.Context, inc cluster.Incarnation, id, to cluster.ResourceID) error {
	return r.store.Rename(ctx, r.self, inc, id, to)
}

// Delete removes a resource for an operator.
func (r *Repository) Delete(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID) error {
	return r.store.Delete(ctx, r.self, inc, id)
}

// MarkBroken quarantines a resource.
func (r *Repository) MarkBroken(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID, why cluster.BrokenReason) error {
	return r.store.MarkBroken(ctx, cluster.Place{Node: r.self, Incarnation: inc}, string(id), why)
}

// Sight reads a probe file of doctor fresh; see Store.Sight.
func (r *Repository) Sight(ctx context.Context, name string) (cluster.Sighting, error) {
	return r.store.Sight(ctx, name)
}
