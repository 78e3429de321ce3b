package estserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // names a key (RFC 5280 §4.2.1.2), protects nothing
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/protocol/est"
)

const keyBoundary = "estServerKeyGenBoundary"

// serverKeyGen is RFC 7030 §4.4. How the key is to travel is settled before it is made: a request that names an
// unknown key, or that allows nothing we can do, ends there and nothing is issued.
func (s *Server) serverKeyGen(w http.ResponseWriter, r *http.Request, e Endpoint, c Client) (answer, error) {
	csr, err := s.readCSR(w, r, e, c, est.OpServerKeyGen)
	if err != nil {
		return answer{}, err
	}
	wish, err := est.ParseKeyWish(csr)
	if err != nil {
		return answer{}, err
	}
	strength := suiteStrength(r.TLS.CipherSuite)
	var seal *sealer
	var made GeneratedKey
	err = s.call(r, func(ctx context.Context) (err error) {
		if wish.Encrypted() {
			if seal, err = s.sealerFor(ctx, e, c, wish); err != nil {
				return err
			}
			strength = max(strength, seal.strength())
		}
		made, err = s.c.Provider.GenerateKey(ctx, Enrolment{Endpoint: e, Operation: Enroll, Client: c, CSR: csr}, strength)
		return err
	})
	if err != nil {
		return answer{}, err
	}
	defer clear(made.PKCS8)
	key := est.Part{ContentType: est.TypePKCS8, Body: made.PKCS8}
	if seal != nil {
		key.ContentType = est.TypeKey
		if key.Body, err = seal.seal(made.PKCS8, time.Now()); err != nil {
			return answer{}, err
		}
	}
	cert, err := est.EncodeCerts(made.Certificate)
	if err != nil {
		return answer{}, err
	}
	tellReplaced(w, made.Replaced)
	a := answer{status: http.StatusOK}
	a.contentType, a.body = est.EncodeParts(keyBoundary, wrapped(r), key, est.Part{ContentType: est.TypeCertsOnly, Body: cert})
	return a, nil
}

// suiteStrength is the security of a TLS cipher suite in bits (SP 800-57 part 1, table 2).
func suiteStrength(suite uint16) int {
	switch name := tls.CipherSuiteName(suite); {
	case strings.Contains(name, "AES_256"), strings.Contains(name, "CHACHA20"):
		return 256
	case strings.Contains(name, "AES_128"):
		return 128
	}
	return 112
}

// sealer encrypts a generated key for one client.
type sealer struct {
	to     cms.Recipient
	bits   int // of the recipient's key
	cipher asn1.ObjectIdentifier
	chain  []*x509.Certificate // of the key that signs the package
	key    crypto.Signer
}

func (s *sealer) strength() int { return min(s.bits, 8*cms.KeySize(s.cipher)) }

// seal is EnvelopedData(SignedData(AsymmetricKeyPackage)), RFC 7030 §4.4.2 and RFC 5958 §2.
func (s *sealer) seal(pkcs8 []byte, now time.Time) ([]byte, error) {
	keys, err := asn1.Marshal([]asn1.RawValue{{FullBytes: pkcs8}})
	if err != nil {
		return nil, err
	}
	defer clear(keys)
	signed, err := cms.Sign(cms.OIDKeyPackage, keys, s.chain, s.key, now)
	if err != nil {
		return nil, err
	}
	defer clear(signed)
	return cms.Encrypt(cms.OIDSignedData, signed, s.cipher, s.to)
}

// sealerFor finds the key that the request names and algorithms that the client lists.
func (s *Server) sealerFor(ctx context.Context, e Endpoint, c Client, wish est.KeyWish) (*sealer, error) {
	out := &sealer{}
	if out.chain, out.key = s.c.Provider.KeyGenerator(); out.key == nil {
		return nil, &refusal{error: cradle.Errorf(cradle.Invalid, "keys are not sent encrypted here").
			WithHint("leave the key identifier out: the key comes inside TLS"), status: http.StatusNotImplemented}
	}
	var wrap asn1.ObjectIdentifier // nil for RSA
	var err error
	if wish.DecryptKeyID != nil {
		wrap, err = out.symmetric(ctx, s.c.Provider, e, wish)
	} else {
		wrap, err = out.asymmetric(c.Peer, wish)
	}
	if err != nil {
		return nil, err
	}
	// The strongest cipher that is listed; who lists key wraps alone gets the cipher of that size.
	for _, o := range []asn1.ObjectIdentifier{cms.OIDAES256CBC, cms.OIDAES192CBC, cms.OIDAES128CBC} {
		if wish.Can(o) {
			out.cipher = o
			return out, nil
		}
		if wrap != nil && cms.KeySize(o) == cms.KeySize(wrap) {
			out.cipher = o
		}
	}
	if out.cipher == nil {
		return nil, cradle.Errorf(cradle.Invalid, "the SMIMECapabilities list no cipher that is used here").
			WithHint("list AES-256-CBC or AES-128-CBC (RFC 3565)")
	}
	return out, nil
}

// symmetric: RFC 7030 §4.4.1.1.
func (s *sealer) symmetric(ctx context.Context, p Provider, e Endpoint, wish est.KeyWish) (wrap asn1.ObjectIdentifier, err error) {
	key, err := p.DecryptKey(ctx, e, wish.DecryptKeyID)
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, cradle.Errorf(cradle.Invalid, "the DecryptKeyIdentifier %.64x names no key that was agreed for this resource", wish.DecryptKeyID)
	}
	if err != nil {
		return nil, err
	}
	if wrap = cms.WrapFor(len(key)); wrap == nil {
		return nil, fmt.Errorf("internal error: a key-encryption key of %d bytes", len(key))
	}
	if !wish.Can(wrap) {
		return nil, cradle.Errorf(cradle.Invalid, "the SMIMECapabilities lack AES-%d key wrap, which that key is for", 8*len(key)).WithHint("list it (RFC 3565)")
	}
	s.to, s.bits = cms.KEK{ID: wish.DecryptKeyID, Key: key}, 8*len(key)
	return wrap, nil
}

// asymmetric: RFC 7030 §4.4.1.2. The only key pair that is known to be the client's is that of its TLS certificate.
func (s *sealer) asymmetric(peer *x509.Certificate, wish est.KeyWish) (wrap asn1.ObjectIdentifier, err error) {
	if peer == nil || !namesKey(wish.AsymmetricKeyID, peer) {
		return nil, cradle.Errorf(cradle.Invalid, "the AsymmetricDecryptKeyIdentifier %.64x names no known key of this client", wish.AsymmetricKeyID).
			WithHint("name the key of the TLS client certificate, by its subject key identifier")
	}
	use := func(u x509.KeyUsage, name string) error {
		if peer.KeyUsage != 0 && peer.KeyUsage&u == 0 {
			return cradle.Errorf(cradle.Invalid, "the client certificate does not allow %s, so no key is encrypted to it (RFC 5280 §4.2.1.3)", name)
		}
		return nil
	}
	switch k := peer.PublicKey.(type) {
	case *rsa.PublicKey:
		s.to, s.bits = cms.KeyTrans{Cert: peer, OAEP: wish.Can(cms.OIDRSAOAEP)}, rsaStrength(k.N.BitLen())
		return nil, use(x509.KeyUsageKeyEncipherment, "keyEncipherment")
	case *ecdsa.PublicKey:
		for _, o := range []asn1.ObjectIdentifier{cms.OIDAES256Wrap, cms.OIDAES192Wrap, cms.OIDAES128Wrap} {
			if wrap == nil && wish.Can(o) {
				wrap = o
			}
		}
		if wrap == nil {
			return nil, cradle.Errorf(cradle.Invalid, "the SMIMECapabilities list no AES key wrap").WithHint("list AES-256 or AES-128 key wrap (RFC 3565)")
		}
		s.to, s.bits = cms.KeyAgree{Cert: peer, Wrap: wrap}, k.Curve.Params().BitSize/2
		return wrap, use(x509.KeyUsageKeyAgreement, "keyAgreement")
	}
	return nil, cradle.Errorf(cradle.Invalid, "the client certificate's key (%s) cannot receive an encrypted key", peer.PublicKeyAlgorithm)
}

// namesKey: the subject key identifier, in the certificate or by the usual methods (RFC 5280 §4.2.1.2, RFC 7093 §2), or
// IssuerAndSerialNumber.
func namesKey(id []byte, c *x509.Certificate) bool {
	if len(c.SubjectKeyId) > 0 && bytes.Equal(id, c.SubjectKeyId) {
		return true
	}
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &spki); err != nil {
		return false
	}
	old, now := sha1.Sum(spki.Key.Bytes), sha256.Sum256(spki.Key.Bytes) //nolint:gosec // see the import
	is, err := cms.IssuerAndSerial(c)
	return bytes.Equal(id, old[:]) || bytes.Equal(id, now[:20]) || err == nil && bytes.Equal(id, is)
}

// rsaStrength is SP 800-57 part 1, table 2.
func rsaStrength(bits int) int {
	switch {
	case bits >= 15360:
		return 256
	case bits >= 7680:
		return 192
	case bits >= 3072:
		return 128
	case bits >= 2048:
		return 112
	}
	return 80
}
