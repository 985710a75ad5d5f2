package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestJudgePlace(t *testing.T) {
	nfs := func(options string) MountFacts {
		return MountFacts{Path: "/vol", Point: "/vol", Exact: true, Type: "nfs4", Source: "server:/vol", Options: strings.Split(options, ",")}
	}
	of := func(kind string) MountFacts {
		return MountFacts{Path: "/vol", Point: "/vol", Exact: true, Type: kind, Source: "x", Options: []string{"rw"}}
	}
	tests := []struct {
		name    string
		given   MountFacts
		founded bool
		want    []string
		says    string
	}{
		{"NFS as recommended", nfs("rw,vers=4.2,hard,lookupcache=pos,acregmax=3,acdirmax=3"), true, []string{"OK /vol"}, "sync"},
		{"NFS without any attribute cache", nfs("rw,vers=4.2,hard,noac"), true, []string{"OK /vol"}, ""},
		{"NFS with the usual caches, which the kernel does not show", nfs("rw,vers=4.2,hard"), true, []string{"WARN /vol", "WARN /vol"}, "absent once"},
		{"NFS with a long directory cache", nfs("rw,vers=4.2,hard,lookupcache=pos,acregmax=1,acdirmax=30"), true, []string{"WARN /vol"}, "up to 30 s (acdirmax)"},
		{"NFS soft", nfs("rw,vers=4.2,soft,acregmax=1,acdirmax=1"), true, []string{"WARN /vol"}, "write errors within guests"},
		{"NFS 3", nfs("rw,vers=3,hard,acregmax=1,acdirmax=1"), true, []string{"WARN /vol"}, "version 3"},
		{"mounted read-only", nfs("ro,vers=4.2,hard,acregmax=1,acdirmax=1"), true, []string{"FAIL /vol", "OK /vol"}, "remount,rw"},
		{"CephFS", of("ceph"), true, []string{"OK /vol"}, ""},
		{"GlusterFS", of("fuse.glusterfs"), true, []string{"WARN /vol"}, "cannot be seen from here"},
		{"GFS2", of("gfs2"), true, []string{"WARN /vol"}, "own fencing"},
		{"SMB", of("cifs"), true, []string{"WARN /vol"}, "cache"},
		{"one that nobody has tried", of("fuse.mine"), true, []string{"WARN /vol"}, "not known here"},
		{"a local disk of its own", of("ext4"), true, []string{"WARN /vol"}, "no shared file system"},
		{"the directory under a lost mount", MountFacts{Path: "/vol", Point: "/", Type: "ext4", Source: "/dev/sda1", Options: []string{"rw"}}, false, []string{"FAIL /vol"}, "nothing is mounted there"},
		{"a lab's plain directory", MountFacts{Path: "/vol", Point: "/", Type: "ext4", Source: "/dev/sda1", Options: []string{"rw"}}, true, []string{"WARN /vol"}, "lab"},
		{"a directory within a shared file system", MountFacts{Path: "/vol/a", Point: "/vol", Type: "ceph", Options: []string{"rw"}}, true, []string{"WARN /vol/a", "OK /vol/a"}, "no mount point of its own"},
		{"no table of mounts", MountFacts{Path: "/vol", Err: errors.New("no /proc")}, true, []string{"WARN /vol"}, "no /proc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { verdict(t, JudgePlace(tt.given, tt.founded), tt.want, tt.says) })
	}
}

func TestJudgeStore(t *testing.T) {
	good := StoreFacts{Founded: true, Cluster: "prod", UUID: "u1", EtcdID: 7, WantCluster: "prod", WantUUID: "u1", WantEtcdID: 7, Space: Space{Blocks: 100, Free: 50, Files: 100, Nodes: 60}}
	const file = " /vol/.shaman/cluster"
	tests := []struct {
		name  string
		given func(*StoreFacts)
		want  []string
		says  string
	}{
		{"all is well", func(*StoreFacts) {}, []string{"OK" + file, "OK /vol"}, "50 % free"},
		{"it hangs: nothing else is known", func(s *StoreFacts) { *s = StoreFacts{Hangs: true} }, []string{"FAIL /vol"}, "does not answer"},
		{"errors of the storage", func(s *StoreFacts) { s.IdentErr = fmt.Errorf("open: %w: EIO", cluster.ErrHold) }, []string{"FAIL" + file}, "EIO"},
		{"a damaged identity", func(s *StoreFacts) { s.IdentErr = errors.New("it has no uuid") }, []string{"FAIL" + file, "OK /vol"}, "must stay as it is"},
		{"no cluster yet", func(s *StoreFacts) { s.Founded, s.WantUUID = false, "" }, []string{"WARN /vol", "OK /vol"}, "shaman join"},
		{"no cluster on it, and etcd knows of one", func(s *StoreFacts) { s.Founded = false }, []string{"FAIL /vol", "OK /vol"}, "uuid u1"},
		{"another cluster's", func(s *StoreFacts) { s.Cluster = "test" }, []string{"FAIL" + file, "OK /vol"}, `"test"`},
		{"another mount of the same name", func(s *StoreFacts) { s.UUID = "u2" }, []string{"FAIL" + file, "OK /vol"}, "u2"},
		{"another etcd", func(s *StoreFacts) { s.EtcdID = 8 }, []string{"FAIL" + file, "OK /vol"}, "--recover"},
		{"etcd is away: nothing to compare with", func(s *StoreFacts) { s.WantUUID, s.WantEtcdID = "", 0 }, []string{"OK" + file, "OK /vol"}, ""},
		{"hardly any space", func(s *StoreFacts) { s.Space.Free = 4 }, []string{"OK" + file, "WARN /vol"}, "4 % of its space"},
		{"no space", func(s *StoreFacts) { s.Space.Free = 0 }, []string{"OK" + file, "FAIL /vol"}, "no space left"},
		{"no inodes", func(s *StoreFacts) { s.Space.Nodes = 0 }, []string{"OK" + file, "FAIL /vol"}, "no inodes left"},
		{"a file system that counts no inodes", func(s *StoreFacts) { s.Space.Files, s.Space.Nodes = 0, 0 }, []string{"OK" + file, "OK /vol"}, ""},
		{"the space is not known", func(s *StoreFacts) { s.SpaceErr = ErrHangs }, []string{"OK" + file, "WARN /vol"}, "df -h"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good
			tt.given(&s)
			verdict(t, JudgeStore("/vol", s), tt.want, tt.says)
		})
	}
}

func TestJudgeWrites(t *testing.T) {
	ms := func(ds ...int) (out []time.Duration) {
		for _, d := range ds {
			out = append(out, time.Duration(d)*time.Millisecond)
		}
		return out
	}
	tests := []struct {
		name  string
		given []time.Duration
		want  []string
		says  string
	}{
		{"nothing was written", nil, nil, ""},
		{"quick", ms(2, 3, 2), []string{"OK /vol"}, "2ms (slowest of 3: 3ms)"},
		{"one was slow", ms(2, 3, 900, 2, 2), []string{"WARN /vol"}, "900ms"},
		{"one was beyond the deadline", ms(2, 3, 3000, 2, 2), []string{"WARN /vol"}, "3s"},
		{"most are beyond it", ms(2500, 2100, 2200), []string{"FAIL /vol"}, "loses contact"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { verdict(t, JudgeWrites("/vol", tt.given, 2*time.Second), tt.want, tt.says) })
	}
}
