package oem

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// UnitRequest is a unit to make.
type UnitRequest struct {
	Order  cradle.OrderID
	Serial string // of the order's range, as printed on the unit
	TPM    string // device node or Unix socket; goes into the unit's settings
	Dir    string // the unit's folder; made when missing
}

// Personalise makes a unit: IAK and IDevID in its TPM, their certificates by two attested enrolments over the
// station's mutual TLS, certificates in NV and in the unit's folder with anchors and settings, and the
// unit's record.
//
// It may be stopped at any point and run again: the same EK and serial go on as the same unit, and a
// unit that is made already is written again without a new certificate. What stopping leaves:
//   - before "claim": nothing;
//   - before "iak" and "idevid": a claim, and perhaps a certificate that only the provider
//     knows, which it gives again to the same unit;
//   - before "nv", "folder", "record": certificates in the OEM's folder, from which the rest is written.
//
// An EK or serial that belongs to another unit is Conflict. Only "record" puts a unit into a lot.
func (s *Station) Personalise(ctx context.Context, r UnitRequest) (*Unit, error) {
	l, err := s.open(r.Order)
	if err != nil {
		return nil, err
	}
	device, err := l.order.DeviceName(r.Serial)
	if err != nil {
		return nil, err
	}
	if r.TPM, err = filepath.Abs(r.TPM); err != nil {
		return nil, err
	}
	if err := checkFolder(r.Dir, r.Order, r.Serial); err != nil {
		return nil, err
	}
	tpm, err := tpmkey.Open(ctx, r.TPM)
	if err != nil {
		return nil, err
	}
	defer tpm.Close()
	ek, err := tpm.UseEK(ctx, l.order.EKTypes...)
	if err != nil {
		return nil, err
	}
	ekDigest, err := spkiDigest(ek.Cert)
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(l.unitPath(r.Serial), 0o700); err != nil {
		return nil, err
	}
	unlock, err := durable.Lock(l.unitPath(r.Serial, ".lock"), false)
	if errors.Is(err, durable.ErrLocked) {
		return nil, cradle.Errorf(cradle.Busy, "unit %s is being made by another process", r.Serial).WithHint("wait for it to end")
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, dir := range []string{l.unitPath(r.Serial), r.Dir} {
		if err := durable.Sweep(dir); err != nil {
			return nil, err
		}
	}
	if !exists(l.unitPath(r.Serial, "idevid.pem")) {
		if err := order.Refusal(l.order, l.order.CheckLine(s.now(), r.Serial, ek.Type)); err != nil {
			return nil, err
		}
	}
	c, err := l.claimUnit(r.Serial, ekDigest, ek.Type)
	if err != nil {
		return nil, err
	}
	if err := s.step("claim"); err != nil {
		return nil, err
	}

	m := &making{line: l, tpm: tpm, ek: ek, device: device, serial: r.Serial}
	iak, idevid, err := m.certificates(ctx)
	if err != nil {
		if k := cradle.KindOf(err); k == cradle.Forbidden || k == cradle.Invalid {
			err = errors.Join(err, l.releaseUnit(r.Serial))
		}
		return nil, err
	}
	for index, cert := range map[uint32]*x509.Certificate{tpmkey.NVIDevID: idevid, tpmkey.NVIAK: iak} {
		if err := tpm.WriteCertificate(ctx, index, cert.Raw); err != nil {
			return nil, err
		}
	}
	if err := s.step("nv"); err != nil {
		return nil, err
	}
	u := &Unit{Order: r.Order, Account: l.order.Account, OEM: l.order.OEM, Model: l.order.Model, Serial: r.Serial, Device: device,
		EKType: ek.Type, EK: ekDigest, IDevID: digest(idevid.Raw), IAK: digest(iak.Raw), Made: c.Began}
	if err := l.writeFolder(r, u); err != nil {
		return nil, err
	}
	if err := s.step("folder"); err != nil {
		return nil, err
	}
	if !exists(l.unitPath(r.Serial, "record.json")) {
		if err := writeJSON(l.unitPath(r.Serial, "record.json"), u); err != nil {
			return nil, err
		}
	}
	return u, s.step("record")
}

// making is one unit while it is made.
type making struct {
	*line
	tpm    *tpmkey.TPM
	ek     tpmkey.EKInfo
	device cradle.DeviceID
	serial string
}

// certificates returns the unit's IAK and IDevID certificates: those that are stored, else new ones.
// The IAK's comes first, as the IAK vouches for the IDevID key.
func (m *making) certificates(ctx context.Context) (iak, idevid *x509.Certificate, err error) {
	ak, err := m.tpm.EnsureIAK(ctx)
	if err != nil {
		return nil, nil, err
	}
	id, err := m.tpm.EnsureIDevID(ctx)
	if err != nil {
		return nil, nil, err
	}
	conn, err := m.connect()
	if err != nil {
		return nil, nil, err
	}
	defer conn.CloseIdleConnections()
	iak, err = m.certificate("iak", ak.Signer().Public(), func() (*x509.Certificate, error) {
		return m.enrol(ctx, conn, m.accepted.IAKURL, cradle.IAK, ak.Public(), ak.Signer(), ak.Key())
	})
	if err != nil {
		return nil, nil, err
	}
	idevid, err = m.certificate("idevid", id.Public(), func() (*x509.Certificate, error) {
		return m.enrol(ctx, conn, m.accepted.IDevIDURL, cradle.IDevID, ak.Public(), id, id)
	})
	return iak, idevid, err
}

// certificate reads a stored certificate of key, or gets one, verifies and stores it.
func (m *making) certificate(name string, key crypto.PublicKey, get func() (*x509.Certificate, error)) (*x509.Certificate, error) {
	path := m.unitPath(m.serial, name+".pem")
	if b, err := os.ReadFile(path); err == nil {
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, cradle.Errorf(cradle.Invalid, "%s holds no certificate", path)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "%s: %w", path, err)
		}
		return cert, m.checkCertificate(name, cert, key)
	}
	cert, err := get()
	if err != nil {
		return nil, err
	}
	if err := m.checkCertificate(name, cert, key); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(path, pemCert(cert.Raw), 0o644); err != nil {
		return nil, err
	}
	return cert, m.step(name)
}

// checkCertificate verifies what the provider returned: our key, the order's device, a chain to the order's anchors.
func (m *making) checkCertificate(name string, cert *x509.Certificate, key crypto.PublicKey) error {
	k, ok := key.(*ecdsa.PublicKey)
	if !ok || !k.Equal(cert.PublicKey) {
		return cradle.Errorf(cradle.Conflict, "the %s certificate of unit %s is for another key than the TPM's", name, m.serial).
			WithHint("was the TPM's endorsement seed changed? such a unit needs another serial number")
	}
	if cert.Subject.CommonName != string(m.device) || len(cert.Subject.Organization) != 1 || cert.Subject.Organization[0] != string(m.order.Account) {
		return cradle.Errorf(cradle.Conflict, "the provider's %s certificate is for %s, not for device %s of account %s", name, cert.Subject, m.device, m.order.Account).
			WithHint("the order and the provider do not belong together")
	}
	if err := m.verifyChain(cert, m.issuers); err != nil {
		return cradle.Errorf(cradle.Conflict, "the provider's %s certificate does not chain to the order's account anchors: %v", name, err).
			WithHint("the order and the provider do not belong together")
	}
	return nil
}

// writeFolder writes what the device itself will read. Each file is whole or absent; agent.toml comes
// after all that it names, and unit.json last.
func (l *line) writeFolder(r UnitRequest, u *Unit) error {
	if err := durable.MkdirAll(r.Dir, 0o755); err != nil {
		return cradle.Errorf(cradle.Invalid, "unit folder: %w", err)
	}
	conf, err := l.settings(r, u)
	if err != nil {
		return err
	}
	var issuers []byte
	for _, c := range l.issuers {
		issuers = append(issuers, pemCert(c.Raw)...)
	}
	for _, f := range []struct {
		name string
		data func() ([]byte, error)
	}{
		{"idevid.pem", func() ([]byte, error) { return l.withIssuers(r.Serial, "idevid.pem", issuers) }},
		{"iak.pem", func() ([]byte, error) { return l.withIssuers(r.Serial, "iak.pem", issuers) }},
		{"services-anchors.pem", func() ([]byte, error) { return []byte(l.order.ServicesAnchors), nil }},
		{"account-anchors.pem", func() ([]byte, error) { return []byte(l.order.AccountAnchors), nil }},
		{"agent.toml", func() ([]byte, error) { return conf, nil }},
	} {
		b, err := f.data()
		if err != nil {
			return err
		}
		if err := durable.WriteFile(filepath.Join(r.Dir, f.name), b, 0o644); err != nil {
			return err
		}
		if err := l.step(f.name); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(r.Dir, "unit.json"), u)
}

func (l *line) withIssuers(serial, name string, issuers []byte) ([]byte, error) {
	leaf, err := os.ReadFile(l.unitPath(serial, name))
	return append(leaf, issuers...), err
}

// settings makes the unit's agent.toml from the order.
func (l *line) settings(r UnitRequest, u *Unit) ([]byte, error) {
	o := l.order
	a := settings.Agent{
		Account: o.Account, Device: u.Device, Serial: u.Serial, TPM: r.TPM, Made: u.Made,
		Provider:     settings.Provider{URL: o.ProviderURL},
		Provisioning: settings.Provisioning{Endpoint: o.ProvisioningEndpoint, IDScope: o.IDScope},
		Telemetry:    settings.Telemetry{Interval: o.Agent.TelemetryInterval},
		Renewal:      settings.Renewal{Fraction: o.Agent.RenewalFraction, RotateKey: o.Agent.RotateKey},
	}
	b, err := a.Encode()
	if err != nil {
		return nil, err
	}
	full, err := settings.Parse(b) // with defaults, and checked as the agent will
	if err != nil {
		return nil, err
	}
	return full.Encode()
}

// spkiDigest identifies an endorsement key: SHA-256 of the certificate's SubjectPublicKeyInfo.
func spkiDigest(cert []byte) (string, error) {
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		return "", cradle.Errorf(cradle.Invalid, "EK certificate: %w", err).WithHint("the TPM's EK certificate cannot be read; use another TPM")
	}
	return digest(c.RawSubjectPublicKeyInfo), nil
}
