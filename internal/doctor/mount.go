package doctor

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// StoreFacts is what the mount itself says.
type StoreFacts struct {
	Hangs bool // it did not answer; all else is unknown
	// The identity, .shaman/cluster.
	Founded  bool // there is one
	Cluster  string
	UUID     string
	EtcdID   uint64 // the etcd that it was made with
	IdentErr error
	// What etcd and the local file say; "" and 0 if not known.
	WantCluster, WantUUID string
	WantEtcdID            uint64
	Space                 Space
	SpaceErr              error
}

// local are file systems of one machine.
var local = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay", "tmpfs", "ramfs", "squashfs", "rootfs"}

// shared are file systems of many machines that give what is asked of them by
// their design.
var shared = []string{"ceph", "fuse.ceph", "fuse.ceph-fuse", "fuse.vstorage", "fuse.pstorage", "vstorage", "gpfs", "lustre", "beegfs"}

const (
	attrLimit  = 3 // seconds that attributes may be remembered
	attrUsual  = 60
	nfsOptions = "vers=4.2,hard,lookupcache=positive,acregmax=3,acdirmax=3"
)

// JudgePlace judges where CLUSTER_MOUNT lies and how it is mounted.
func JudgePlace(m MountFacts, founded bool) []Finding {
	j := judgement{check: Mount}
	if m.Err != nil {
		j.warn(m.Path, "findmnt "+m.Path, "what is mounted there cannot be told: %v", m.Err)
		return j.found
	}
	what := fmt.Sprintf("%s (%s)", m.Type, m.Source)
	isLocal := slices.Contains(local, m.Type)
	switch {
	case !m.Exact && isLocal && !founded:
		j.fail(m.Path, "mount the shared file system: 'mount "+m.Path+"', and a line in /etc/fstab so that it is mounted at boot",
			"nothing is mounted there: it lies on %s of %s, and holds no cluster; a local directory is not seen by other nodes", what, m.Point)
		return j.found
	case isLocal:
		j.warn(m.Path, "mount a file system that all nodes share; in a lab on one machine this is meant so",
			"%s is no shared file system: other machines do not see it", what)
	case !m.Exact:
		j.warn(m.Path, "set CLUSTER_MOUNT to the mount point, or make sure that "+m.Path+" is never there while "+m.Point+" is not mounted",
			"it is a directory on %s, mounted at %s, and no mount point of its own", what, m.Point)
	}
	if _, ro := m.option("ro"); ro {
		j.fail(m.Path, "mount -o remount,rw "+m.Point+", and find out why: the kernel does that by itself after errors of the storage",
			"it is mounted read-only: no heartbeat, no claim")
	}
	switch {
	case isLocal:
	case m.Type == "nfs" || m.Type == "nfs4":
		judgeNFS(&j, m)
	case m.Type == "fuse.glusterfs":
		j.warn(m.Path, "gluster volume info: want one distribute subvolume ('Number of Bricks: 1 x N')",
			"GlusterFS with several distribute subvolumes renames a directory in steps, and a takeover is such a rename; how many there are cannot be seen from here")
	case m.Type == "gfs2" || m.Type == "ocfs2":
		j.warn(m.Path, "test the file system's own fencing, and give every node a fence agent",
			"%s stands still on all nodes until its own fencing is done, and shares fate with the cluster network: its heartbeat is not an independent channel", m.Type)
	case slices.Contains(shared, m.Type):
		j.ok(m.Path, "%s", what)
	case strings.HasPrefix(m.Type, "cifs"), strings.HasPrefix(m.Type, "smb"), m.Type == "9p", m.Type == "virtiofs":
		j.warn(m.Path, "mount it with caching off (cache=none), or take another file system", "%s may answer reads from its cache; nobody has tried failovers on it", what)
	default:
		j.warn(m.Path, "try a failover on it before you trust it", "%s is not known here; the check 'visibility' tells what can be measured", what)
	}
	return j.found
}

func judgeNFS(j *judgement, m MountFacts) {
	mend := "in /etc/fstab: " + nfsOptions + "; on the server: export with 'sync'"
	before := len(j.found)
	_, noac := m.option("noac")
	lookup, _ := m.option("lookupcache")
	for _, name := range []string{"acregmax", "acdirmax"} {
		is := attrUsual // what the kernel takes if nothing is said, and then does not show
		if v, ok := m.option(name); ok {
			if n, err := strconv.Atoi(v); err == nil {
				is = n
			}
		}
		if noac || is <= attrLimit {
			continue
		}
		why := "others' changes of a file are seen late where it is not opened anew"
		if name == "acdirmax" {
			why = "a resource that another node has taken or given is seen late"
			if lookup == "" || lookup == "all" {
				why += ", and a name that was absent once stays so for that long (lookupcache=all)"
			}
		}
		j.warn(m.Path, mend, "NFS remembers attributes for up to %d s (%s): %s", is, name, why)
	}
	for _, soft := range []string{"soft", "softerr"} {
		if _, ok := m.option(soft); ok {
			j.warn(m.Path, mend, "it is mounted '%s': a server that is away for a while becomes write errors within guests; shaman has deadlines of its own", soft)
		}
	}
	if v, ok := m.option("vers"); ok && !strings.HasPrefix(v, "4") {
		j.warn(m.Path, mend, "NFS version %s: the file locks of a dead node stay until it is back, and hold up the start of its VEs elsewhere", v)
	}
	if len(j.found) == before {
		j.ok(m.Path, "%s (%s), with options that are seen soon enough; whether the server exports it 'sync' cannot be seen from here", m.Type, m.Source)
	}
}

// JudgeStore judges what lies on the mount.
func JudgeStore(mount string, s StoreFacts) []Finding {
	j := judgement{check: Mount}
	if s.Hangs {
		j.fail(mount, "look at the storage server and the network; on another node: 'shaman stat -v'",
			"the file system does not answer: no heartbeat is written from here, and VEs that write stand still; nothing else of it was tried")
		return j.found
	}
	file := filepath.Join(mount, ".shaman", "cluster")
	switch {
	case s.IdentErr != nil && errors.Is(s.IdentErr, cluster.ErrHold):
		j.fail(file, "look at the storage server and the network", "whose mount this is cannot be read, so nothing is moved or started here: %s", cluster.OneLine(s.IdentErr))
		return j.found
	case s.IdentErr != nil:
		j.fail(file, "see the message; the file must stay as it is: its uuid identifies the cluster", "whose mount this is cannot be told: %s", cluster.OneLine(s.IdentErr))
	case !s.Founded && s.WantUUID != "":
		j.fail(mount, "mount the file system of this cluster there", "there is no cluster on it, and cluster %s lives on the file system with uuid %s", s.WantCluster, s.WantUUID)
	case !s.Founded:
		j.warn(mount, "shaman join", "there is no cluster on it yet; the first node to join makes it")
	case s.Cluster != s.WantCluster:
		j.fail(file, "mount the right file system, or mend CLUSTER_NAME or CLUSTER_MOUNT", "it is of cluster %q, not %q", s.Cluster, s.WantCluster)
	case s.WantUUID != "" && s.UUID != s.WantUUID:
		j.fail(file, "mount the right file system", "its uuid is %s; cluster %s lives on %s", s.UUID, s.WantCluster, s.WantUUID)
	case s.WantEtcdID != 0 && s.EtcdID != 0 && s.EtcdID != s.WantEtcdID:
		j.fail(file, "mend ETCD_ENDPOINTS; if etcd was rebuilt: stop all daemons, then 'shaman join --recover' on each node",
			"it was made with etcd cluster %x, and ETCD_ENDPOINTS lead to %x", s.EtcdID, s.WantEtcdID)
	default:
		j.ok(file, "this is the mount of cluster %s (uuid %s)", s.Cluster, s.UUID)
	}
	judgeSpace(&j, mount, s)
	return j.found
}

// spaceLimit is the part of a file system, in percent, that should stay free.
const spaceLimit = 5

func judgeSpace(j *judgement, mount string, s StoreFacts) {
	mend := "df -h " + mount + "; df -i " + mount
	if s.SpaceErr != nil {
		j.warn(mount, mend, "%v", s.SpaceErr)
		return
	}
	worst := uint64(100)
	for _, of := range []struct {
		what      string
		all, free uint64
	}{{"space", s.Space.Blocks, s.Space.Free}, {"inodes", s.Space.Files, s.Space.Nodes}} {
		if of.all == 0 {
			continue
		}
		percent := uint64(float64(of.free) / float64(of.all) * 100)
		worst = min(worst, percent)
		switch {
		case of.free == 0:
			j.fail(mount, mend, "there is no %s left: no resource can be written, and nothing is taken over", of.what)
		case percent < spaceLimit:
			j.warn(mount, mend, "only %d %% of its %s is free; once there is none nothing can be taken over", percent, of.what)
		}
	}
	if worst >= spaceLimit && s.Space.Blocks > 0 {
		j.ok(mount, "%d %% free", worst)
	}
}

// JudgeWrites judges how long durable writes of 4 KiB took, against the probe
// deadline within which each heartbeat has to be on the storage.
func JudgeWrites(mount string, took []time.Duration, deadline time.Duration) []Finding {
	j := judgement{check: Mount}
	if len(took) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(took))
	middle, slowest := sorted[len(sorted)/2], sorted[len(sorted)-1]
	says := fmt.Sprintf("a durable write takes %s (slowest of %d: %s)", round(middle), len(took), round(slowest))
	mend := "look at the storage's load and its write cache; or give it more time: 'shaman set-config HEARTBEAT_INTERVAL=…', see 'shaman get-config -v'"
	switch {
	case middle > deadline:
		j.fail(mount, mend, "%s: a heartbeat has to be done within %s, so this node loses contact with the mount again and again", says, deadline)
	case slowest > deadline/4:
		j.warn(mount, mend, "%s; a heartbeat has to be done within %s", says, deadline)
	default:
		j.ok(mount, "%s; a heartbeat has to be done within %s", says, deadline)
	}
	return j.found
}
