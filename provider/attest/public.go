package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// publicArea is a TPMT_PUBLIC (TPM 2.0 Part 2 §12.2.4) of an ECC or RSA key; of any other type only the common
// fields are decoded, since every such key is refused. Decoding by hand takes a tenth of the time of
// go-tpm's reflection, which was more than half of a verdict; FuzzAttestationKey compares the two.
type publicArea struct {
	typ, nameAlg tpm2.TPMAlgID
	attributes   uint32 // TPMA_OBJECT
	policy       []byte
	symmetric    symmetric
	scheme       scheme
	curve        tpm2.TPMECCCurve
	kdf          scheme
	x, y         []byte
	bits         uint16 // RSA
	exponent     uint32 // RSA; 0 is 65537
	modulus      []byte // RSA
}

// symmetric is a TPMT_SYM_DEF_OBJECT.
type symmetric struct {
	alg        tpm2.TPMAlgID
	bits, mode uint16
}

// scheme is a TPMT_ECC_SCHEME, TPMT_RSA_SCHEME or TPMT_KDF_SCHEME.
type scheme struct {
	alg, hash tpm2.TPMAlgID
	count     uint16 // ECDAA
}

// The bits of TPMA_OBJECT (Part 2 §8.3) that have a check of their own.
const (
	fixedTPM            uint32 = 1 << 1
	fixedParent         uint32 = 1 << 4
	sensitiveDataOrigin uint32 = 1 << 5
	restricted          uint32 = 1 << 16
	decrypt             uint32 = 1 << 17
	signEncrypt         uint32 = 1 << 18
)

// parsePublic decodes b whole. Each public area has one encoding, and no byte of it is skipped.
func parsePublic(b []byte) (*publicArea, error) {
	w := wire{b: b}
	alg := func() tpm2.TPMAlgID { return tpm2.TPMAlgID(w.u16()) }
	p := &publicArea{typ: alg(), nameAlg: alg(), attributes: w.u32(), policy: w.sized()}
	if w.bad {
		return nil, errors.New("not a TPMT_PUBLIC")
	}
	if p.typ != tpm2.TPMAlgECC && p.typ != tpm2.TPMAlgRSA {
		return p, nil
	}
	if p.symmetric.alg = alg(); p.symmetric.alg != tpm2.TPMAlgNull {
		p.symmetric.bits, p.symmetric.mode = w.u16(), w.u16()
	}
	if p.scheme.alg = alg(); p.scheme.alg != tpm2.TPMAlgNull {
		if p.scheme.alg != tpm2.TPMAlgRSAES {
			p.scheme.hash = alg()
		}
		if p.scheme.alg == tpm2.TPMAlgECDAA {
			p.scheme.count = w.u16()
		}
	}
	if p.typ == tpm2.TPMAlgRSA {
		if p.bits, p.exponent, p.modulus = w.u16(), w.u32(), w.sized(); w.bad || len(w.b) > 0 {
			return nil, errors.New("not a TPMT_PUBLIC of an RSA key, or bytes after it")
		}
		return p, nil
	}
	p.curve = tpm2.TPMECCCurve(w.u16())
	if p.kdf.alg = alg(); p.kdf.alg != tpm2.TPMAlgNull {
		p.kdf.hash = alg()
	}
	p.x, p.y = w.sized(), w.sized()
	if w.bad || len(w.b) > 0 {
		return nil, errors.New("not a TPMT_PUBLIC of an ECC key, or bytes after it")
	}
	return p, nil
}

func (p *publicArea) isECC() bool { return p.typ == tpm2.TPMAlgECC }

// curves are those whose keys can be used at all; keyChecks allow fewer. spki is the DER of a
// SubjectPublicKeyInfo up to the point (RFC 5480 §2).
var curves = map[tpm2.TPMECCCurve]struct {
	elliptic.Curve
	spki []byte
}{
	tpm2.TPMECCNistP256: {elliptic.P256(), unhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")},
	tpm2.TPMECCNistP384: {elliptic.P384(), unhex("3076301006072a8648ce3d020106052b81040022036200")},
}

// spki returns the DER of the key's SubjectPublicKeyInfo; an error means that it is no key that can be used.
func (p *publicArea) spki() ([]byte, error) {
	if p.typ == tpm2.TPMAlgRSA {
		k, err := p.rsaKey()
		if err != nil {
			return nil, err
		}
		return x509.MarshalPKIXPublicKey(k)
	}
	_, der, err := p.publicKey()
	return der, err
}

// rsaKey returns the key if its modulus has the size that it says.
func (p *publicArea) rsaKey() (*rsa.PublicKey, error) {
	k := &rsa.PublicKey{N: new(big.Int).SetBytes(p.modulus), E: int(p.exponent)}
	if k.E == 0 {
		k.E = 65537
	}
	if k.N.BitLen() != int(p.bits) {
		return nil, fmt.Errorf("a modulus of %d bits in an RSA key of %d", k.N.BitLen(), p.bits)
	}
	return k, nil
}

// publicKey returns the key and the DER of its SubjectPublicKeyInfo; an error means that it is no ECC key
// on a known curve.
func (p *publicArea) publicKey() (*ecdsa.PublicKey, []byte, error) {
	c, ok := curves[p.curve]
	if !ok || !p.isECC() {
		return nil, nil, errors.New("not an ECC key on P-256 or P-384")
	}
	n := (c.Params().BitSize + 7) / 8
	if len(p.x) > n || len(p.y) > n {
		return nil, nil, errors.New("coordinates are too long")
	}
	point := make([]byte, 1+2*n)
	point[0] = 4 // uncompressed
	copy(point[1+n-len(p.x):], p.x)
	copy(point[1+2*n-len(p.y):], p.y)
	key, err := ecdsa.ParseUncompressedPublicKey(c.Curve, point)
	if err != nil {
		return nil, nil, err
	}
	return key, slices.Concat(c.spki, point), nil
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}
