package provisioning

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/peerauth"
)

// maxChain bounds what a client may send, its own certificate included.
const maxChain = 8

// signer finds the enrolled CA behind a device's certificate. A direct signature is found by name and remembered; a
// chain is only built, from what the client sent alone, when there is none.
func (r *roll) signer(chain []*x509.Certificate, now time.Time) (*issuer, error) {
	leaf := chain[0]
	ca, err := r.pool.Verify(leaf, now)
	why := reason(err)
	if why == "" {
		return ca, err
	}
	if why == peerauth.IssuerInvalid {
		detail, _ := cradle.Public(err)
		return nil, cradle.Errorf(cradle.Unauthorized, "%s", detail).WithHint("register the successor in the group's other slot")
	}
	if why != peerauth.UnknownIssuer && why != peerauth.BadSignature {
		return nil, err
	}
	if r.namesake(leaf.RawIssuer) != nil && len(chain) == 1 {
		return nil, cradle.Errorf(cradle.Unauthorized, "certificate names %.200q as its issuer, but the registered certificate of that name did not sign it", leaf.Issuer.String()).
			WithHint("register the CA certificate that signed it")
	}
	anchors := x509.NewCertPool()
	for _, i := range r.pinned {
		anchors.AddCert(i.cert)
	}
	top, err := climb(chain, anchors, now)
	if err != nil {
		return nil, err
	}
	for _, i := range r.pinned {
		if i.cert.Equal(top) {
			return i, nil
		}
	}
	return nil, errors.New("a chain ends at a certificate that is not pinned")
}

// climb builds a chain from chain[0] through what was sent to one of the anchors and returns that one, the nearest.
func climb(chain []*x509.Certificate, anchors *x509.CertPool, now time.Time) (*x509.Certificate, error) {
	leaf := chain[0]
	if len(chain) > maxChain {
		return nil, cradle.Errorf(cradle.Unauthorized, "the device sent %d certificates; %d are looked at", len(chain), maxChain).
			WithHint("send the device's certificate and its intermediates only")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	found, err := leaf.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, explainChain(chain, now, err)
	}
	best := found[0]
	for _, f := range found[1:] {
		if len(f) < len(best) {
			best = f
		}
	}
	if len(best) > 1 { // a leaf that is itself an anchor is refused by its use
		err = peerauth.Check(leaf, best[1], now)
	} else {
		err = peerauth.Check(leaf, leaf, now)
	}
	return best[len(best)-1], err
}

// explainChain says which link is missing or bad.
func explainChain(chain []*x509.Certificate, now time.Time, err error) error {
	top, links := chain[0], 0
climbing:
	for links < len(chain) && !bytes.Equal(top.RawIssuer, top.RawSubject) {
		for _, c := range chain[1:] {
			if !bytes.Equal(c.RawSubject, top.RawIssuer) {
				continue
			}
			if top.CheckSignatureFrom(c) != nil {
				return cradle.Errorf(cradle.Unauthorized, "certificate chain: %.200q did not sign the certificate of %.200q, which names it as its issuer", c.Subject.String(), top.Subject.String()).
					WithHint("send the certificate of the CA that really signed it")
			}
			switch {
			case now.After(c.NotAfter):
				return cradle.Errorf(cradle.Unauthorized, "certificate chain: intermediate %.200q expired at %s", c.Subject.String(), c.NotAfter.UTC().Format(time.RFC3339)).
					WithHint("send the chain through its successor")
			case now.Before(c.NotBefore):
				return cradle.Errorf(cradle.Unauthorized, "certificate chain: intermediate %.200q is not valid before %s", c.Subject.String(), c.NotBefore.UTC().Format(time.RFC3339)).
					WithHint("compare the clocks")
			}
			top = c
			links++
			continue climbing
		}
		break
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid):
		return cradle.Errorf(cradle.Unauthorized, "certificate chain: %v", invalid).WithHint("look at the validity and the constraints of the CAs between the device and the registered one")
	case !errors.As(err, &unknown):
		return cradle.Errorf(cradle.Unauthorized, "certificate chain: %v", err)
	case bytes.Equal(top.RawIssuer, top.RawSubject):
		return cradle.Errorf(cradle.Unauthorized, "CA not registered: the chain that the device sent ends at %.200q, and no enrolment group holds it or one below it", top.Subject.String()).
			WithHint("register that CA, or an intermediate of the chain, in an enrolment group")
	case links > 0:
		return cradle.Errorf(cradle.Unauthorized, "certificate chain incomplete: it ends at %.200q, whose issuer %.200q was neither sent nor is it registered", top.Subject.String(), top.Issuer.String()).
			WithHint("let the device send its intermediates up to a registered CA, or register %.200q", top.Issuer.String())
	}
	return cradle.Errorf(cradle.Unauthorized, "signing certificate not registered: no enrolment group holds %.200q, the issuer of this device's certificate, and the device sent no certificate of it", chain[0].Issuer.String()).
		WithHint("register the CA certificate that signed it (cradle attestation register); if it is an intermediate below a registered CA, the chain is incomplete: let the device send it along")
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
