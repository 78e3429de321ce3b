package tpmmaker_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
)

func newMaker(t *testing.T) *tpmmaker.Maker {
	t.Helper()
	m, err := tpmmaker.NewMaker(filepath.Join(t.TempDir(), "maker"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// manufacture makes one TPM from an empty one.
func manufacture(t *testing.T, m *tpmmaker.Maker, o tpmmaker.Options) *tpmmaker.Unit {
	t.Helper()
	testenv.Require(t, "swtpm")
	tpm, err := swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Stop() })
	unit, err := m.Manufacture(t.Context(), tpm.Socket(), o)
	if err != nil {
		t.Fatal(err)
	}
	return unit
}

func TestMakerIsKept(t *testing.T) {
	dir := t.TempDir()
	first, err := tpmmaker.NewMaker(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := tpmmaker.NewMaker(dir)
	if err != nil {
		t.Fatal(err)
	}
	if string(first.CABundle()) != string(again.CABundle()) {
		t.Error("opening a maker again gave another one")
	}
	var names []string
	for rest := first.CABundle(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !cert.IsCA || cert.Subject.Organization[0] != tpmmaker.Organization {
			t.Errorf("CA certificate of %v, CA %v", cert.Subject, cert.IsCA)
		}
		names = append(names, cert.Subject.CommonName)
	}
	if len(names) != 2 {
		t.Errorf("bundle holds %q", names)
	}
}

// The profile's odd corners: empty subject, critical SAN, an EKU that package x509 does not know.
func TestEKCertificate(t *testing.T) {
	m := newMaker(t)
	for _, kind := range []tpmmaker.EKType{tpmmaker.P256, tpmmaker.P384, tpmmaker.RSA2048} {
		t.Run(string(kind), func(t *testing.T) {
			unit := manufacture(t, m, tpmmaker.Options{EKType: kind})
			cert, err := x509.ParseCertificate(unit.EKCert)
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.CheckSignatureFrom(m.Intermediate()); err != nil {
				t.Error(err)
			}
			if len(cert.Subject.Names) != 0 || cert.IsCA || cert.NotAfter.Year() != 9999 {
				t.Errorf("subject %v, CA %v, not after %v", cert.Subject, cert.IsCA, cert.NotAfter)
			}
			if want := []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}; len(cert.UnknownExtKeyUsage) != 1 || !cert.UnknownExtKeyUsage[0].Equal(want[0]) {
				t.Errorf("EKU %v, want %v", cert.UnknownExtKeyUsage, want)
			}
			if want := (asn1.ObjectIdentifier{2, 5, 29, 17}); len(cert.UnhandledCriticalExtensions) != 1 || !cert.UnhandledCriticalExtensions[0].Equal(want) {
				t.Errorf("critical extensions %v, want the SAN", cert.UnhandledCriticalExtensions)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	m := newMaker(t)
	now := time.Now()
	for fault, wrong := range map[tpmmaker.Fault]func(*x509.Certificate, *tpmmaker.Unit) bool{
		tpmmaker.Expired:       func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return now.After(c.NotAfter) },
		tpmmaker.NotYetValid:   func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return now.Before(c.NotBefore) },
		tpmmaker.MissingEKU:    func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return len(c.UnknownExtKeyUsage) == 0 },
		tpmmaker.WrongEKU:      func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return len(c.ExtKeyUsage) == 1 },
		tpmmaker.NoSAN:         func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return len(c.UnhandledCriticalExtensions) == 0 },
		tpmmaker.CACertificate: func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return c.IsCA },
		tpmmaker.SelfSigned: func(c *x509.Certificate, _ *tpmmaker.Unit) bool {
			return c.CheckSignatureFrom(m.Intermediate()) != nil && string(c.RawIssuer) == string(m.Intermediate().RawSubject)
		},
		tpmmaker.ForeignKey: func(c *x509.Certificate, u *tpmmaker.Unit) bool {
			return !u.EKPub.(*ecdsa.PublicKey).Equal(c.PublicKey)
		},
		tpmmaker.WrongKeyUsage: func(c *x509.Certificate, _ *tpmmaker.Unit) bool { return c.KeyUsage == x509.KeyUsageDigitalSignature },
		tpmmaker.WrongManufacturer: func(c *x509.Certificate, _ *tpmmaker.Unit) bool {
			return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return bytes.Contains(e.Value, []byte("id:49465800")) })
		},
	} {
		t.Run(string(fault), func(t *testing.T) {
			unit := manufacture(t, m, tpmmaker.Options{Fault: fault})
			cert, err := x509.ParseCertificate(unit.EKCert)
			if err != nil {
				t.Fatal(err)
			}
			if !wrong(cert, unit) {
				t.Error("the certificate is not wrong in this way")
			}
		})
	}
}

func TestManufactureTwice(t *testing.T) {
	testenv.Require(t, "swtpm")
	m := newMaker(t)
	tpm, err := swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Stop() })
	if _, err := m.Manufacture(t.Context(), tpm.Socket(), tpmmaker.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Manufacture(t.Context(), tpm.Socket(), tpmmaker.Options{}); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("manufacturing again: %v", err)
	}
}

func TestProduce(t *testing.T) {
	testenv.Require(t, "swtpm")
	m := newMaker(t)
	var dirs []string
	for i := range 12 {
		dirs = append(dirs, filepath.Join(t.TempDir(), fmt.Sprint(i)))
	}
	made := 0
	tpms, err := m.Produce(t.Context(), dirs, tpmmaker.Options{}, swtpm.Options{}, func() { made++ })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, tpm := range tpms {
			tpm.Stop()
		}
	})
	if made != len(dirs) || len(tpms) != len(dirs) {
		t.Errorf("made %d, progress said %d, want %d", len(tpms), made, len(dirs))
	}
	// The same folders again: refused, and the running ones are left alone.
	if _, err := m.Produce(t.Context(), dirs[:2], tpmmaker.Options{}, swtpm.Options{}, nil); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("producing in used folders: %v", err)
	}
	select {
	case <-tpms[0].Done():
		t.Error("a running TPM was stopped")
	default:
	}
}

func BenchmarkProduce(b *testing.B) {
	m, err := tpmmaker.NewMaker(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var dirs []string
		for i := range 100 {
			dirs = append(dirs, filepath.Join(b.TempDir(), fmt.Sprint(i)))
		}
		tpms, err := m.Produce(b.Context(), dirs, tpmmaker.Options{}, swtpm.Options{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		for _, tpm := range tpms {
			tpm.Stop()
		}
		b.StartTimer()
	}
}
