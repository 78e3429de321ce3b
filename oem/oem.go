// Package oem is the device maker's side: it accepts orders, personalises units on the factory line,
// and closes lots with an acceptance report and the hand-over to the owner (DESIGN §3, §4.1, §4.2).
//
// Everything lives in one folder, which any number of processes may use at once:
//
//	oem.pub                     both public keys, for the provider
//	order.key                   countersigns orders, signs hand-overs
//	lot.key                     signs acceptance reports
//	accounts/A.pub              order key of account A, as first accepted
//	orders/O/order.jws          the countersigned order
//	orders/O/station.key, .pem  the station's key and certificate, for this order alone
//	orders/O/line.json          what the provider answered: EST addresses, issuers
//	orders/O/units/S/           one unit: claim.json, iak.pem, idevid.pem, and record.json when it is made
//	orders/O/lots/L/            one lot: report.jws, custody.jws, and answer.json when it is handed in
//	eks/D                       which unit has the endorsement key with digest D
//
// The line itself, Personalise, needs none of the OEM's private keys but the station's: order.key
// and lot.key can be taken away between AcceptOrder and CloseLot.
//
// The line trusts the pinned keys of account and OEM, and through the order that both signed its
// anchors. It does not judge TPMs: the provider does, by the evidence that the line carries to it.
package oem

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/order"
)

// Station works in one OEM folder. Its methods may be called by several goroutines and processes.
type Station struct {
	Dir  string           // the OEM's folder, made by Init
	Tool string           // program and version, for reports; default "cradle-oem"
	Now  func() time.Time // default time.Now

	// Step, when set, is told after each step of a unit that has been made durable, and ends the work by an error;
	// it stands for a power cut in tests.
	Step func(step string) error
}

func (s *Station) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Station) step(name string) error {
	if s.Step != nil {
		return s.Step(name)
	}
	return nil
}

func (s *Station) path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

func (s *Station) orderPath(id cradle.OrderID, elem ...string) string {
	return s.path(append([]string{"orders", string(id)}, elem...)...)
}

// Init makes the OEM's folder and keys. Run again, it keeps what is there.
func Init(dir string) (order.OEMPublic, error) {
	var pub order.OEMPublic
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return pub, cradle.Errorf(cradle.Invalid, "OEM folder: %w", err)
	}
	ok, err := order.EnsureKey(filepath.Join(dir, "order.key"))
	if err != nil {
		return pub, err
	}
	lk, err := order.EnsureKey(filepath.Join(dir, "lot.key"))
	if err != nil {
		return pub, err
	}
	pub = order.OEMPublic{Order: &ok.PublicKey, Lot: &lk.PublicKey}
	b, err := pub.Encode()
	if err != nil {
		return pub, err
	}
	return pub, durable.WriteFile(filepath.Join(dir, "oem.pub"), b, 0o644)
}

// Public reads the OEM's public keys.
func (s *Station) Public() (order.OEMPublic, error) {
	b, err := os.ReadFile(s.path("oem.pub"))
	if errors.Is(err, fs.ErrNotExist) {
		return order.OEMPublic{}, cradle.Errorf(cradle.NotFound, "%s is not an OEM's folder", s.Dir).
			WithHint("make it with: cradle-oem init --dir %s", s.Dir)
	}
	if err != nil {
		return order.OEMPublic{}, cradle.Errorf(cradle.Invalid, "oem.pub: %w", err)
	}
	return order.ParseOEMPublic(b)
}

// client is an HTTP client that trusts anchors (PEM) alone and shows cert, which may be nil.
func (s *Station) client(anchors string, cert *tls.Certificate) (*http.Client, error) {
	cas, err := order.Anchors(anchors)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range cas {
		roots.AddCert(c)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: s.now}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = conf
	t.ForceAttemptHTTP2 = true
	return &http.Client{Transport: t, Timeout: time.Minute}, nil
}

// mine reads a file of the OEM's folder; a missing one is NotFound with what to do.
func mine(path, what, hint string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cradle.Errorf(cradle.NotFound, "%s", what).WithHint("%s", hint)
	}
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%s: %w", what, err)
	}
	return b, nil
}

// exists reports whether there is a file of that name.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
