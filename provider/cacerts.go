package provider

import (
	"crypto/x509"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/ca"
)

// CACerts returns what chains an endpoint's certificates to the account's roots (RFC 7030 §4.1.3): for each
// class the CA that issues, and those before it, while what they signed may be valid; what stands between them and
// their roots; where a root was replaced, the certificates by which the two vouch for each other (OldWithNew and
// NewWithOld); the roots. At an endpoint of LDevIDs there stand behind them, while there is room, the CAs that issue
// operational certificates: a device whose next certificate that is need not ask again. The caller must not change
// the slice.
func (p *Provider) CACerts(e Endpoint) ([]*x509.Certificate, error) {
	d, now := p.dir.Load(), p.now()
	key := Endpoint{Account: e.Account, Profile: e.Profile}
	if c, ok := d.caCerts.Load(key); ok {
		if c := c.(*caCerts); now.Before(c.until) {
			return c.certs, nil
		}
	}
	var out []*x509.Certificate
	until := ca.Forever
	seen := map[string]bool{}
	add := func(c *x509.Certificate) {
		if id := ca.Digest(c.Raw); !seen[id] && now.Before(c.NotAfter) {
			seen[id] = true
			out = append(out, c)
			if c.NotAfter.Before(until) {
				until = c.NotAfter
			}
		}
	}
	chain := func(ders [][]byte) error {
		for _, der := range ders {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			add(c)
		}
		return nil
	}
	kinds := map[AuthorityKind]bool{issuerKinds[p.kindOf(e.Account, e.Profile)]: true, UnprovedCA: p.unprovedHere(e),
		RegistrationCA: registrable(e.Profile, p.kindOf(e.Account, e.Profile)) == nil}
	all := d.of(e.Account) // by class, then kind, the active one first
	for _, class := range []cradle.Class{cradle.Production, cradle.Evaluation} {
		var above, crosses, roots [][]byte
		for _, a := range all {
			switch {
			case a.Class != class:
			case a.Kind == RootCA:
				roots = append(roots, a.Cert)
				crosses = append(crosses, a.Cross...)
			case kinds[a.Kind]:
				add(a.issuer.Cert)
				if n := len(a.Chain); n > 0 {
					above, roots = append(above, a.Chain[:n-1]...), append(roots, a.Chain[n-1])
				}
			}
		}
		// Crosses stand before roots: OpenSSL takes the first issuer of the right name, and a root that it does not
		// trust would be the end of its way.
		for _, ders := range [][][]byte{above, crosses, roots} {
			if err := chain(ders); err != nil {
				return nil, err
			}
		}
	}
	if p.kindOf(e.Account, e.Profile) == ca.KindLDevID {
		for _, a := range all {
			if a.Kind == OperationalCA && a.State == ActiveCA && len(out) < est.MaxCerts {
				add(a.issuer.Cert)
			}
		}
	}
	if len(out) == 0 {
		return nil, cradle.Errorf(cradle.NotFound, "no CA certificates for %s", e.Label)
	}
	d.caCerts.Store(key, &caCerts{out, until})
	return out, nil
}

// caCerts are the CA certificates of an endpoint, until the first of them expires.
type caCerts struct {
	certs []*x509.Certificate
	until time.Time
}
