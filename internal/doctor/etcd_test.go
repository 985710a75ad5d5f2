package doctor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func TestJudgeEtcd(t *testing.T) {
	three := func(change func(*EtcdFacts)) EtcdFacts {
		f := EtcdFacts{ClusterID: 7, TLS: true}
		for i, e := range []string{"a:2379", "b:2379", "c:2379"} {
			id := uint64(i + 1)
			f.Members = append(f.Members, EtcdMember{ID: id, Name: e[:1]})
			f.Endpoints = append(f.Endpoints, EndpointFact{Endpoint: e, Latency: time.Millisecond, Member: id, ClusterID: 7, Leader: 1, Version: "3.6.1", Size: 10 << 20})
		}
		if change != nil {
			change(&f)
		}
		return f
	}
	down := errors.New("connection refused")
	tests := []struct {
		name  string
		given EtcdFacts
		want  []string
		says  string
	}{
		{"all is well", three(nil), []string{"OK a:2379", "OK b:2379", "OK c:2379", "OK members"}, "1 of them may be lost"},
		{"one does not answer", three(func(f *EtcdFacts) { f.Endpoints[1].Err = down }), []string{"OK a:2379", "FAIL b:2379", "OK c:2379", "OK members"}, "refused"},
		{"one is slow", three(func(f *EtcdFacts) { f.Endpoints[1].Latency = 600 * time.Millisecond }), []string{"OK a:2379", "WARN b:2379", "OK c:2379", "OK members"}, "LOCK_TIMEOUT/20"},
		{"one has no leader", three(func(f *EtcdFacts) { f.Endpoints[1].Leader = 0 }), []string{"OK a:2379", "FAIL b:2379", "OK c:2379", "OK members"}, "no leader"},
		{"one is a learner", three(func(f *EtcdFacts) { f.Endpoints[2].Learner, f.Members[2].Learner = true, true }), []string{"OK a:2379", "OK b:2379", "WARN c:2379", "WARN members"}, "promote"},
		{"one of another cluster", three(func(f *EtcdFacts) { f.Endpoints[2].ClusterID = 8 }), []string{"OK a:2379", "OK b:2379", "FAIL c:2379", "OK members"}, "another etcd cluster"},
		{"one that is no member any more", three(func(f *EtcdFacts) { f.Endpoints[2].Member = 9; f.Members[2].ID = 4 }), []string{"OK a:2379", "OK b:2379", "WARN c:2379", "OK members", "WARN members"}, "no member of this etcd any more"},
		{"one is nearly full", three(func(f *EtcdFacts) { f.Endpoints[0].Size, f.Endpoints[0].Quota = 90, 100 }), []string{"WARN a:2379", "OK b:2379", "OK c:2379", "OK members"}, "defrag"},
		{"one complains", three(func(f *EtcdFacts) { f.Endpoints[0].Errors = []string{"etcdserver: no leader"} }), []string{"WARN a:2379", "OK b:2379", "OK c:2379", "OK members"}, "it says"},
		{"versions differ", three(func(f *EtcdFacts) { f.Endpoints[0].Version = "3.5.0" }), []string{"OK a:2379", "OK b:2379", "OK c:2379", "WARN versions", "OK members"}, "3.5.0, 3.6.1"},
		{"it is full", three(func(f *EtcdFacts) { f.Alarms = []string{"NOSPACE on member 1"} }), []string{"OK a:2379", "OK b:2379", "OK c:2379", "FAIL alarm", "OK members"}, "etcdctl alarm disarm"},
		{"it is damaged", three(func(f *EtcdFacts) { f.Alarms = []string{"CORRUPT on member 2"} }), []string{"OK a:2379", "OK b:2379", "OK c:2379", "FAIL alarm", "OK members"}, "damaged"},
		{"two members", three(func(f *EtcdFacts) { f.Members, f.Endpoints = f.Members[:2], f.Endpoints[:2] }), []string{"OK a:2379", "OK b:2379", "WARN members"}, "no more losses than with 1"},
		{"one member", three(func(f *EtcdFacts) { f.Members, f.Endpoints = f.Members[:1], f.Endpoints[:1] }), []string{"OK a:2379", "WARN members"}, "one member"},
		{"a member that is not listed here", three(func(f *EtcdFacts) { f.Endpoints = f.Endpoints[:2] }), []string{"OK a:2379", "OK b:2379", "OK members", "WARN members"}, `member "c" (3)`},
		{"without TLS", three(func(f *EtcdFacts) { f.TLS, f.Endpoints = false, f.Endpoints[:1]; f.Members = f.Members[:1] }), []string{"WARN a:2379", "OK a:2379", "WARN members"}, "without TLS"},
		{"all is away", EtcdFacts{Err: down, ListErr: down, TLS: true, Endpoints: []EndpointFact{{Endpoint: "a:2379", Err: down}}}, []string{"FAIL", "FAIL a:2379"}, "VEs run on"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { verdict(t, JudgeEtcd(tt.given, 10*time.Second), tt.want, tt.says) })
	}
}

func TestPlain(t *testing.T) {
	for endpoint, want := range map[string]bool{
		"http://10.0.0.1:2379": true, "https://10.0.0.1:2379": false, "10.0.0.1:2379": true, "etcd1:2379": true, "localhost:2379": false, "127.0.0.1:2379": false,
		"http://[::1]:2379": false, "http://etcd1": true, "unix:///run/etcd.sock": false,
	} {
		if got := plain(endpoint, false); got != want {
			t.Errorf("%s: %t, want %t", endpoint, got, want)
		}
	}
	if plain("10.0.0.1:2379", true) {
		t.Error("an endpoint without a scheme is asked with TLS if there is a certificate")
	}
}

func TestAskEtcd(t *testing.T) {
	s := etcdtest.Start(t)
	cable := s.Cable(t)
	cl, err := etcd.Dial(etcd.Options{Endpoints: []string{cable.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	f := AskEtcd(t.Context(), cl, []string{cable.Endpoint(), "127.0.0.1:1"})
	verdict(t, JudgeEtcd(f, time.Minute), []string{"OK " + cable.Endpoint(), "FAIL 127.0.0.1:1", "WARN members"}, "no answer within 2s")
	if f.ClusterID == 0 || len(f.Members) != 1 || f.Endpoints[0].Version == "" {
		t.Errorf("it said %+v", f)
	}
	if _, err := cl.AlarmList(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// hung is an etcd that never answers.
type hung struct{}

func (hung) Status(ctx context.Context, _ string) (*clientv3.StatusResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hung) MemberList(ctx context.Context, _ ...clientv3.OpOption) (*clientv3.MemberListResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hung) AlarmList(ctx context.Context) (*clientv3.AlarmResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAHungEtcdIsAskedOnce(t *testing.T) {
	begin := time.Now()
	f := AskEtcd(t.Context(), hung{}, []string{"a:1", "b:1"})
	if took := time.Since(begin); took > 2*etcd.RequestTimeout {
		t.Errorf("it took %s", took)
	}
	if f.Endpoints[0].Err == nil || f.Endpoints[1].Err == nil || f.ListErr == nil {
		t.Errorf("no error: %+v", f)
	}
}
