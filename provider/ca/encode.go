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
	var w derWriter
	w.element(derSequence, func() {
		w.oid(id)
		w.raw(params)
	})
	return w.b
}

// points is where the certificate's standing is asked for; zero: it does not say.
type points struct{ crl, ocsp, ca string }

// tbs encodes the certificate without its signature (RFC 5280 §4.1.2). The bytes are those that x509.CreateCertificate
// makes, against which the tests hold it; that one also verifies each signature (docs/decisions/0036-proved-keys.md).
func (d *Draft) tbs(algorithm []byte, at points) []byte {
	w := &derWriter{make([]byte, 0, 1024)}
	w.element(derSequence, func() {
		w.raw([]byte{derContained, 3, asn1.TagInteger, 1, 2}) // version 3
		w.positive(d.serial)
		w.raw(algorithm, d.iss.Cert.RawSubject)
		w.element(derSequence, func() {
			w.time(d.NotBefore)
			w.time(d.NotAfter)
		})
		w.raw(d.rawSubject, d.SPKI)
		w.element(derContained|3, func() {
			w.element(derSequence, func() { d.addExtensions(w, at) })
		})
	})
	return w.b
}

func (d *Draft) addExtensions(w *derWriter, at points) {
	w.extension(oidKeyUsage, true, func() { w.raw(keyUsageDER(d.usage)) })
	if len(d.usages) > 0 {
		w.extension(oidExtKeyUsage, false, func() {
			w.element(derSequence, func() {
				for _, id := range d.usages {
					w.oid(id)
				}
			})
		})
	}
	w.extension(oidBasicConstraints, true, func() { w.raw(notCA) })
	w.extension(oidSubjectKeyID, false, func() { w.value(asn1.TagOctetString, keyID(d.SPKI)) })
	if id := d.iss.Cert.SubjectKeyId; len(id) > 0 {
		w.extension(oidAuthorityKeyID, false, func() {
			w.element(derSequence, func() { w.value(derContext, id) })
		})
	}
	if at != (points{}) {
		w.extension(oidInfoAccess, false, func() {
			w.element(derSequence, func() {
				w.access(oidAccessOCSP, at.ocsp)
				w.access(oidAccessIssuers, at.ca)
			})
		})
	}
	w.extension(oidPolicies, false, func() {
		w.element(derSequence, func() {
			for _, p := range d.policies {
				w.element(derSequence, func() { w.value(asn1.TagOID, oidContents(p)) })
			}
		})
	})
	if at != (points{}) {
		w.extension(oidCRLPoints, false, func() {
			w.element(derSequence, func() {
				w.element(derSequence, func() { // one DistributionPoint
					w.element(derContained, func() {
						w.element(derContained, func() { w.text(derContext|tagURI, at.crl) })
					})
				})
			})
		})
	}
	for _, e := range d.extensions {
		w.extension(e.Id, e.Critical, func() { w.raw(e.Value) })
	}
}

// extension: RFC 5280 §4.1; value writes what is inside of the OCTET STRING.
func (w *derWriter) extension(id asn1.ObjectIdentifier, critical bool, value func()) {
	w.element(derSequence, func() {
		w.oid(id)
		if critical { // its default is left out
			w.raw([]byte{asn1.TagBoolean, 1, 0xff})
		}
		w.element(asn1.TagOctetString, value)
	})
}

// access writes an AccessDescription (RFC 5280 §4.2.2.1).
func (w *derWriter) access(method asn1.ObjectIdentifier, url string) {
	w.element(derSequence, func() {
		w.oid(method)
		w.text(derContext|tagURI, url)
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
	w := &derWriter{make([]byte, 0, len(tbs)+len(algorithm)+len(signature)+16)}
	w.element(derSequence, func() {
		w.raw(tbs, algorithm)
		w.element(asn1.TagBitString, func() { w.raw([]byte{0}, signature) }) // no unused bits
	})
	return w.b
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
