package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"

	"github.com/cradle-iot/cradle/internal/der"
)

var (
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLPoints      = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidInfoAccess     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidAccessOCSP     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidAccessIssuers  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}

	// madeExtensions are those that addExtensions writes by itself.
	madeExtensions = []asn1.ObjectIdentifier{oidKeyUsage, oidExtKeyUsage, oidBasicConstraints, oidSubjectKeyID, oidAuthorityKeyID, oidInfoAccess,
		oidPolicies, oidCRLPoints}
)

// signatureAlgorithms holds the AlgorithmIdentifiers (RFC 5758 §3.2, RFC 4055 §5) of what SignatureAlgorithm names.
var signatureAlgorithms = map[x509.SignatureAlgorithm]struct {
	hash crypto.Hash
	id   []byte
}{
	x509.ECDSAWithSHA256: {crypto.SHA256, algorithmID(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, nil)},
	x509.ECDSAWithSHA384: {crypto.SHA384, algorithmID(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, nil)},
	x509.SHA256WithRSA:   {crypto.SHA256, algorithmID(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, asn1.NullBytes)},
}

func algorithmID(id asn1.ObjectIdentifier, params []byte) []byte {
	var w der.Writer
	w.Element(der.Sequence, func() {
		w.OID(id)
		w.Raw(params)
	})
	return w.B
}

// points is where the certificate's standing is asked for; zero: it does not say.
type points struct{ crl, ocsp, ca string }

// tbs encodes the certificate without its signature (RFC 5280 §4.1.2). The bytes are those that x509.CreateCertificate
// makes, against which the tests hold it; that one also verifies each signature (docs/decisions/0036-proved-keys.md).
func (d *Draft) tbs(algorithm []byte, at points) []byte {
	w := der.NewWriter(1024)
	w.Element(der.Sequence, func() {
		w.Raw([]byte{der.Contained, 3, asn1.TagInteger, 1, 2}) // version 3
		w.Positive(d.serial)
		w.Raw(algorithm, d.iss.Cert.RawSubject)
		w.Element(der.Sequence, func() {
			w.Time(d.NotBefore)
			w.Time(d.NotAfter)
		})
		w.Raw(d.rawSubject, d.SPKI)
		w.Element(der.Contained|3, func() {
			w.Element(der.Sequence, func() { d.addExtensions(w, at) })
		})
	})
	return w.B
}

func (d *Draft) addExtensions(w *der.Writer, at points) {
	extension(w, oidKeyUsage, true, func() { w.Raw(keyUsageDER(d.usage)) })
	if len(d.usages) > 0 {
		extension(w, oidExtKeyUsage, false, func() {
			w.Element(der.Sequence, func() {
				for _, id := range d.usages {
					w.OID(id)
				}
			})
		})
	}
	extension(w, oidBasicConstraints, true, func() { w.Raw(notCA) })
	extension(w, oidSubjectKeyID, false, func() { w.Value(asn1.TagOctetString, keyID(d.SPKI)) })
	if id := d.iss.Cert.SubjectKeyId; len(id) > 0 {
		extension(w, oidAuthorityKeyID, false, func() {
			w.Element(der.Sequence, func() { w.Value(der.Context, id) })
		})
	}
	if at != (points{}) {
		extension(w, oidInfoAccess, false, func() {
			w.Element(der.Sequence, func() {
				access(w, oidAccessOCSP, at.ocsp)
				access(w, oidAccessIssuers, at.ca)
			})
		})
	}
	extension(w, oidPolicies, false, func() {
		w.Element(der.Sequence, func() {
			for _, p := range d.policies {
				w.Element(der.Sequence, func() { w.Value(asn1.TagOID, oidContents(p)) })
			}
		})
	})
	if at != (points{}) {
		extension(w, oidCRLPoints, false, func() {
			w.Element(der.Sequence, func() {
				w.Element(der.Sequence, func() { // one DistributionPoint
					w.Element(der.Contained, func() {
						w.Element(der.Contained, func() { w.Text(der.Context|tagURI, at.crl) })
					})
				})
			})
		})
	}
	for _, e := range d.extensions {
		extension(w, e.Id, e.Critical, func() { w.Raw(e.Value) })
	}
}

// extension: RFC 5280 §4.1; value writes what is inside of the OCTET STRING.
func extension(w *der.Writer, id asn1.ObjectIdentifier, critical bool, value func()) {
	w.Element(der.Sequence, func() {
		w.OID(id)
		if critical { // its default is left out
			w.Raw([]byte{asn1.TagBoolean, 1, 0xff})
		}
		w.Element(asn1.TagOctetString, value)
	})
}

// access writes an AccessDescription (RFC 5280 §4.2.2.1).
func access(w *der.Writer, method asn1.ObjectIdentifier, url string) {
	w.Element(der.Sequence, func() {
		w.OID(method)
		w.Text(der.Context|tagURI, url)
	})
}

func oidContents(o x509.OID) []byte {
	b, err := o.MarshalBinary()
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}

// certificate puts a signature under what was signed (RFC 5280 §4.1).
func certificate(tbs, algorithm, signature []byte) []byte {
	w := der.NewWriter(len(tbs) + len(algorithm) + len(signature) + 16)
	w.Element(der.Sequence, func() {
		w.Raw(tbs, algorithm)
		w.Element(asn1.TagBitString, func() { w.Raw([]byte{0}, signature) }) // no unused bits
	})
	return w.B
}

// isSPKI reports whether der is the one encoding of a public key. Readers take more than that.
func isSPKI(der []byte, pub crypto.PublicKey) bool {
	if k, ok := pub.(*ecdsa.PublicKey); ok && k.Curve == elliptic.P256() {
		point, err := k.Bytes()
		rest, ok := bytes.CutPrefix(der, spkiP256)
		return ok && err == nil && bytes.Equal(rest, point)
	}
	want, err := x509.MarshalPKIXPublicKey(pub)
	return err == nil && bytes.Equal(der, want)
}

// spkiP256 is what stands before the point of a P-256 key (RFC 5480 §2).
var spkiP256 = []byte{0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01,
	0x07, 0x03, 0x42, 0x00}

// clash names an extension that the certificate would have twice.
func (d *Draft) clash() (asn1.ObjectIdentifier, bool) {
	for i, e := range d.extensions {
		same := func(x pkix.Extension) bool { return x.Id.Equal(e.Id) }
		if slices.ContainsFunc(d.extensions[:i], same) || slices.ContainsFunc(madeExtensions, e.Id.Equal) {
			return e.Id, true
		}
	}
	return nil, false
}
