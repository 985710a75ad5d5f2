package doctor

import (
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// JudgeLocal judges the reading of the local file. err may be several errors
// joined, each of which names its line.
func JudgeLocal(file string, warnings []string, err error) []Finding {
	j := judgement{check: Configuration}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			j.fail(file, "mend the line; without the file nothing else of the cluster can be checked", "%s", strings.TrimPrefix(strings.TrimSpace(line), file+":"))
		}
		return j.found
	}
	for _, w := range warnings {
		j.warn(file, "shaman get-config-local -v", "%s", w)
	}
	j.ok(file, "it can be used; 'shaman get-config-local -v' shows what holds")
	return j.found
}

// JudgeHostID judges what is known of this node's id.
func JudgeHostID(id cluster.NodeID, err error) []Finding {
	j := judgement{check: Configuration}
	switch {
	case err != nil:
		j.fail("host id", "mend the file that the message names, or set HOST_ID", "%v", err)
	case id == "":
		j.warn("host id", "shaman join", "this node has none yet; join makes one and keeps it in STATE_DIR")
	default:
		j.ok("host id", "%s", id)
	}
	return j.found
}
