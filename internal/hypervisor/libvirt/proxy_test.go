package libvirt

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// Numbers of remote_protocol.x.
const (
	procGetXMLDesc       = 14
	procCreateWithFlags  = 196
	procShutdownFlags    = 258
	procDeregisterEvents = 317

	typeReply = 1
	statusOK  = 0
)

// proxy stands between the driver and a libvirtd, and knows the protocol's headers.
type proxy struct {
	socket, target string
	mu             sync.Mutex
	asked          map[uint32]int           // requests, by procedure
	held           map[uint32]chan struct{} // whose answers wait
	cut            map[uint32]bool          // whose request ends the connection instead of an answer
	started        map[uuid]int             // starts that succeeded
	deaf           map[uuid]bool            // guests to whom no shutdown comes through
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p := &proxy{
		socket: filepath.Join(t.TempDir(), "s"), target: target,
		asked: map[uint32]int{}, held: map[uint32]chan struct{}{}, cut: map[uint32]bool{},
		started: map[uuid]int{}, deaf: map[uuid]bool{},
	}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", p.target)
	if err != nil {
		return
	}
	var mu sync.Mutex // of what is written to the client
	reply := func(data packet) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := client.Write(data)
		return err
	}
	starts := map[uint32]uuid{} // under way, by serial
	go func() {
		defer client.Close()
		for {
			data, err := readPacket(server)
			if err != nil {
				return
			}
			p.mu.Lock()
			hold := p.held[data.proc()]
			if id, ok := starts[data.serial()]; ok && data.kind() == typeReply {
				delete(starts, data.serial())
				if data.status() == statusOK {
					p.started[id]++
				}
			}
			p.mu.Unlock()
			if hold != nil {
				<-hold
			}
			if reply(data) != nil {
				return
			}
		}
	}()
	for {
		data, err := readPacket(client)
		if err != nil {
			server.Close()
			return
		}
		p.mu.Lock()
		p.asked[data.proc()]++
		cut, deaf := p.cut[data.proc()], false
		switch data.proc() {
		case procCreateWithFlags:
			starts[data.serial()] = data.domain()
		case procShutdownFlags:
			deaf = p.deaf[data.domain()]
		}
		p.mu.Unlock()
		if deaf { // libvirt has asked, and the guest does nothing
			err = reply(data.success())
		} else {
			_, err = server.Write(data)
		}
		if err != nil {
			server.Close()
			return
		}
		if cut {
			return // libvirtd has the request, and its connection stays open
		}
	}
}

// packet is one of libvirt's, with its header: length, program, version,
// procedure, type, serial, status; four bytes each.
type packet []byte

const headerLen = 28

func (p packet) word(i int) uint32 { return binary.BigEndian.Uint32(p[4*i:]) }
func (p packet) proc() uint32      { return p.word(3) }
func (p packet) kind() uint32      { return p.word(4) }
func (p packet) serial() uint32    { return p.word(5) }
func (p packet) status() uint32    { return p.word(6) }

// domain is the first argument of a call that has one: a name, its length before
// it and filled up to four bytes, and the UUID.
func (p packet) domain() (id uuid) {
	name := int(p.word(7)+3) / 4 * 4
	copy(id[:], p[headerLen+4+name:])
	return id
}

// success is the answer to a call that returns nothing.
func (p packet) success() packet {
	out := append(packet{}, p[:headerLen]...)
	binary.BigEndian.PutUint32(out, headerLen)
	binary.BigEndian.PutUint32(out[16:], typeReply)
	binary.BigEndian.PutUint32(out[24:], statusOK)
	return out
}

func readPacket(r io.Reader) (packet, error) {
	head := make(packet, headerLen)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	data := append(head, make(packet, int(head.word(0))-headerLen)...)
	_, err := io.ReadFull(r, data[headerLen:])
	return data, err
}

func (p *proxy) hold(proc uint32) (release func()) {
	c := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[proc] = c
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.held, proc)
		close(c)
	})
}

func (p *proxy) count(proc uint32) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[proc]
}

func (p *proxy) starts(id uuid) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started[id]
}
