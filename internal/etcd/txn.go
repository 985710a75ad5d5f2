package etcd

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// MaxOps bounds one transaction; etcd's own limit is 128.
const MaxOps = 100

// The errors of a transaction, for those that see etcd only.
var (
	ErrConflict = cluster.ErrConflict
	ErrDeposed  = cluster.ErrDeposed
)

// Guard is the compare by which a write takes effect in the writer's own
// mastership only.
func Guard(t cluster.Term) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(t.Key), "=", int64(t.Epoch))
}

// Absent compares that a key does not exist.
func Absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

// Unchanged compares that a key still has this modification revision (0: absent).
func Unchanged(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}

// Commit runs one transaction. It returns ErrConflict if a compare failed.
// After any other error the result is unknown: read back before a repetition.
func Commit(ctx context.Context, cl *clientv3.Client, cmps []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	resp, err := cl.Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return resp.Header.Revision, ErrConflict
	}
	return resp.Header.Revision, nil
}

// CommitAs is Commit for a master: the guard is the first compare, and a failed
// transaction tells a deposed master from a conflict.
func CommitAs(ctx context.Context, cl *clientv3.Client, t cluster.Term, cmps []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	if t.Epoch == 0 {
		return 0, ErrDeposed // no mastership at all; the guard would hold for a key that is absent
	}
	ctx, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	all := append([]clientv3.Cmp{Guard(t)}, cmps...)
	resp, err := cl.Txn(ctx).If(all...).Then(ops...).Else(clientv3.OpGet(t.Key, clientv3.WithKeysOnly())).Commit()
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	if !holds(resp.Responses, t.Epoch) {
		return 0, ErrDeposed
	}
	return resp.Header.Revision, ErrConflict
}

func holds(rs []*pb.ResponseOp, epoch cluster.Epoch) bool {
	if len(rs) == 0 {
		return false
	}
	kvs := rs[0].GetResponseRange().GetKvs()
	return len(kvs) == 1 && kvs[0].CreateRevision == int64(epoch)
}

// Encode renders a record as the value of a key.
func Encode(record any) (string, error) {
	b, err := json.Marshal(record)
	if err != nil {
		return "", fmt.Errorf("encode %T: %w", record, err)
	}
	return string(b), nil
}

// Merge renders a record over the value that it replaces: fields that this
// version does not know are kept.
func Merge(old []byte, record any) (string, error) {
	next, err := json.Marshal(record)
	if err != nil {
		return "", fmt.Errorf("encode %T: %w", record, err)
	}
	known := fieldsOf(record)
	if len(old) == 0 || onlyKnown(old, known) {
		return string(next), nil
	}
	var was, is map[string]json.RawMessage
	if err := json.Unmarshal(old, &was); err != nil {
		return "", fmt.Errorf("keep the fields of a value that is no JSON object: %w", err)
	}
	if err := json.Unmarshal(next, &is); err != nil {
		return "", fmt.Errorf("encode %T as an object: %w", record, err)
	}
	for k, v := range was {
		if _, ok := is[k]; !ok && !known[k] {
			is[k] = v
		}
	}
	b, err := json.Marshal(is)
	if err != nil {
		return "", fmt.Errorf("encode %T: %w", record, err)
	}
	return string(b), nil
}
