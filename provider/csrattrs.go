package provider

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/ca"
)

// CSRAttributes says what a CSR at the endpoint is to hold (RFC 7030 §4.5.2, RFC 9908): as a template, and for
// clients that do not know it as the list of before. A client that shows a certificate of ours gets its own names
// filled in. Nobody has to heed it but for the key: the profile gives the rest by itself.
func (p *Provider) CSRAttributes(ctx context.Context, e Endpoint, c Client) (est.CSRAttributes, error) {
	rules, err := p.profile(e.Account, e.Profile)
	if err != nil {
		return est.CSRAttributes{}, err
	}
	l := ca.Leaf{Profile: e.Profile, Rules: rules, Account: e.Account}
	if c.Peer != nil {
		switch cred, err := p.authenticate(ctx, e, c.Peer); cradle.KindOf(err) {
		case cradle.Busy:
			return est.CSRAttributes{}, err
		default:
			if err == nil && cred.Device.ID != "" {
				d := &cred.Device
				l.Device, l.Serial, l.Order, l.OEM, l.Tier, l.Maker = d.ID, d.Serial, d.Order, d.OEM, d.Tier, d.Maker
				l.EKDigest, _ = hex.DecodeString(d.EKDigest)
			}
		}
	}
	return csrAttributes(&l)
}

func csrAttributes(l *ca.Leaf) (est.CSRAttributes, error) {
	s, err := l.Sketch()
	if err != nil {
		return est.CSRAttributes{}, err
	}
	out := est.CSRAttributes{Template: new(est.Template)}
	for _, n := range s.Subject {
		out.Template.Subject = append(out.Template.Subject, []est.NameTemplate{{Type: n.Type, Value: n.Value}})
	}
	var known []pkix.Extension
	for _, x := range s.Extensions {
		out.Template.Extensions = append(out.Template.Extensions, est.ExtensionTemplate{ID: x.Id, Critical: x.Critical, Value: x.Value})
		if x.Value != nil {
			known = append(known, x)
		}
	}
	out.Attributes = append(out.Attributes, est.ExtensionRequest(known...))
	if len(l.Rules.Keys) != 1 { // of several the client chooses; the list can ask for one alone
		return out, nil
	}
	k := keyWishes[l.Rules.Keys[0]]
	out.OIDs, out.Template.Key = append(out.OIDs, k.signature), k.template
	if k.attribute != nil {
		out.Attributes = append(out.Attributes, *k.attribute)
	}
	return out, nil
}

// keyWishes are how each type of key is asked for: its signature algorithm, its attribute, its template.
var keyWishes = map[ca.KeyType]struct {
	signature asn1.ObjectIdentifier
	attribute *est.Attribute
	template  *est.KeyTemplate
}{
	ca.ECP256:  {est.OIDECDSAWithSHA256, new(est.ECKey(est.OIDP256)), est.ECKeyTemplate(est.OIDP256)},
	ca.ECP384:  {est.OIDECDSAWithSHA384, new(est.ECKey(est.OIDP384)), est.ECKeyTemplate(est.OIDP384)},
	ca.RSA2048: {est.OIDRSAWithSHA256, new(est.RSAKey(2048)), est.RSAKeyTemplate(2048)},
	ca.RSA3072: {est.OIDRSAWithSHA256, new(est.RSAKey(3072)), est.RSAKeyTemplate(3072)},
	ca.RSA4096: {est.OIDRSAWithSHA256, new(est.RSAKey(4096)), est.RSAKeyTemplate(4096)},
	ca.Ed25519: {est.OIDEd25519, nil, est.Ed25519KeyTemplate()},
}
