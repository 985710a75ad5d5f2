package resources

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// The three slots of a node, made at join and overwritten in place ever after:
// network file systems cache names, absent ones too, so a slot is never
// created, renamed or deleted later.
const (
	slotHeartbeat = "heartbeat"
	slotOrder     = "fence"
	slotAnswer    = "fenced"
	slotSize      = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Heartbeat is the record in a node's heartbeat slot.
type Heartbeat = cluster.Heartbeat

// ErrTorn is returned if a slot holds no complete record.
var ErrTorn = cluster.ErrTorn

// block renders a record: JSON, NUL-padded, the last four bytes its CRC-32C
// (little-endian, over all bytes before them).
func block(dst []byte, record any) error {
	b, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode a slot: %w", err)
	}
	if len(b) > slotSize-4 {
		return fmt.Errorf("a slot holds %d bytes, the record has %d", slotSize-4, len(b))
	}
	n := copy(dst, b)
	clear(dst[n:slotSize])
	binary.LittleEndian.PutUint32(dst[slotSize-4:], crc32.Checksum(dst[:slotSize-4], castagnoli))
	return nil
}

func unblock(src []byte, record any) error {
	if len(src) != slotSize || crc32.Checksum(src[:slotSize-4], castagnoli) != binary.LittleEndian.Uint32(src[slotSize-4:]) {
		return &tornError{crc32.Checksum(src, castagnoli)}
	}
	body := bytes.TrimRight(src[:slotSize-4], "\x00")
	if len(body) == 0 {
		return &tornError{crc32.Checksum(src, castagnoli)}
	}
	if err := json.Unmarshal(body, record); err != nil {
		return fmt.Errorf("read a slot: %w", err)
	}
	return nil
}

// withAligned calls f with a page-aligned buffer, which O_DIRECT needs.
func withAligned(f func(buf []byte) error) error {
	buf, err := unix.Mmap(-1, 0, slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("get an aligned buffer: %w", err)
	}
	return errors.Join(f(buf), unix.Munmap(buf))
}

// openSlot opens past the page cache where the file system can do that.
func openSlot(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return os.OpenFile(path, flags, 0)
	}
	return f, err
}

// writeSlot overwrites a slot durably: acknowledged means on the storage.
func writeSlot(path string, record any) error {
	return withAligned(func(buf []byte) error {
		if err := block(buf, record); err != nil {
			return err
		}
		f, err := openSlot(path, os.O_WRONLY)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(buf, 0)
		if errors.Is(err, unix.EINVAL) { // O_DIRECT accepted at open, refused at write
			_ = f.Close()
			if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
				return err
			}
			_, err = f.WriteAt(buf, 0)
		}
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// readSlot reads fresh: past the page cache, else by open-read-close, at which
// network file systems revalidate.
func readSlot(path string, record any) error {
	return withAligned(func(buf []byte) error {
		f, err := openSlot(path, os.O_RDONLY)
		if err != nil {
			return err
		}
		n, err := f.ReadAt(buf, 0)
		if errors.Is(err, unix.EINVAL) {
			_ = f.Close()
			if f, err = os.Open(path); err != nil {
				return err
			}
			n, err = f.ReadAt(buf, 0)
		}
		if cerr := f.Close(); err == nil && cerr != nil {
			err = cerr
		}
		if n == slotSize || errors.Is(err, io.EOF) {
			err = nil // one that is too short holds no record; the next write makes it whole
		}
		if err != nil {
			return err
		}
		return unblock(buf[:n], record)
	})
}

// ReadHeartbeat reads a node's heartbeat fresh, within the deadline. An error
// means that nothing is known; it is never silence.
//
// With ErrTorn the Nonce tells the bytes of the slot from others: a power cut in the
// middle of a write leaves a block that nobody mends, and that nobody writes it is
// what has to be seen.
func (s *Store) ReadHeartbeat(ctx context.Context, n cluster.NodeID, deadline time.Duration) (Heartbeat, error) {
	type answer struct {
		hb   Heartbeat
		torn error
	}
	a, err := fetchWithin(ctx, s, deadline, "read the heartbeat of "+string(n), func() (a answer, err error) {
		err = readSlot(filepath.Join(s.nodeDir(n), slotHeartbeat), &a.hb)
		var t *tornError
		if errors.As(err, &t) {
			return answer{Heartbeat{Nonce: fmt.Sprintf("torn:%08x", t.sum)}, fmt.Errorf("read the heartbeat of %s: %w", n, err)}, nil
		}
		return a, err
	})
	if err != nil {
		return Heartbeat{}, err
	}
	return a.hb, a.torn
}

// tornError is ErrTorn with a sum over the whole block.
type tornError struct{ sum uint32 }

func (*tornError) Error() string        { return ErrTorn.Error() }
func (*tornError) Is(target error) bool { return target == ErrTorn }

// ErrForeignNonce is returned if another process writes this node's heartbeat.
var ErrForeignNonce = cluster.ErrForeignNonce

// Probe is one proof of contact with the mount: the mount is the cluster's, my
// heartbeat is written durably and my order slot, which is returned, read fresh,
// each within the deadline. former are the nonces of earlier processes that may still stand in
// the slot, none once this process has written.
//
// The contact's time is the moment before the call.
func (s *Store) Probe(ctx context.Context, hb Heartbeat, former []string, id *Contact, deadline time.Duration) (cluster.Order, error) {
	hb.V = cluster.RecordVersion
	beat := filepath.Join(s.nodeDir(hb.Host), slotHeartbeat)
	wantDev, wantUUID := id.dev.Load(), id.uuid
	_, err := fetchWithin(ctx, s, deadline, "write the heartbeat", func() (struct{}, error) {
		var none struct{}
		var st unix.Stat_t
		if err := unix.Stat(s.root, &st); err != nil {
			return none, err
		}
		if st.Dev != wantDev {
			// Perhaps mounted anew, perhaps the directory under a lost mount.
			now, dev, err := s.readIdentity()
			if err != nil {
				return none, err
			}
			if now.UUID != wantUUID {
				return none, fmt.Errorf("%s has uuid %s, not %s: %w", s.identityFile(), now.UUID, wantUUID, ErrOtherCluster)
			}
			id.dev.Store(dev)
		}
		var was Heartbeat
		err := readSlot(beat, &was)
		if err != nil && !errors.Is(err, ErrTorn) {
			return none, err
		}
		if err == nil && was.Nonce != hb.Nonce && !slices.Contains(former, was.Nonce) {
			return none, fmt.Errorf("%w: boot %s, hardware %s", ErrForeignNonce, was.Boot, was.HW)
		}
		return none, writeSlot(beat, hb)
	})
	if err != nil {
		return cluster.Order{}, err
	}
	return s.readOrder(ctx, hb.Host, slotOrder, deadline)
}

func (s *Store) readOrder(ctx context.Context, n cluster.NodeID, slot string, deadline time.Duration) (cluster.Order, error) {
	return fetchWithin(ctx, s, deadline, "read the slot "+slot+" of "+string(n), func() (o cluster.Order, err error) {
		err = readSlot(filepath.Join(s.nodeDir(n), slot), &o)
		if errors.Is(err, ErrTorn) {
			err = nil // never written, or in the middle of a write: nothing yet
		}
		return o, err
	})
}

func (s *Store) writeOrder(ctx context.Context, n cluster.NodeID, slot string, o cluster.Order, deadline time.Duration) error {
	o.V = cluster.RecordVersion
	_, err := fetchWithin(ctx, s, deadline, "write the slot "+slot+" of "+string(n), func() (struct{}, error) {
		return struct{}{}, writeSlot(filepath.Join(s.nodeDir(n), slot), o)
	})
	return err
}

// ReadOrder reads fresh what a node was last ordered; the zero order if nothing.
func (s *Store) ReadOrder(ctx context.Context, n cluster.NodeID, deadline time.Duration) (cluster.Order, error) {
	return s.readOrder(ctx, n, slotOrder, deadline)
}

// WriteOrder orders a node to stop everything. Only a master does that.
func (s *Store) WriteOrder(ctx context.Context, n cluster.NodeID, o cluster.Order, deadline time.Duration) error {
	return s.writeOrder(ctx, n, slotOrder, o, deadline)
}

// ReadAnswer reads fresh what a node last answered; the zero order if nothing.
func (s *Store) ReadAnswer(ctx context.Context, n cluster.NodeID, deadline time.Duration) (cluster.Order, error) {
	return s.readOrder(ctx, n, slotAnswer, deadline)
}

// WriteAnswer answers an order durably. Only the node itself does that, and only
// after everything was stopped.
func (s *Store) WriteAnswer(ctx context.Context, n cluster.NodeID, o cluster.Order, deadline time.Duration) error {
	return s.writeOrder(ctx, n, slotAnswer, o, deadline)
}
