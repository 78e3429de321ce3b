package attest

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"

	"github.com/cradle-iot/cradle"
)

// maxBundle bounds the certificates of one bundle; all makers together publish some 200.
const maxBundle = 10000

var pemBegin = []byte("-----BEGIN ")

// ReadBundle reads a TPM maker's bundle: certificates in PEM, with any text between them, or one in DER. Nothing in it is
// passed over: what cannot be used is refused by its number, and its subject if that much can be read. A
// certificate that is in it twice is returned once.
func ReadBundle(b []byte) ([]*x509.Certificate, error) {
	ders, err := split(b)
	if err != nil {
		return nil, err
	}
	if len(ders) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "the bundle holds no certificate").WithHint("give a PEM file of CA certificates, or one certificate in DER")
	}
	var out []*x509.Certificate
	seen := map[string]bool{}
	for i, der := range ders {
		refuse := func(why string) error {
			return cradle.Errorf(cradle.Invalid, "certificate %d of %d%s: %s", i+1, len(ders), roughSubject(der), why).
				WithHint("take it out of the bundle, if nothing needs it, and import again; nothing was imported")
		}
		c, err := parseCertificate(der)
		if err != nil {
			return nil, refuse(err.Error())
		}
		if len(c.Raw) != len(der) {
			return nil, refuse("something follows the certificate")
		}
		if detail := weakCAKey(c); detail != "" {
			return nil, refuse(detail)
		}
		if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return nil, refuse("it is no CA certificate")
		}
		if !seen[string(der)] {
			seen[string(der)] = true
			out = append(out, c)
		}
	}
	return out, nil
}

// split finds the PEM blocks. encoding/pem passes over a block that it cannot read; here that is an error.
func split(b []byte) ([][]byte, error) {
	parts := bytes.Split(b, pemBegin)
	if len(parts) == 1 {
		if trimmed := bytes.TrimSpace(b); len(trimmed) > 0 && trimmed[0] == 0x30 {
			return [][]byte{b}, nil
		}
		return nil, nil
	}
	if len(parts) > maxBundle+1 {
		return nil, cradle.Errorf(cradle.TooLarge, "the bundle has %d PEM blocks; at most %d are read", len(parts)-1, maxBundle)
	}
	var out [][]byte
	for i, part := range parts[1:] {
		block, _ := pem.Decode(append(bytes.Clone(pemBegin), part...)) // the rest is text before the next block
		if block == nil {
			return nil, cradle.Errorf(cradle.Invalid, "block %d of %d is no PEM: cut off, or not base64", i+1, len(parts)-1)
		}
		if block.Type != "CERTIFICATE" {
			return nil, cradle.Errorf(cradle.Invalid, "block %d of %d is a PEM block %.40q; only CERTIFICATE is wanted", i+1, len(parts)-1, block.Type)
		}
		out = append(out, block.Bytes)
	}
	return out, nil
}

// roughSubject reads the subject of what need not be a good certificate: " (CN=…)", or "".
func roughSubject(der []byte) string {
	var cert, tbs asn1.RawValue
	if _, err := asn1.Unmarshal(der, &cert); err != nil || cert.Tag != asn1.TagSequence {
		return ""
	}
	if _, err := asn1.Unmarshal(cert.Bytes, &tbs); err != nil || tbs.Tag != asn1.TagSequence {
		return ""
	}
	rest := tbs.Bytes
	for names := 0; len(rest) > 0; { // version, serial, algorithm, issuer, validity, subject: RFC 5280 §4.1
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return ""
		}
		var dn pkix.RDNSequence
		if left, err := asn1.Unmarshal(v.FullBytes, &dn); err != nil || len(left) > 0 {
			continue
		}
		if names++; names == 2 {
			var name pkix.Name
			name.FillFromRDNSequence(&dn)
			s := name.String()
			return fmt.Sprintf(" (%s)", bytes.ToValidUTF8([]byte(s[:min(len(s), 200)]), []byte("?")))
		}
	}
	return ""
}

// Signer finds the anchor that signed c; nil when there is none in the set. A root is its own.
func (s *AnchorSet) Signer(c *x509.Certificate) *x509.Certificate {
	for _, l := range s.byName[normalName(c.RawIssuer)] {
		if sameKeyID(c, l.cert) && checkSignature(c, l.cert) == nil {
			return l.cert
		}
	}
	return nil
}
