package provider

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
)

// clientCA is a ClientCA ready for use.
type clientCA struct {
	ClientCA
	trust attest.ClientTrust
}

func openClientCA(c ClientCA) (*clientCA, error) {
	out := &clientCA{ClientCA: c}
	for i, der := range c.Certs {
		cert, err := attest.ParseClientCA(der)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "certificate %d of the file: %v", i+1, err).
				WithHint("give a PEM file of CA certificates: roots, and intermediates that clients do not send")
		}
		if bytes.Equal(cert.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(cert) == nil {
			out.trust.Anchors = append(out.trust.Anchors, cert)
		} else {
			out.trust.Intermediates = append(out.trust.Intermediates, cert)
		}
	}
	if len(out.trust.Anchors) == 0 { // a subordinate CA alone is meant itself
		out.trust.Anchors, out.trust.Intermediates = out.trust.Intermediates, nil
	}
	if len(out.trust.Anchors) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "the file holds no certificate").WithHint("give a PEM file of CA certificates")
	}
	return out, nil
}

// ParseManifest reads a manifest: a unit on each line, then, if wanted, the device name it gets. A unit is a
// certificate's fingerprint (sha256:HEX), the serialNumber in a certificate's subject (sn:TEXT), or a device name
// that is the certificate's common name (id:NAME, or NAME alone). '#' begins a comment.
func ParseManifest(text string) ([]ClientUnit, error) {
	var out []ClientUnit
	seen := map[string]bool{}
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		bad := func(format string, args ...any) error {
			return cradle.Errorf(cradle.Invalid, "the manifest, line %d: %s", n+1, fmt.Sprintf(format, args...)).
				WithHint("write a unit and perhaps a device name on each line: sha256:HEX, sn:SERIAL or NAME")
		}
		if len(f) > 2 {
			return nil, bad("%d words", len(f))
		}
		u := ClientUnit{Unit: f[0]}
		kind, value, ok := strings.Cut(u.Unit, ":")
		switch {
		case !ok:
			kind, value = "id", u.Unit
			fallthrough
		case kind == "id":
			value = strings.ToLower(value)
			if err := cradle.CheckID("device", value); err != nil {
				return nil, bad("%v", err)
			}
			u.Name = cradle.DeviceID(value)
		case kind == "sn":
			if value == "" || len(value) > 64 {
				return nil, bad("a serial number of %d bytes", len(value))
			}
		case kind == "sha256":
			value = strings.ToLower(strings.ReplaceAll(value, ":", ""))
			if b, err := hex.DecodeString(value); err != nil || len(b) != sha256.Size {
				return nil, bad("no SHA-256 in hexadecimal")
			}
		default:
			return nil, bad("a unit of kind %q", kind)
		}
		u.Unit = kind + ":" + value
		if len(f) == 2 {
			u.Name = cradle.DeviceID(strings.ToLower(f[1]))
			if err := cradle.CheckID("device", string(u.Name)); err != nil {
				return nil, bad("%v", err)
			}
		}
		if seen[u.Unit] {
			return nil, bad("%s stands there twice", u.Unit)
		}
		seen[u.Unit] = true
		out = append(out, u)
	}
	return out, nil
}

// unitsOf are the units that a certificate may stand for, the most certain first.
func unitsOf(c *x509.Certificate) []string {
	out := []string{"sha256:" + ca.Digest(c.Raw)}
	if sn := c.Subject.SerialNumber; sn != "" {
		out = append(out, "sn:"+sn)
	}
	if id, err := wishedName(c.Subject); err == nil && id != "" {
		out = append(out, "id:"+string(id))
	}
	return out
}

// SetClientCA registers another CA's certificates for clients of one profile, with the manifest of the units that
// are let in; registered again it gets the new manifest.
func (p *Provider) SetClientCA(ctx context.Context, c ClientCA, units []ClientUnit) (ClientCA, error) {
	if err := p.checkClient(ctx, c.Account, c.Profile, c.Names, &c.Tier); err != nil {
		return c, err
	}
	open, err := openClientCA(c)
	if err != nil {
		return c, err
	}
	for _, cert := range append(open.trust.Anchors, open.trust.Intermediates...) {
		if p.ours(cert.RawSubjectPublicKeyInfo) {
			return c, cradle.Errorf(cradle.Invalid, "%s is a CA of this installation: its certificates are known by their records", cert.Subject).
				WithHint("our own certificates need no registration")
		}
	}
	if len(units) == 0 && c.OEM == "" {
		return c, cradle.Errorf(cradle.Invalid, "neither a manifest nor an OEM says which units of this CA are let in").
			WithHint("give --manifest FILE, or --oem NAME for the units of its accepted lots")
	}
	if c.OEM != "" {
		if _, err := p.store.OEM(ctx, c.OEM); err != nil {
			return c, err
		}
	}
	c.ID = ca.Digest(c.Certs[0])[:16] + "-" + hexDigest([]byte(cradle.Label(c.Account, c.Profile)))[:8]
	c.Created, c.Disabled = p.now(), false
	return c, p.storeClientCA(ctx, c, units, "account trust-ca")
}

// RemoveClientCA ends the trust in a CA. Devices that came by it keep their certificates and renew with them.
func (p *Provider) RemoveClientCA(ctx context.Context, account cradle.AccountID, id string) (ClientCA, error) {
	all, err := p.ClientCAs(ctx, account)
	if err != nil {
		return ClientCA{}, err
	}
	for _, c := range all {
		if c.ID == id {
			c.Disabled = true
			return c, p.storeClientCA(ctx, c, nil, "account trust-ca --remove")
		}
	}
	return ClientCA{}, cradle.Errorf(cradle.NotFound, "account %s has no client CA %q", account, id).WithHint("cradle account trust-ca %s lists them", account)
}

func (p *Provider) storeClientCA(ctx context.Context, c ClientCA, units []ClientUnit, action string) error {
	fps := make([]string, len(c.Certs))
	for i, der := range c.Certs {
		fps[i] = ca.Digest(der)
	}
	leaf, err := p.operatorLeaf(ctx, string(c.Account), action, map[string]any{"account": c.Account, "profile": c.Profile, "client_ca": c.ID,
		"certificates": fps, "tier": c.Tier, "oem": c.OEM, "names": c.Names, "units": len(units), "manifest": manifestDigest(units), "settings": settings(c.Setting(units))})
	if err != nil {
		return err
	}
	if err := p.store.SetClientCA(ctx, c, units, leaf); err != nil {
		return err
	}
	return p.reload(ctx)
}

func manifestDigest(units []ClientUnit) string {
	var b strings.Builder
	for _, u := range units {
		fmt.Fprintf(&b, "%s %s\n", u.Unit, u.Name)
	}
	return hexDigest([]byte(b.String()))
}

// ClientCAs returns what an account registered.
func (p *Provider) ClientCAs(ctx context.Context, account cradle.AccountID) ([]ClientCA, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	return p.store.ClientCAs(ctx, account)
}

// ours reports whether a key is one of our CAs'.
func (p *Provider) ours(spki []byte) bool {
	if bytes.Equal(spki, p.services.Cert.RawSubjectPublicKeyInfo) {
		return true
	}
	for _, a := range p.dir.Load().byID {
		if bytes.Equal(a.issuer.Cert.RawSubjectPublicKeyInfo, spki) {
			return true
		}
	}
	return false
}

// errRecorded refuses to take a certificate that is on record here for another CA's.
var errRecorded = cradle.Errorf(cradle.Unauthorized, "the client certificate is on record here")

// by reports whether one of the CA's certificates has the name of a certificate's issuer.
func (c *clientCA) by(peer *x509.Certificate) bool {
	names := func(ca *x509.Certificate) bool { return bytes.Equal(ca.RawSubject, peer.RawIssuer) }
	return slices.ContainsFunc(c.trust.Anchors, names) || slices.ContainsFunc(c.trust.Intermediates, names)
}

// unitOf is the unit of a manifest that a certificate stands for whose issuer is named as a registered CA is: one look into the
// store says that, too, it is not on record. nil: who it is of, if of anybody, is to be found out as ever.
func (p *Provider) unitOf(ctx context.Context, e Endpoint, with *clientsOf, client Client) *party {
	if with == nil || !slices.ContainsFunc(with.cas, func(c *clientCA) bool { return c.by(client.Peer) }) {
		return nil
	}
	pt, err := p.foreignParty(ctx, e, with.cas, client)
	if err != nil || pt.origin == "" { // of an accepted lot: its record was not looked for
		return nil
	}
	return pt
}

// foreignParty finds out which unit of a registered CA a client certificate is of. The reasons of the last CA tried
// are the refusal.
func (p *Provider) foreignParty(ctx context.Context, e Endpoint, cas []*clientCA, client Client) (*party, error) {
	// What is verified is what TLS proved the key of, whatever was sent beside it.
	chain := append([]*x509.Certificate{client.Peer}, client.Chain[min(1, len(client.Chain)):]...)
	var refused error
	for _, c := range cas {
		if err := attest.VerifyClient(p.now(), chain, c.trust, p.ours).Refuse(cradle.Unauthorized, "client certificate"); err != nil {
			refused = err
			continue
		}
		return p.admitUnit(ctx, e, c, client.Peer)
	}
	return nil, refused
}

// admitUnit finds the unit in the manifest or in an accepted lot.
func (p *Provider) admitUnit(ctx context.Context, e Endpoint, c *clientCA, peer *x509.Certificate) (*party, error) {
	units := unitsOf(peer)
	u, err := p.store.ClientUnit(ctx, c.ClientCA, units, ca.SerialString(peer.SerialNumber), ca.Digest(peer.Raw))
	if err == nil && u.Recorded {
		return nil, errRecorded
	}
	if err == nil {
		pt := &party{origin: "ca/" + c.ID + "/" + u.Unit, auth: ca.Digest(peer.Raw), fixed: u.Name, names: c.Names, tier: c.Tier}
		if u.Name != "" {
			pt.had = &u.Device
		}
		return pt, nil
	}
	if cradle.KindOf(err) != cradle.NotFound {
		return nil, err
	}
	if c.OEM != "" && peer.Subject.SerialNumber != "" {
		devices, err := p.store.UnitsOf(ctx, e.Account, c.OEM, peer.Subject.SerialNumber)
		if err != nil {
			return nil, err
		}
		if len(devices) == 1 {
			return &party{auth: ca.Digest(peer.Raw), fixed: devices[0].ID, Credential: Credential{Device: devices[0]}}, nil
		}
	}
	return nil, cradle.Errorf(cradle.Forbidden, "the client certificate (%.80s) is of a registered CA, but of no unit that is let in", peer.Subject).
		WithHint("put it into the manifest: cradle account trust-ca %s --profile %s FILE --manifest FILE", e.Account, e.Profile)
}
