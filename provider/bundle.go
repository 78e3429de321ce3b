package provider

import (
	"bytes"
	"context"
	"crypto/x509"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
)

// Imported is what ImportBundle did with one certificate.
type Imported struct {
	Anchor
	Certificate *x509.Certificate
	Root        bool   // self-signed
	Signer      string // fingerprint of the trusted certificate that signed it; empty: none, it is trusted by itself
}

// ImportBundle is ImportMaker of a file, as makers publish them: PEM with any text in between, or one certificate
// in DER. All of it is imported or nothing. added counts the certificates that were not trusted before.
func (p *Provider) ImportBundle(ctx context.Context, maker cradle.MakerID, tier cradle.Tier, file []byte) (out []Imported, added int, err error) {
	certs, err := attest.ReadBundle(file)
	if err != nil {
		return nil, 0, err
	}
	ders := make([][]byte, len(certs))
	for i, c := range certs {
		ders[i] = c.Raw
	}
	anchors, added, err := p.ImportMaker(ctx, maker, tier, ders)
	if err != nil {
		return nil, 0, err
	}
	set := p.dir.Load().anchors
	for i, c := range certs {
		im := Imported{Anchor: anchors[i], Certificate: c}
		if s := set.Signer(c); s != nil {
			im.Signer, im.Root = ca.Digest(s.Raw), bytes.Equal(s.Raw, c.Raw)
		}
		out = append(out, im)
	}
	return out, added, nil
}
