package doctor

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Client is what of etcd's client is needed.
type Client interface {
	Status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error)
	MemberList(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.MemberListResponse, error)
	AlarmList(ctx context.Context) (*clientv3.AlarmResponse, error)
}

// EtcdFacts is what etcd says of itself.
type EtcdFacts struct {
	Err       error // why the keys of the cluster cannot be read at all
	TLS       bool  // ETCD_CACERT or ETCD_CERT is set
	Endpoints []EndpointFact
	Members   []EtcdMember
	ListErr   error
	Alarms    []string // "NOSPACE on <member>"
	ClusterID uint64   // 0 = nobody answered
}

// EndpointFact is what one of ETCD_ENDPOINTS answers.
type EndpointFact struct {
	Endpoint    string
	Err         error
	Latency     time.Duration // the best of the tries
	Member      uint64
	ClusterID   uint64
	Leader      uint64 // 0 = it knows of none
	Version     string
	Size, Quota int64 // of the database, in bytes
	Errors      []string
	Learner     bool
}

// EtcdMember is a member of etcd's cluster.
type EtcdMember struct {
	ID      uint64
	Name    string
	Learner bool
}

const statusTries = 3

// AskEtcd asks every endpoint, side by side.
func AskEtcd(ctx context.Context, cl Client, endpoints []string) EtcdFacts {
	f := EtcdFacts{Endpoints: make([]EndpointFact, len(endpoints))}
	var running sync.WaitGroup
	for i, e := range endpoints {
		running.Go(func() { f.Endpoints[i] = askEndpoint(ctx, cl, e) })
	}
	running.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
		defer cancel()
		list, err := cl.MemberList(ctx)
		if err != nil {
			f.ListErr = err
			return
		}
		for _, m := range list.Members {
			f.Members = append(f.Members, EtcdMember{ID: m.ID, Name: m.Name, Learner: m.IsLearner})
		}
		if alarms, err := cl.AlarmList(ctx); err == nil {
			for _, a := range alarms.Alarms {
				f.Alarms = append(f.Alarms, fmt.Sprintf("%s on member %x", a.Alarm, a.MemberID))
			}
		}
	})
	running.Wait()
	for _, e := range f.Endpoints {
		if e.Err == nil && f.ClusterID == 0 {
			f.ClusterID = e.ClusterID
		}
	}
	return f
}

func askEndpoint(ctx context.Context, cl Client, endpoint string) EndpointFact {
	f := EndpointFact{Endpoint: endpoint}
	for try := range statusTries {
		begin := time.Now()
		cctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
		s, err := cl.Status(cctx, endpoint)
		cancel()
		took := time.Since(begin)
		if err != nil {
			f.Err = err // what it means is said once, of etcd as a whole
			if took >= etcd.RequestTimeout || ctx.Err() != nil {
				f.Err = fmt.Errorf("no answer within %s", etcd.RequestTimeout)
				return f // it hangs; another try would only wait again
			}
			continue
		}
		if f.Err = nil; try == 0 || f.Latency == 0 || took < f.Latency {
			f.Latency = took // the first one connects
		}
		f.Member, f.Leader, f.Version, f.Errors, f.Learner = s.Header.MemberId, s.Leader, s.Version, s.Errors, s.IsLearner
		f.ClusterID, f.Size, f.Quota = s.Header.ClusterId, s.DbSize, s.DbSizeQuota
	}
	return f
}

// usualQuota is etcd's --quota-backend-bytes if it is not set.
const usualQuota = 2 << 30

// JudgeEtcd judges etcd. lease is LOCK_TIMEOUT.
func JudgeEtcd(f EtcdFacts, lease time.Duration) []Finding {
	j := judgement{check: Etcd}
	if f.Err != nil {
		j.fail("", "etcdctl endpoint health; systemctl status etcd; then ETCD_ENDPOINTS and the certificates. VEs run on meanwhile, and nothing is moved or started",
			"the cluster's keys cannot be read: %v", f.Err)
	}
	slow := lease / 20
	versions := map[string]bool{}
	for _, e := range f.Endpoints {
		judgeEndpoint(&j, e, f, slow)
		if e.Err == nil {
			versions[e.Version] = true
		}
	}
	if len(versions) > 1 {
		list := []string{}
		for v := range versions {
			list = append(list, v)
		}
		slices.Sort(list)
		j.warn("versions", "upgrade the older ones", "the members run different versions: %s; fine in the middle of an upgrade only", strings.Join(list, ", "))
	}
	for _, a := range f.Alarms {
		what, _, _ := strings.Cut(a, " ")
		if what == "NOSPACE" {
			j.fail("alarm", "etcdctl compact $(etcdctl endpoint status -w json | grep -o '\"revision\":[0-9]*' | head -1 | cut -d: -f2); etcdctl defrag --cluster; etcdctl alarm disarm",
				"%s: etcd accepts no writes, so no node is admitted and nothing is failed over", a)
		} else {
			j.fail("alarm", "etcdctl endpoint hashkv --cluster shows which member differs: replace it ('etcdctl member remove', then add it anew with an empty directory), then 'etcdctl alarm disarm'", "%s: a member's data is damaged", a)
		}
	}
	judgeEtcdMembers(&j, f)
	return j.found
}

func judgeEndpoint(j *judgement, e EndpointFact, f EtcdFacts, slow time.Duration) {
	if plain(e.Endpoint, f.TLS) {
		j.warn(e.Endpoint, "give etcd certificates; then ETCD_ENDPOINTS=https://… and ETCD_CACERT, ETCD_CERT, ETCD_KEY", "it is asked without TLS: who reads along can also write, and move VEs")
	}
	if e.Err != nil {
		j.fail(e.Endpoint, "on that machine: 'systemctl status etcd'; from here: 'etcdctl --endpoints "+e.Endpoint+" endpoint health'", "it gives no status: %v", e.Err)
		return
	}
	quota := e.Quota
	if quota == 0 {
		quota = usualQuota
	}
	switch {
	case e.ClusterID != f.ClusterID:
		j.fail(e.Endpoint, "take it out of ETCD_ENDPOINTS", "it belongs to another etcd cluster (%x) than the others (%x)", e.ClusterID, f.ClusterID)
	case f.ListErr == nil && len(f.Members) > 0 && !slices.ContainsFunc(f.Members, func(m EtcdMember) bool { return m.ID == e.Member }):
		j.warn(e.Endpoint, "take it out of ETCD_ENDPOINTS", "it answers, and is no member of this etcd any more")
	case e.Leader == 0:
		j.fail(e.Endpoint, "etcdctl endpoint status --cluster: is a majority of the members up?", "it knows of no leader: etcd accepts no writes")
	case e.Learner:
		j.warn(e.Endpoint, "etcdctl member promote", "it is a learner: it answers no requests of this cluster's and counts for no majority")
	case len(e.Errors) > 0:
		j.warn(e.Endpoint, "see the other lines, and that member's log", "it says: %s", strings.Join(e.Errors, "; "))
	case e.Latency > slow:
		j.warn(e.Endpoint, "look at its disk (etcd wants one of its own) and the network", "it answers after %s, want at most %s (LOCK_TIMEOUT/20): leases may end though their nodes live", round(e.Latency), slow)
	case e.Size > quota/5*4:
		j.warn(e.Endpoint, "switch compaction on (--auto-compaction-retention=1h), then 'etcdctl defrag --cluster'", "its database has %d MiB of %d MiB; when it is full nothing is failed over", e.Size>>20, quota>>20)
	default:
		j.ok(e.Endpoint, "answers after %s (version %s, %d MiB of %d MiB)", round(e.Latency), e.Version, e.Size>>20, quota>>20)
	}
}

func judgeEtcdMembers(j *judgement, f EtcdFacts) {
	if f.ListErr != nil || len(f.Members) == 0 {
		return // that nothing answers is said already
	}
	voters := 0
	for _, m := range f.Members {
		if !m.Learner {
			voters++
		}
	}
	switch {
	case voters == 1:
		j.warn("members", "add two members on other machines", "etcd has one member: when its machine dies nothing is failed over")
	case voters%2 == 0:
		j.warn("members", "add or remove one", "etcd has %d members that vote: it survives no more losses than with %d", voters, voters-1)
	default:
		j.ok("members", "%d members; %d of them may be lost", voters, (voters-1)/2)
	}
	for _, m := range f.Members {
		if !slices.ContainsFunc(f.Endpoints, func(e EndpointFact) bool { return e.Err == nil && e.Member == m.ID }) && !m.Learner && !anyDown(f) {
			j.warn("members", "add it to ETCD_ENDPOINTS on every node", "member %q (%x) is not among this node's ETCD_ENDPOINTS", m.Name, m.ID)
		}
	}
}

// anyDown tells whether an endpoint does not answer: which member it is, nobody knows then.
func anyDown(f EtcdFacts) bool {
	return slices.ContainsFunc(f.Endpoints, func(e EndpointFact) bool { return e.Err != nil })
}

// plain tells whether requests to an endpoint can be read on their way.
func plain(endpoint string, tls bool) bool {
	scheme, rest, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, rest = "", endpoint
	}
	if scheme == "https" || scheme == "unixs" || scheme == "unix" || scheme == "" && tls {
		return false
	}
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		host = rest
	}
	ip := net.ParseIP(host)
	return host != "localhost" && (ip == nil || !ip.IsLoopback())
}

var _ Client = (*clientv3.Client)(nil)
