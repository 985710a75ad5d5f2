package cli

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/shaman-ha/shaman/internal/doctor"
)

func someFindings() doctorJSON {
	fs := []doctor.Finding{
		{Check: doctor.Configuration, Level: doctor.OK, Subject: "/etc/shaman/shaman.conf", Message: "it can be used"},
		{Check: doctor.Mount, Level: doctor.Warn, Subject: "/mnt/vol", Message: "NFS remembers attributes for up to 60 s (acdirmax)", Mend: "in /etc/fstab: acdirmax=3"},
		{Check: doctor.Fencing, Level: doctor.OK, Subject: "node2", Message: "power is on by fence_ipmilan (120ms)"},
		{Check: doctor.Fencing, Level: doctor.Fail, Subject: "node3", Message: "its fence agent gives no status from here: \x1b[31mno route\nto host", Mend: "mend it, then 'shaman fence test node3'"},
		{Check: doctor.Versions, Level: doctor.OK, Message: "version 1.2.3 on 3 nodes"},
	}
	return doctorJSON{HostID: n1, Findings: fs, OK: 3, Warn: 1, Fail: 1}
}

func TestDoctorOutput(t *testing.T) {
	var table, terminal bytes.Buffer
	renderDoctor(&table, someFindings(), false)
	golden(t, "doctor.txt", table.String())
	renderDoctor(&terminal, someFindings(), true)
	if !bytes.Contains(terminal.Bytes(), []byte("\x1b[1;31mFAIL\x1b[0m")) || bytes.Contains(terminal.Bytes(), []byte("\x1b[31mno route")) {
		t.Errorf("on a terminal it is %q", &terminal)
	}
	b, err := jsonBytes(someFindings())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "doctor.json", string(b)+"\n")
}

// doctorContract is every field that doctor's JSON must have.
const doctorContract = `{"host_id":"id","findings":[{"check":"c","level":"OK","subject":"s","message":"m","mend":""}],"ok":1,"warn":1,"fail":1}`

func checkDoctor(data []byte) error {
	var want, got any
	if err := json.Unmarshal([]byte(doctorContract), &want); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &got); err != nil {
		return err
	}
	for _, err := range compare("", want, got) {
		return err
	}
	return nil
}

func TestDoctorContract(t *testing.T) {
	b, err := jsonBytes(someFindings())
	if err == nil {
		err = checkDoctor(b)
	}
	if err != nil {
		t.Error(err)
	}
}
