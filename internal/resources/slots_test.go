package resources

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

func beat(nonce string, seq int64) Heartbeat {
	return Heartbeat{V: 1, Host: n1, Inc: 3, Boot: "b", HW: "hw", Nonce: nonce, Seq: seq, Clean: true}
}

func slotFile(s *Store, name string) string { return filepath.Join(s.nodeDir(n1), name) }

// The layout is a contract: other tools read slots.
func TestASlotIsJSONPaddedWithNULsAndClosedByItsChecksum(t *testing.T) {
	s := newTestStore(t, n1)
	try(t, writeSlot(slotFile(s, slotHeartbeat), beat("p", 7)))
	data, err := os.ReadFile(slotFile(s, slotHeartbeat))
	try(t, err)
	const body = `{"v":1,"host":"0000000000000001","inc":3,"boot":"b","hw":"hw","nonce":"p","seq":7,"clean":true}`
	if diff := cmp.Diff(body+strings.Repeat("\x00", 4092-len(body)), string(data[:4092])); diff != "" {
		t.Error(diff)
	}
	if got, want := binary.LittleEndian.Uint32(data[4092:]), crc32.Checksum(data[:4092], crc32.MakeTable(crc32.Castagnoli)); got != want || len(data) != 4096 {
		t.Errorf("checksum %08x, want %08x; %d bytes", got, want, len(data))
	}
}

func TestWhatASlotHoldsIsReadBack(t *testing.T) {
	s := newTestStore(t, n1)
	for _, want := range []Heartbeat{beat(strings.Repeat("long", 500), 1), beat("short", 2)} {
		try(t, writeSlot(slotFile(s, slotHeartbeat), want))
		got, err := s.ReadHeartbeat(t.Context(), n1, time.Minute)
		try(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestARecordThatDoesNotFitIsRefusedAndTheOldOneStays(t *testing.T) {
	s := newTestStore(t, n1)
	try(t, writeSlot(slotFile(s, slotHeartbeat), beat("p", 1)))
	if err := writeSlot(slotFile(s, slotHeartbeat), beat(strings.Repeat("x", 4092), 2)); err == nil {
		t.Error("a record larger than the slot was written")
	}
	got, err := s.ReadHeartbeat(t.Context(), n1, time.Minute)
	if err != nil || got != beat("p", 1) {
		t.Errorf("the slot holds %v, %v", got, err)
	}
}

func TestSlotsWithoutACompleteRecord(t *testing.T) {
	var whole [slotSize]byte
	try(t, block(whole[:], beat("p", 1)))
	sealed := func(body string) string { // of any content, with a checksum that is right
		b := make([]byte, slotSize)
		copy(b, body)
		binary.LittleEndian.PutUint32(b[slotSize-4:], crc32.Checksum(b[:slotSize-4], castagnoli))
		return string(b)
	}
	for _, tt := range []struct {
		name, content string
		torn          bool
	}{
		{"never written", strings.Repeat("\x00", slotSize), true},
		{"torn in the middle of a record", string(whole[:50]) + strings.Repeat("\x00", slotSize-54) + string(whole[slotSize-4:]), true},
		{"half of it is older", strings.Repeat("x", 512) + string(whole[512:]), true},
		{"too short", string(whole[:1000]), true},
		{"empty, as a crash of the storage leaves it", "", true},
		{"a right checksum over nothing", sealed(""), true},
		{"a right checksum over something else", sealed("hello"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t, n1)
			try(t, os.WriteFile(slotFile(s, slotHeartbeat), []byte(tt.content), 0o644))
			got, err := s.ReadHeartbeat(t.Context(), n1, time.Minute)
			if err == nil || errors.Is(err, ErrTorn) != tt.torn {
				t.Errorf("read %v, %v; want torn: %v", got, err, tt.torn)
			}
		})
	}
}

func TestEveryFlippedBitOfASlotIsNoticed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b [slotSize]byte
		try(t, block(b[:], beat("p", rapid.Int64().Draw(t, "seq"))))
		b[rapid.IntRange(0, slotSize-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		var hb Heartbeat
		if err := unblock(b[:], &hb); !errors.Is(err, ErrTorn) {
			t.Fatalf("read %v, %v", hb, err)
		}
	})
}

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, s *Store)
		former  []string
		want    error // nil: in contact
	}{
		{name: "a slot that was never written", prepare: func(*testing.T, *Store) {}},
		{name: "this process wrote it last", prepare: func(t *testing.T, s *Store) { try(t, writeSlot(slotFile(s, slotHeartbeat), beat("me", 1))) }},
		{name: "an earlier process of this node wrote it", former: []string{"old"}, prepare: func(t *testing.T, s *Store) { try(t, writeSlot(slotFile(s, slotHeartbeat), beat("old", 1))) }},
		{name: "another machine writes it", prepare: func(t *testing.T, s *Store) { try(t, writeSlot(slotFile(s, slotHeartbeat), beat("foreign", 1))) }, want: cluster.ErrForeignNonce},
		{name: "a slot that lost its size is written whole again", prepare: func(t *testing.T, s *Store) { try(t, os.Truncate(slotFile(s, slotHeartbeat), 0)) }},
		{name: "an order slot in the middle of a write", prepare: func(t *testing.T, s *Store) {
			try(t, os.WriteFile(slotFile(s, slotOrder), []byte(strings.Repeat("x", slotSize)), 0o644))
		}},
		{name: "an order slot that is missing is no contact", prepare: func(t *testing.T, s *Store) { try(t, os.Remove(slotFile(s, slotOrder))) }, want: fs.ErrNotExist},
		{name: "a heartbeat slot that is missing is never made", prepare: func(t *testing.T, s *Store) { try(t, os.Remove(slotFile(s, slotHeartbeat))) }, want: fs.ErrNotExist},
		{name: "the mount is gone", prepare: func(t *testing.T, s *Store) { try(t, os.RemoveAll(s.root)) }, want: fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t, n1)
			id, err := s.Connect(t.Context(), "lab", 7)
			try(t, err)
			tt.prepare(t, s)
			_, err = s.Probe(t.Context(), beat("me", 2), tt.former, id, time.Minute)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error is %v, want %v", err, tt.want)
			}
			got, rerr := s.ReadHeartbeat(t.Context(), n1, time.Minute)
			if wrote := rerr == nil && got == beat("me", 2); wrote != (tt.want == nil) && !errors.Is(tt.want, fs.ErrNotExist) {
				t.Errorf("the slot holds %v, %v", got, rerr)
			}
		})
	}
}

func TestAProbeOnAnotherDeviceChecksWhoseMountItIs(t *testing.T) {
	s := newTestStore(t, n1)
	id, err := s.Connect(t.Context(), "lab", 7)
	try(t, err)
	dev := id.dev.Load()
	id.dev.Store(dev + 1) // as if it had been read from elsewhere
	_, err = s.Probe(t.Context(), beat("me", 1), nil, id, time.Minute)
	try(t, err)
	if id.dev.Load() != dev {
		t.Error("mounted anew, and the device is not remembered")
	}
	id.dev.Store(dev + 1)
	id.uuid = "another"
	if _, err := s.Probe(t.Context(), beat("me", 2), nil, id, time.Minute); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("error is %v, want ErrOtherCluster", err)
	}
	if got, err := s.ReadHeartbeat(t.Context(), n1, time.Minute); err != nil || got.Seq != 1 {
		t.Errorf("wrote onto another cluster's mount: %v, %v", got, err)
	}
}
