package provisioning

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/peerauth"
)

// Caller is a device that was authenticated for one registration id.
type Caller struct {
	ID         RegistrationID
	Device     cradle.DeviceID
	Account    cradle.AccountID
	Group      string
	Kind       AttestationKind
	Thumbprint Thumbprint // of the certificate it showed; zero: none

	ca        Thumbprint
	notBefore time.Time
}

// Authenticate decides whether the holder of a certificate is the device it says it is. The holder
// must have proved possession of the key (TLS does). The certificate must be signed directly by a
// registered signing certificate: no chain is built, intermediates that a client sends are neither
// needed nor looked at. Refusals are cradle.Unauthorized and say which check failed.
//
// It is asked anew for every request; only the signature check is remembered.
func (s *Service) Authenticate(ctx context.Context, cr Credentials) (*Caller, error) {
	id, err := ParseRegistrationID(cr.RegistrationID)
	if err != nil {
		return nil, err
	}
	var leaf *x509.Certificate
	if len(cr.Chain) > 0 {
		leaf = cr.Chain[0]
	}
	if leaf == nil && cr.Token != "" {
		return nil, cradle.Errorf(cradle.Unauthorized, "this service does not accept SAS tokens of devices").
			WithHint("connect with the device's operational certificate")
	}
	if leaf == nil {
		return nil, cradle.Errorf(cradle.Unauthorized, "no client certificate was sent").
			WithHint("connect with the device's operational certificate and key in TLS")
	}
	ca, err := s.issuerOf(ctx, leaf)
	if err != nil {
		return nil, err
	}
	cn, err := commonName(leaf)
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(cn, string(id)) {
		return nil, cradle.Errorf(cradle.Unauthorized, "certificate is for %.70q, the request is for registration id %q", cn, id).
			WithHint("the registration id must be the certificate's common name")
	}
	c := &Caller{ID: id, Device: cradle.DeviceID(id), Account: ca.account, Group: ca.group, Kind: X509CA, Thumbprint: sha256.Sum256(leaf.Raw), ca: ca.thumbprint, notBefore: leaf.NotBefore}
	return c, s.notBlocked(c)
}

func (s *Service) notBlocked(c *Caller) error {
	if s.feed == nil {
		return nil
	}
	if state, ok := s.feed.Blocked(c.Account, c.Device); ok {
		return refuseBlocked(c.ID, state)
	}
	if s.feed.CertBlocked(c.Thumbprint) {
		return cradle.Errorf(cradle.Unauthorized, "certificate %s is revoked or was superseded", c.Thumbprint).
			WithHint("use the device's newest certificate, or enrol again")
	}
	return nil
}

// issuerOf finds the pinned signing certificate and checks signature, validity and key usage.
func (s *Service) issuerOf(ctx context.Context, leaf *x509.Certificate) (*issuer, error) {
	ca, err := s.groups.pool.Verify(leaf, s.now())
	if reason(err) == peerauth.UnknownIssuer {
		read, readErr := s.recheckGroups(ctx)
		if readErr != nil {
			return nil, readErr
		}
		if read {
			ca, err = s.groups.pool.Verify(leaf, s.now())
		}
	}
	switch reason(err) {
	case "":
		return ca, err
	case peerauth.UnknownIssuer, peerauth.BadSignature:
		if s.holdsNamesake(leaf.RawIssuer) {
			return nil, cradle.Errorf(cradle.Unauthorized, "certificate names %.200q as its issuer, but the registered certificate of that name did not sign it", leaf.Issuer.String()).
				WithHint("register the CA certificate that signed it")
		}
		return nil, cradle.Errorf(cradle.Unauthorized, "signing certificate not registered: no enrolment group holds %.200q, the issuer of this device's certificate", leaf.Issuer.String()).
			WithHint("register the CA certificate that signed it (cradle attestation register)")
	case peerauth.IssuerInvalid:
		detail, _ := cradle.Public(err)
		return nil, cradle.Errorf(cradle.Unauthorized, "%s", detail).WithHint("register the successor in the group's other slot")
	}
	return nil, err
}

// holdsNamesake reports whether a signing certificate has this subject.
func (s *Service) holdsNamesake(rawSubject []byte) bool {
	s.groups.mu.Lock()
	defer s.groups.mu.Unlock()
	for _, i := range s.groups.pinned {
		if bytes.Equal(i.cert.RawSubject, rawSubject) {
			return true
		}
	}
	return false
}

func reason(err error) peerauth.Reason {
	var e *peerauth.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// commonName returns the one common name; two of them would let one certificate be two devices.
func commonName(c *x509.Certificate) (string, error) {
	n := 0
	for _, name := range c.Subject.Names {
		if name.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			n++
		}
	}
	if n != 1 {
		return "", cradle.Errorf(cradle.Unauthorized, "certificate has %d common names, not one", n)
	}
	return c.Subject.CommonName, nil
}
