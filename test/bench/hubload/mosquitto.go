package hubload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/test/bench/fleet"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// Mosquitto is Eclipse's broker from Debian with persistence, mutual TLS, and a subscriber that is away, for which all
// messages are kept. It writes them to its file from time to time, not before it acknowledges one.
type Mosquitto struct {
	Server
	cmd *exec.Cmd
}

// StartMosquitto runs it in dir for n devices.
func StartMosquitto(ctx context.Context, dir string, n int) (*Mosquitto, error) {
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		if program = "/usr/sbin/mosquitto"; !exists(program) {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m := &Mosquitto{Server: Server{Roots: x509.NewCertPool()}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "Bench"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if ca, err = signed(ca, nil, key); err != nil {
		return nil, err
	}
	m.Roots.AddCert(ca)
	own, err := signed(&x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature}, ca, key)
	if err != nil {
		return nil, err
	}
	m.Clients = &fleet.Clients{Key: key, Issuer: ca.Raw}
	for i := range n {
		id := plant.Serial(plant.Fleet, i)
		c, err := signed(&x509.Certificate{Subject: pkix.Name{CommonName: id}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, key)
		if err != nil {
			return nil, err
		}
		m.Clients.List = append(m.Clients.List, fleet.Client{ID: cradle.DeviceID(id), DER: c.Raw})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m.Addr = ln.Addr().String()
	ln.Close()
	_, port, _ := strings.Cut(m.Addr, ":")
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string][]byte{
		"ca.pem":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}),
		"own.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Raw}),
		"own.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"mosquitto.conf": fmt.Appendf(nil, "user root\npersistence true\npersistence_location %s/\nautosave_interval 1\nmax_queued_messages 0\nlog_type error\n"+
			"listener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\nallow_anonymous false\n", dir, port, file("ca.pem"), file("own.pem"), file("own.key")),
	} {
		if err := os.WriteFile(file(name), text, 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(file("log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m.cmd = exec.Command(program, "-c", file("mosquitto.conf"))
	m.cmd.Stderr, m.cmd.Stdout = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	for range 100 {
		if err = m.subscribe(ctx); err == nil {
			return m, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	m.Close()
	text, _ := os.ReadFile(file("log"))
	return nil, fmt.Errorf("mosquitto: %w: %s", err, text)
}

// subscribe leaves a session for which the broker keeps the messages.
func (m *Mosquitto) subscribe(ctx context.Context) error {
	conn, err := m.dial(ctx, 0)
	if err != nil {
		return err
	}
	c, err := mqtt.Dial(ctx, conn, mqtt.Options{ClientID: "reader", Username: "reader", KeepAlive: time.Minute})
	if err != nil {
		return err
	}
	go c.Run(ctx)
	defer c.Close()
	return c.Subscribe(ctx, "devices/#", mqtt.AtLeastOnce)
}

// CPU is what it has taken.
func (m *Mosquitto) CPU() (time.Duration, error) { return plant.ProcessCPU(m.cmd.Process.Pid) }

// Close ends it.
func (m *Mosquitto) Close() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// signed makes a certificate with that key; parent nil: its own.
func signed(t, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial := make([]byte, 15)
	rand.Read(serial)
	t.SerialNumber = new(big.Int).SetBytes(serial)
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
