package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// OIDRegistrar is id-kp-cmcRA (RFC 6402 §2.10), by which an EST server knows a registration authority (RFC 7030 §3.7).
var OIDRegistrar = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 28}

// Registrar is a registration authority with all that it may do. It stands in its certificate, so that a record cannot
// give it more.
type Registrar struct {
	Account cradle.AccountID
	Profile cradle.Profile
	Name    string
	Names   string      // pattern of the device names that it may ask for; empty: any
	Tier    cradle.Tier // of the devices that come by it
}

// ID is how a registration authority stands in records, and as the common name of its certificate. No device can have
// that name.
func (r *Registrar) ID() string { return registrarPrefix + r.Name }

const (
	registrarPrefix = "ra/"
	registrarUnit   = "registration authority"
	registrarScheme = "cradle-ra"
)

// Certificate makes the registration authority's certificate. Its one usage is id-kp-cmcRA: a TLS server that admits the
// account's devices by their usage does not admit it.
func (r *Registrar) Certificate(iss *Issuer, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber:          NewSerial(),
		Subject:               pkix.Name{Organization: []string{string(r.Account)}, OrganizationalUnit: []string{registrarUnit}, CommonName: r.ID()},
		URIs:                  []*url.URL{{Scheme: registrarScheme, Opaque: r.rights().Encode()}},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{OIDRegistrar},
		Policies:              []x509.OID{cradle.PolicyKeyNotProved},
		BasicConstraintsValid: true,
	}
	if err := iss.stamp(t); err != nil {
		return nil, err
	}
	return signLeaf(iss, t, pub)
}

func (r *Registrar) rights() url.Values {
	return url.Values{"profile": {string(r.Profile)}, "names": {r.Names}, "tier": {string(r.Tier)}}
}

// IsRegistrar reports whether a certificate has the usage of a registration authority.
func IsRegistrar(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.UnknownExtKeyUsage, OIDRegistrar.Equal)
}

// ParseRegistrar reads what a certificate that Registrar.Certificate made allows. Whose signature it carries is the
// caller's to look at.
func ParseRegistrar(c *x509.Certificate) (*Registrar, error) {
	refuse := func(what string) (*Registrar, error) {
		return nil, cradle.Errorf(cradle.Unauthorized, "the client certificate (%.80s) is no registration authority's: %s", c.Subject, what).
			WithHint("the account's operator makes one: cradle account ra")
	}
	if !IsRegistrar(c) {
		return refuse("it lacks the extended key usage id-kp-cmcRA")
	}
	name, ok := strings.CutPrefix(c.Subject.CommonName, registrarPrefix)
	if !ok || len(c.Subject.Organization) != 1 || !slices.Equal(c.Subject.OrganizationalUnit, []string{registrarUnit}) || len(c.URIs) != 1 || c.URIs[0].Scheme != registrarScheme {
		return refuse("it does not say what it may do")
	}
	q, err := url.ParseQuery(c.URIs[0].Opaque)
	if err != nil {
		return refuse("it does not say what it may do")
	}
	r := &Registrar{Account: cradle.AccountID(c.Subject.Organization[0]), Profile: cradle.Profile(q.Get("profile")), Name: name, Names: q.Get("names"), Tier: cradle.Tier(q.Get("tier"))}
	if _, err := cradle.ParseTier(string(r.Tier)); err != nil || r.rights().Encode() != c.URIs[0].Opaque {
		return refuse("it does not say what it may do")
	}
	return r, nil
}
