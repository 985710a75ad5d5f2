package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// authority signs certificates, for servers and clients on 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue writes dir/name.pem and dir/name.key.
func (a *authority) issue(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kd}))
	return cert, key
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCertificatesAreReplaced: everything that is signed is replaced under a client
// that goes on, as an operator does it: one thing after the other.
func TestCertificatesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	first, second := newAuthority(t, "first"), newAuthority(t, "second")
	trustedByServer, trustedByClient := filepath.Join(dir, "server-ca.pem"), filepath.Join(dir, "client-ca.pem")
	write(t, trustedByServer, first.pem)
	write(t, trustedByClient, first.pem)
	serverCert, serverKey := first.issue(t, dir, "server")
	cert, key := first.issue(t, dir, "client")
	srv := etcdtest.Start(t, func(c *embed.Config) {
		c.ListenClientUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
		c.AdvertiseClientUrls = c.ListenClientUrls
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile, c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = serverCert, serverKey, trustedByServer, true
	})
	endpoint := "https://" + strings.TrimPrefix(strings.TrimPrefix(srv.Endpoint(), "http://"), "https://")
	dial := func(o etcd.Options) *clientv3.Client {
		o.Endpoints, o.Logger = []string{endpoint}, zap.NewNop()
		cl, err := etcd.Dial(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cl.Close() })
		return cl
	}
	get := func(cl *clientv3.Client) error {
		ctx, cancel := context.WithTimeout(t.Context(), etcd.RequestTimeout)
		defer cancel()
		_, err := cl.Get(ctx, "x")
		return err
	}
	cl := dial(etcd.Options{CACert: trustedByClient, Cert: cert, Key: key})
	if err := get(cl); err != nil {
		t.Fatalf("with the right certificates: %v", err)
	}

	// The wrong ones: each is told as something about certificates.
	strangeCert, strangeKey := second.issue(t, dir, "stranger")
	strangeCA := filepath.Join(dir, "strange-ca.pem")
	write(t, strangeCA, second.pem)
	for name, o := range map[string]etcd.Options{
		"a client certificate that the server does not trust": {CACert: trustedByClient, Cert: strangeCert, Key: strangeKey},
		"a server certificate that the client does not trust": {CACert: strangeCA, Cert: cert, Key: key},
		"no client certificate":                               {CACert: trustedByClient},
	} {
		if err := etcd.Explain(get(dial(o))); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v; want it to speak of certificates", name, err)
		}
	}

	// All is replaced by what another authority signs, and the server starts anew: the
	// client is refused until its own files are replaced, and goes on by itself then.
	srv.Stop()
	write(t, trustedByServer, second.pem)
	second.issue(t, dir, "server")
	srv.Restart()
	if err := get(cl); err == nil {
		t.Fatal("the client trusts a server that the authority it knows has not signed")
	}
	write(t, trustedByClient, second.pem)
	if err := get(cl); err == nil {
		t.Fatal("the server trusts a client that the authority it knows has not signed")
	}
	second.issue(t, dir, "client")
	etcdtest.Eventually(t, "the client goes on with the new certificates", func() bool { return get(cl) == nil })
}
