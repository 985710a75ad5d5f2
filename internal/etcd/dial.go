package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// Options say how to reach etcd.
type Options struct {
	Endpoints    []string
	CACert       string // file; "" = the system's
	Cert, Key    string // files of the client certificate, both or none
	Username     string
	PasswordFile string
	Logger       *zap.Logger // of the client itself
	Dial         []grpc.DialOption
}

const (
	// RequestTimeout bounds every single call: a call without a deadline hangs on a hung member.
	RequestTimeout = 2 * time.Second
	// dialKeepAlive is the least that grpc allows; without it a third of the calls
	// of a client with a hung member fail for ever.
	dialKeepAlive        = 10 * time.Second
	dialKeepAliveTimeout = 3 * time.Second
	// reconnect is b of the timing relations: the longest pause before the next
	// try of a connection, however long etcd was away. A pause that grows would
	// make a cut of half of a lease end its validity.
	reconnect = 100 * time.Millisecond
)

// Dial prepares a client. It does not wait for etcd: the first request does.
// With a user name it does wait, since the client asks for its token at once.
// Certificates are read from disk at each handshake.
func Dial(o Options) (*clientv3.Client, error) {
	cfg := clientv3.Config{
		Endpoints:            o.Endpoints,
		DialTimeout:          RequestTimeout,
		DialKeepAliveTime:    dialKeepAlive,
		DialKeepAliveTimeout: dialKeepAliveTimeout,
		PermitWithoutStream:  true,
		MaxUnaryRetries:      3,
		Logger:               o.Logger,
		Username:             o.Username,
		DialOptions: append([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           pace(),
			MinConnectTimeout: time.Second,
		})}, o.Dial...),
	}
	if o.PasswordFile != "" {
		b, err := os.ReadFile(o.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read the etcd password: %w", err)
		}
		cfg.Password = strings.TrimRight(string(b), "\r\n")
	}
	if o.CACert != "" || o.Cert != "" || strings.HasPrefix(strings.Join(o.Endpoints, ","), "https://") {
		t, err := tlsConfig(o)
		if err != nil {
			return nil, err
		}
		cfg.TLS = t // tells the client that there is TLS; the handshakes are those of freshTLS
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithTransportCredentials(freshTLS{o, credentials.NewTLS(t)}))
	}
	cl, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare the etcd client for %s: %w", strings.Join(o.Endpoints, ","), Explain(err))
	}
	return cl, nil
}

// pace is the constant pause between two tries of a connection; with its jitter
// it is at most reconnect.
func pace() backoff.Config {
	const d = reconnect * 5 / 6
	return backoff.Config{BaseDelay: d, Multiplier: 1, Jitter: 0.2, MaxDelay: d}
}

func tlsConfig(o Options) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CACert != "" {
		pem, err := os.ReadFile(o.CACert)
		if err != nil {
			return nil, fmt.Errorf("read ETCD_CACERT: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read ETCD_CACERT %s: no PEM certificate in it", o.CACert)
		}
	}
	if o.Cert != "" {
		c, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("load ETCD_CERT and ETCD_KEY: %w", err)
		}
		t.Certificates = []tls.Certificate{c}
	}
	return t, nil
}

// freshTLS reads all certificates anew for each handshake, those that etcd's own
// must be signed by too: they are replaced under a running daemon, one after the
// other.
type freshTLS struct {
	o Options
	credentials.TransportCredentials
}

// ClientHandshake is that of the certificates of this moment.
func (f freshTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, err := tlsConfig(f.o)
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(t).ClientHandshake(ctx, authority, conn)
}

// Clone is for each connection.
func (f freshTLS) Clone() credentials.TransportCredentials {
	return freshTLS{f.o, f.TransportCredentials.Clone()}
}

// Explain turns an etcd error into what an operator can act on. The cause stays
// wrapped.
func Explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, rpctypes.ErrGRPCNoSpace):
		return fmt.Errorf("etcd is full and accepts no writes; compact and defragment it, then run 'etcdctl alarm disarm': %w", err)
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrPermissionDenied),
		errors.Is(err, rpctypes.ErrInvalidAuthToken), code(err) == codes.Unauthenticated, code(err) == codes.PermissionDenied:
		return fmt.Errorf("etcd refuses this user; check ETCD_USERNAME, ETCD_PASSWORD_FILE and the user's role: %w", err)
	case errors.Is(err, context.DeadlineExceeded), code(err) == codes.Unavailable, code(err) == codes.DeadlineExceeded:
		return fmt.Errorf("etcd does not answer; check ETCD_ENDPOINTS, the network, certificates and 'etcdctl endpoint health': %w", err)
	}
	return err
}

// code is the class of an error, as etcd's client or grpc tells it. The former's
// errors ("no leader", "request timed out" without a quorum) are no statuses.
func code(err error) codes.Code {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code()
	}
	return status.Code(err)
}
