package crashpoints

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errDead = status.Error(codes.Unavailable, "this process is dead")

// errLost is the answer that never came.
var errLost = status.Error(codes.Unavailable, "the answer was lost")

// dialOptions put a process's requests to etcd through the script.
func (p *process) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			do := func() error { return invoke(ctx, method, req, reply, cc, opts...) }
			label := labelOf(method, req)
			if label == "" {
				if p.isDead() {
					return errDead
				}
				return do()
			}
			return op(p, label, do, errDead, errLost)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if p.isDead() {
				return nil, errDead
			}
			s, err := open(ctx, desc, cc, method, opts...)
			if err != nil {
				return nil, err
			}
			return &mortalStream{s, p}, nil
		}),
	}
}

// mortalStream ends with its process: the renewals of a dead one are not sent.
type mortalStream struct {
	grpc.ClientStream
	p *process
}

// SendMsg sends while the process lives.
func (s *mortalStream) SendMsg(m any) error {
	if s.p.isDead() {
		return errDead
	}
	return s.ClientStream.SendMsg(m)
}

// RecvMsg receives while the process lives.
func (s *mortalStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if s.p.isDead() {
		return errors.Join(errDead, err)
	}
	return err
}

var (
	leaseHex = regexp.MustCompile(`/[0-9a-f]{14,16}$`)
	actionID = regexp.MustCompile(`\.(leave|look)\.[0-9a-f]+$`)
)

func key(k []byte) string {
	name := string(k)
	if i := strings.Index(name, "/shaman/"); i == 0 {
		if _, rest, ok := strings.Cut(name[len("/shaman/"):], "/"); ok {
			name = rest
		}
	}
	if strings.HasPrefix(name, "master") {
		name = leaseHex.ReplaceAllString(name, "/LEASE")
	}
	return normal(actionID.ReplaceAllString(name, ".$1.ID"))
}

// labelOf names a request; "" is for what goes on all the time.
func labelOf(method string, req any) string {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return "get " + key(r.Key)
	case *pb.PutRequest:
		return "put " + key(r.Key)
	case *pb.DeleteRangeRequest:
		return "delete " + key(r.Key)
	case *pb.LeaseGrantRequest, *pb.LeaseRevokeRequest:
		return method[strings.LastIndexByte(method, '/')+1:]
	case *pb.TxnRequest:
		var what []string
		for _, o := range r.Success {
			switch {
			case o.GetRequestPut() != nil:
				what = append(what, "put "+key(o.GetRequestPut().Key))
			case o.GetRequestDeleteRange() != nil:
				what = append(what, "delete "+key(o.GetRequestDeleteRange().Key))
			case o.GetRequestRange() != nil:
				what = append(what, "get "+key(o.GetRequestRange().Key))
			}
		}
		if len(what) == 1 && strings.HasPrefix(what[0], "put alive/") {
			return "" // usage, published now and then
		}
		if len(what) > 2 {
			what = append(what[:2], fmt.Sprintf("and %d more", len(what)-2))
		}
		return "txn " + strings.Join(what, ", ")
	}
	return ""
}
