package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ipmiMissing says what this machine lacks for simulated BMCs and the agent that
// speaks to them.
func ipmiMissing() error {
	var lacks []string
	for _, p := range []string{"ipmi_sim", "ipmitool", "fence_ipmilan"} {
		if _, err := exec.LookPath(p); err != nil {
			lacks = append(lacks, p)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("--ipmi needs %s; install with: apt-get install --no-install-recommends openipmi ipmitool fence-agents", strings.Join(lacks, ", "))
}

const ipmiPassword = "lab"

// writeBMC makes the configuration of a node's simulated BMC, and of the fence
// agent that switches the node off through it.
func (l *Lab) writeBMC(n Node) error {
	dir := filepath.Join(l.nodeDir(n), "bmc")
	lan := fmt.Sprintf(`name "%s"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa12345678900%s
  endlan
  chassis_control "%s 0x20"
  startnow false
  user 1 true "" "test" user 10 none md2 md5 straight
  user 2 true "admin" "%s" admin 10 none md2 md5 straight
`, n.Name, n.BMC, string(n.HostID)[12:], filepath.Join(dir, "power.sh"), ipmiPassword)
	emu := `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`
	power := fmt.Sprintf("#!/bin/sh\nexec '%s' chassis --dir '%s' %s -- \"$@\"\n", filepath.Join(l.Bin, "shaman-lab"), l.Dir, n.Name)
	fence := fmt.Sprintf("agent=fence_ipmilan\nip=127.0.0.1\nipport=%d\nusername=admin\npassword=%s\nlanplus=1\ncipher=3\npower_wait=0\n", n.BMC, ipmiPassword)
	return errors.Join(os.MkdirAll(filepath.Join(dir, "state"), 0o755),
		os.WriteFile(filepath.Join(dir, "lan.conf"), []byte(lan), 0o600),
		os.WriteFile(filepath.Join(dir, "node.emu"), []byte(emu), 0o600),
		os.WriteFile(filepath.Join(dir, "power.sh"), []byte(power), 0o755),
		os.WriteFile(filepath.Join(l.Dir, "fence.d", n.Name+".conf"), []byte(fence), 0o600))
}

// envBMC is by what a node's BMC is found again: it has power when the node has none.
const envBMC = "SHAMAN_LAB_BMC"

// startBMC starts a node's simulated BMC.
func (l *Lab) startBMC(n Node) error {
	dir := filepath.Join(l.nodeDir(n), "bmc")
	cmd := exec.Command("ipmi_sim", "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "node.emu"), "-s", filepath.Join(dir, "state"), "-n", "-d")
	cmd.Env = append(os.Environ(), envBMC+"="+dir)
	if err := launch(cmd, filepath.Join(dir, "log")); err != nil {
		return err
	}
	return waitFor("the BMC of "+n.Name, hostWait, func() (bool, error) {
		return exec.Command("ipmitool", "-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", fmt.Sprint(n.BMC), "-U", "admin", "-P", ipmiPassword, "chassis", "power", "status").Run() == nil, nil
	})
}

func (l *Lab) stopBMC(n Node) error {
	return killAll(envBMC, filepath.Join(l.nodeDir(n), "bmc"))
}
