package etcd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/etcd"
	"go.uber.org/zap"
)

func TestDialRefusesWhatCannotWork(t *testing.T) {
	noPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    etcd.Options
		want string
	}{
		{"a password file that is missing", etcd.Options{Username: "root", PasswordFile: "/nonexistent/password"}, "/nonexistent/password"},
		{"a CA file that is missing", etcd.Options{CACert: "/nonexistent/ca.pem"}, "/nonexistent/ca.pem"},
		{"a CA file without a certificate", etcd.Options{CACert: noPEM}, "ETCD_CACERT"},
		{"a certificate that is missing", etcd.Options{Cert: "/nonexistent/cert.pem", Key: "/nonexistent/key.pem"}, "ETCD_CERT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Endpoints, c.o.Logger = []string{"127.0.0.1:1"}, zap.NewNop()
			cl, err := etcd.Dial(c.o)
			if err == nil {
				_ = cl.Close() // it should not have been made
				t.Fatal("Dial succeeded")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("Dial returned %q, want %q in it", err, c.want)
			}
		})
	}
}

func TestDialDoesNotWaitForEtcd(t *testing.T) {
	cl, err := etcd.Dial(etcd.Options{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatalf("Dial of an etcd that is away: %v", err)
	}
	_ = cl.Close() // it returns the end of its own context
}
