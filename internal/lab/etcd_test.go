package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// still proves that nothing was touched: no VE was started anew, no failover opened.
func (c *cluster) still(what string, lives int) {
	c.t.Helper()
	c.waitActive()
	c.waitRunning()
	if now := c.lives(); now != lives {
		c.t.Errorf("%s: %d VEs were started anew", what, now-lives)
	}
	for _, f := range c.mustStat().Failovers {
		c.t.Errorf("%s: a failover of %s was opened (%s, %s)", what, f.Node, f.Phase, f.Reason)
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// TestEtcdInTrouble: whatever becomes of etcd, no VE is touched; it is told, and it
// goes on by itself.
func TestEtcdInTrouble(t *testing.T) {
	t.Parallel()
	c := start(t, func(o *lab.Options) { o.EtcdMembers = 3 })
	lives := c.lives()
	for _, m := range c.Members {
		c.must(c.PauseEtcd(m))
		time.Sleep(3 * c.LockTimeout)
		c.must(c.ResumeEtcd(m))
		c.still("a member that hangs", lives)
	}
	for range 2 {
		m := c.leader()
		c.must(c.StopEtcd(m))
		time.Sleep(2 * c.LockTimeout)
		c.must(c.StartEtcd(m))
		c.still("the death of the leader", lives)
	}

	// Without a quorum, for ten LOCK_TIMEOUTs.
	c.must(c.StopEtcd(c.Members[0]))
	c.must(c.StopEtcd(c.Members[1]))
	c.wait("the daemons to say that they are not ready", func() bool {
		return !ready(c.Nodes[0]) && !ready(c.Nodes[1]) && !ready(c.Nodes[2])
	})
	begin := time.Now()
	out, err := c.Shaman(c.ctx, c.Nodes[0], "stat")
	if err == nil || !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(out, "ve001") {
		t.Errorf("stat without a quorum: %v\n%s", err, out)
	}
	if v := c.metric(c.Nodes[1], "shaman_election_lease_validity_seconds"); v != "0" {
		t.Errorf("without a quorum the lease is said to be valid for %s s", v)
	}
	time.Sleep(10*c.LockTimeout - time.Since(begin))
	c.must(c.StartEtcd(c.Members[0]))
	c.must(c.StartEtcd(c.Members[1]))
	c.still("no quorum for ten LOCK_TIMEOUTs", lives)

	c.full(lives)
	c.compacted(lives)
	c.refused(lives)

	// After all that it still does what it is for.
	_, others := c.master()
	inc := c.mustStat().incarnation(others[0])
	c.must(c.Kill(others[0]))
	c.waitDone(others[0], inc)
	c.waitRunning()
}

// full: etcd takes no writes. Renewals go on, so nothing is lost; and a node that
// dies meanwhile is failed over once there is room.
func (c *cluster) full(lives int) {
	c.t.Helper()
	alarm := func(a pb.AlarmRequest_AlarmAction) {
		c.t.Helper()
		var err error
		c.wait("etcd to take an alarm", func() bool {
			ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
			defer cancel()
			st, serr := c.cl.Status(ctx, c.Members[0].Endpoint())
			if serr != nil {
				return false
			}
			_, err = pb.NewMaintenanceClient(c.cl.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{Action: a, MemberID: st.Header.MemberId, Alarm: pb.AlarmType_NOSPACE})
			return err == nil
		})
	}
	alarm(pb.AlarmRequest_ACTIVATE)
	c.waitStat("stat to say that etcd is full", func(s stat) bool { return s.Etcd == "nospace" })
	time.Sleep(3 * c.LockTimeout)
	_, others := c.master()
	n := others[0]
	inc := c.mustStat().incarnation(n)
	c.must(c.Kill(n))
	time.Sleep(3 * c.LockTimeout)
	if s := c.mustStat(); len(s.Failovers) != 0 {
		c.t.Errorf("a full etcd recorded failovers: %v", s.Failovers)
	}
	alarm(pb.AlarmRequest_DEACTIVATE)
	c.waitDone(n, inc)
	c.must(c.Start(n))
	c.waitActive()
	c.waitRunning()
	c.check()
	if now := c.lives(); now != lives+4 {
		c.t.Errorf("a full etcd and a dead node: %d VEs were started, want the 4 of that node", now-lives)
	}
}

// compacted: what a watch has missed is gone when it comes back.
func (c *cluster) compacted(int) {
	c.t.Helper()
	lives, done := c.lives(), len(c.mustStat().Failovers)
	for _, n := range c.Nodes {
		c.must(c.SetCut(n, lab.Cut{Etcd: "hang"}))
	}
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	var rev int64
	for range 3 {
		r, err := c.cl.Put(ctx, "/shaman/"+c.ClusterName+"/config/LOG", "x")
		c.must(err)
		rev = r.Header.Revision
	}
	_, err := c.cl.Delete(ctx, "/shaman/"+c.ClusterName+"/config/LOG")
	c.must(err)
	_, err = c.cl.Compact(ctx, rev, clientv3.WithCompactPhysical())
	c.must(err)
	for _, n := range c.Nodes {
		c.must(c.SetCut(n, lab.Cut{}))
	}
	c.waitActive()
	c.waitRunning()
	if now := c.lives(); now != lives || len(c.mustStat().Failovers) != done {
		c.t.Errorf("a compaction under watches: %d VEs were started, %d failovers more", now-lives, len(c.mustStat().Failovers)-done)
	}
}

// refused: etcd suddenly wants to know who asks.
func (c *cluster) refused(int) {
	c.t.Helper()
	lives, done := c.lives(), len(c.mustStat().Failovers)
	ctx, cancel := context.WithTimeout(c.ctx, 60*time.Second)
	defer cancel()
	_, err := c.cl.UserAdd(ctx, "root", "secret")
	c.must(err)
	_, err = c.cl.UserGrantRole(ctx, "root", "root")
	c.must(err)
	_, err = c.cl.AuthEnable(ctx)
	c.must(err)
	c.wait("the daemons to say that they are not ready", func() bool { return !ready(c.Nodes[0]) && !ready(c.Nodes[1]) && !ready(c.Nodes[2]) })
	if _, err := c.Shaman(c.ctx, c.Nodes[0], "stat"); err == nil || !strings.Contains(err.Error(), "ETCD_USERNAME") {
		c.t.Errorf("stat where etcd refuses: %v; want it to name ETCD_USERNAME", err)
	}
	time.Sleep(3 * c.LockTimeout)
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{c.Members[0].Endpoint()}, Username: "root", Password: "secret", DialTimeout: 5 * time.Second})
	c.must(err)
	defer root.Close()
	_, err = root.AuthDisable(ctx)
	c.must(err)
	c.waitActive()
	c.waitRunning()
	if now := c.lives(); now != lives || len(c.mustStat().Failovers) != done {
		c.t.Errorf("refused by etcd: %d VEs were started, %d failovers more", now-lives, len(c.mustStat().Failovers)-done)
	}
}

// leader is etcd's.
func (c *cluster) leader() lab.Member {
	c.t.Helper()
	var out lab.Member
	c.wait("etcd's leader", func() bool {
		for _, m := range c.Members {
			ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
			st, err := c.cl.Status(ctx, m.Endpoint())
			cancel()
			if err == nil && st.Leader == st.Header.MemberId {
				out = m
				return true
			}
		}
		return false
	})
	return out
}

// metric is the value of a metric without labels, as the node's daemon shows it.
func (c *cluster) metric(n lab.Node, name string) string {
	c.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", n.HTTP))
	c.must(err)
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			return v
		}
	}
	return ""
}
