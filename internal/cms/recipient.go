package cms

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"hash"
)

// KeyTrans is a recipient with an RSA key (KeyTransRecipientInfo, RFC 5652 §6.2.1): by RSAES-OAEP with SHA-256,
// or by RSAES-PKCS1-v1_5.
type KeyTrans struct {
	Cert *x509.Certificate
	OAEP bool
}

type keyTransInfo struct {
	Version   int
	Recipient asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

// recipientID names a certificate by its subject key identifier ([0]) or by issuer and serial.
func recipientID(c *x509.Certificate) (id asn1.RawValue, bySKI bool, err error) {
	if len(c.SubjectKeyId) > 0 {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: c.SubjectKeyId}, true, nil
	}
	der, err := asn1.Marshal(issuerSerial(c))
	return asn1.RawValue{FullBytes: der}, false, err
}

func (r KeyTrans) info(key []byte) (der []byte, v0 bool, err error) {
	pub, ok := r.Cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, false, bad("the recipient's key is not RSA")
	}
	id, bySKI, err := recipientID(r.Cert)
	if err != nil {
		return nil, false, bad("recipient: %w", err)
	}
	ri := keyTransInfo{Version: 0, Recipient: id, Algorithm: pkix.AlgorithmIdentifier{Algorithm: OIDRSA, Parameters: asn1.NullRawValue}}
	if bySKI {
		ri.Version = 2
	}
	if r.OAEP {
		ri.Algorithm = pkix.AlgorithmIdentifier{Algorithm: OIDRSAOAEP, Parameters: asn1.RawValue{FullBytes: oaepSHA256}}
		ri.Key, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, key, nil)
	} else {
		ri.Key, err = rsa.EncryptPKCS1v15(rand.Reader, pub, key) //nolint:staticcheck // what S/MIME clients that know no OAEP read
	}
	if err != nil {
		return nil, false, fmt.Errorf("encrypting to an RSA key: %w", err)
	}
	der, err = asn1.Marshal(ri)
	return der, !bySKI, err
}

// oaepSHA256 is RSAES-OAEP-params with SHA-256 for digest and mask (RFC 4055 §4.1).
var oaepSHA256 = func() []byte {
	hash := pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	hashDER := must(asn1.Marshal(hash))
	return must(asn1.Marshal(oaepParameters{Hash: hash, Mask: pkix.AlgorithmIdentifier{Algorithm: oidMGF1, Parameters: asn1.RawValue{FullBytes: hashDER}}}))
}()

var oidMGF1 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}

type oaepParameters struct {
	Hash  pkix.AlgorithmIdentifier `asn1:"explicit,tag:0,optional"`
	Mask  pkix.AlgorithmIdentifier `asn1:"explicit,tag:1,optional"`
	Label asn1.RawValue            `asn1:"explicit,tag:2,optional"`
}

// isOAEPSHA256 takes SHA-256 with NULL parameters or without, as both are found.
func isOAEPSHA256(der []byte) bool {
	var p oaepParameters
	var h pkix.AlgorithmIdentifier
	return unmarshal(der, &p, "RSAES-OAEP-params") == nil && p.Hash.Algorithm.Equal(oidSHA256) && p.Mask.Algorithm.Equal(oidMGF1) &&
		unmarshal(p.Mask.Parameters.FullBytes, &h, "mask hash") == nil && h.Algorithm.Equal(oidSHA256) && len(p.Label.FullBytes) == 0
}

func must(der []byte, err error) []byte {
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return der
}

// RSAKey opens what KeyTrans closed.
type RSAKey struct {
	Cert *x509.Certificate
	Key  *rsa.PrivateKey
}

func (k RSAKey) open(info asn1.RawValue) ([]byte, error) {
	if info.Class != asn1.ClassUniversal || info.Tag != asn1.TagSequence {
		return nil, nil
	}
	var ri keyTransInfo
	if err := unmarshal(info.FullBytes, &ri, "KeyTransRecipientInfo"); err != nil || !names(ri.Recipient, k.Cert) {
		return nil, err
	}
	var key []byte
	var err error
	switch {
	case ri.Algorithm.Algorithm.Equal(OIDRSAOAEP) && isOAEPSHA256(ri.Algorithm.Parameters.FullBytes):
		key, err = rsa.DecryptOAEP(sha256.New(), nil, k.Key, ri.Key, nil)
	case ri.Algorithm.Algorithm.Equal(OIDRSA):
		key, err = rsa.DecryptPKCS1v15(nil, k.Key, ri.Key) //nolint:staticcheck // see KeyTrans
	default:
		return nil, bad("key transport algorithm %v", ri.Algorithm.Algorithm)
	}
	if err != nil {
		return nil, bad("the content key does not decrypt")
	}
	return key, nil
}

// KeyAgree is a recipient with an EC key (KeyAgreeRecipientInfo with an ephemeral originator, RFC 5753): ECDH,
// X9.63 key derivation with SHA-256 or SHA-384 by the curve, and an AES key wrap.
type KeyAgree struct {
	Cert *x509.Certificate
	Wrap asn1.ObjectIdentifier // OIDAES128Wrap, OIDAES192Wrap or OIDAES256Wrap
}

type keyAgreeInfo struct {
	Version    int
	Originator asn1.RawValue `asn1:"explicit,tag:0"`
	UKM        []byte        `asn1:"explicit,optional,tag:1"`
	Algorithm  pkix.AlgorithmIdentifier
	Keys       []recipientKey
}

type recipientKey struct {
	Recipient asn1.RawValue // IssuerAndSerialNumber, or [0] RecipientKeyIdentifier
	Key       []byte
}

// originatorKey is [1] OriginatorPublicKey.
type originatorKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Public    asn1.BitString
}

// dhSinglePass-stdDH-…kdf-scheme (RFC 5753 §7.1.4).
var kdfs = []struct {
	oid asn1.ObjectIdentifier
	new func() hash.Hash
}{
	{asn1.ObjectIdentifier{1, 3, 132, 1, 11, 1}, sha256.New},
	{asn1.ObjectIdentifier{1, 3, 132, 1, 11, 2}, sha512.New384},
	{asn1.ObjectIdentifier{1, 3, 132, 1, 11, 3}, sha512.New},
}

func (r KeyAgree) info(key []byte) (der []byte, v0 bool, err error) {
	pub, ok := r.Cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, false, bad("the recipient's key is not on an elliptic curve")
	}
	static, err := pub.ECDH()
	if err != nil {
		return nil, false, bad("the recipient's key: %w", err)
	}
	ephemeral, err := static.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, false, fmt.Errorf("an ephemeral key: %w", err)
	}
	z, err := ephemeral.ECDH(static)
	if err != nil {
		return nil, false, bad("the recipient's key: %w", err)
	}
	kdf := kdfs[0]
	if pub.Curve.Params().BitSize > 256 {
		kdf = kdfs[1]
	}
	wrap := pkix.AlgorithmIdentifier{Algorithm: r.Wrap}
	kek, err := deriveKEK(kdf.new, z, wrap, nil)
	if err != nil {
		return nil, false, err
	}
	wrapped, err := wrapKey(kek, key)
	if err != nil {
		return nil, false, err
	}
	point := ephemeral.PublicKey().Bytes()
	origin := must(asn1.MarshalWithParams(originatorKey{pkix.AlgorithmIdentifier{Algorithm: oidECPublic}, asn1.BitString{Bytes: point, BitLength: 8 * len(point)}}, "tag:1"))
	var id asn1.RawValue
	if len(r.Cert.SubjectKeyId) > 0 {
		ski := must(asn1.Marshal(r.Cert.SubjectKeyId))
		id = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: ski}
	} else if id.FullBytes, err = asn1.Marshal(issuerSerial(r.Cert)); err != nil {
		return nil, false, bad("recipient: %w", err)
	}
	der, err = asn1.MarshalWithParams(keyAgreeInfo{Version: 3,
		Originator: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: origin},
		Algorithm:  pkix.AlgorithmIdentifier{Algorithm: kdf.oid, Parameters: asn1.RawValue{FullBytes: must(asn1.Marshal(wrap))}},
		Keys:       []recipientKey{{id, wrapped}}}, "tag:1")
	return der, false, err
}

// deriveKEK is the X9.63 key derivation with ECC-CMS-SharedInfo (RFC 5753 §7.2).
func deriveKEK(newHash func() hash.Hash, z []byte, wrap pkix.AlgorithmIdentifier, ukm []byte) ([]byte, error) {
	size := KeySize(wrap.Algorithm)
	if size == 0 || !isWrap(wrap.Algorithm) {
		return nil, bad("key wrap algorithm %v", wrap.Algorithm)
	}
	info, err := asn1.Marshal(struct {
		Wrap pkix.AlgorithmIdentifier
		UKM  []byte `asn1:"explicit,optional,tag:0"`
		Bits []byte `asn1:"explicit,tag:2"`
	}{wrap, ukm, binary.BigEndian.AppendUint32(nil, uint32(8*size))})
	if err != nil {
		return nil, bad("ECC-CMS-SharedInfo: %w", err)
	}
	var out []byte
	for i := uint32(1); len(out) < size; i++ {
		h := newHash()
		h.Write(z)
		h.Write(binary.BigEndian.AppendUint32(nil, i))
		h.Write(info)
		out = h.Sum(out)
	}
	return out[:size], nil
}

func isWrap(o asn1.ObjectIdentifier) bool {
	return o.Equal(OIDAES128Wrap) || o.Equal(OIDAES192Wrap) || o.Equal(OIDAES256Wrap)
}

// ECKey opens what KeyAgree closed.
type ECKey struct {
	Cert *x509.Certificate
	Key  *ecdh.PrivateKey
}

func (k ECKey) open(info asn1.RawValue) ([]byte, error) {
	if info.Class != asn1.ClassContextSpecific || info.Tag != 1 {
		return nil, nil
	}
	var ri keyAgreeInfo
	if err := unmarshalTag(info.FullBytes, &ri, "tag:1", "KeyAgreeRecipientInfo"); err != nil {
		return nil, err
	}
	for _, rk := range ri.Keys {
		if !k.named(rk.Recipient) {
			continue
		}
		var origin originatorKey
		if err := unmarshalTag(ri.Originator.Bytes, &origin, "tag:1", "OriginatorPublicKey"); err != nil {
			return nil, err
		}
		pub, err := k.Key.Curve().NewPublicKey(origin.Public.Bytes)
		if err != nil {
			return nil, bad("the originator's key is not a point of this curve")
		}
		z, err := k.Key.ECDH(pub)
		if err != nil {
			return nil, bad("the originator's key: %w", err)
		}
		var wrap pkix.AlgorithmIdentifier
		if err := unmarshal(ri.Algorithm.Parameters.FullBytes, &wrap, "key wrap algorithm"); err != nil {
			return nil, err
		}
		for _, kdf := range kdfs {
			if kdf.oid.Equal(ri.Algorithm.Algorithm) {
				kek, err := deriveKEK(kdf.new, z, wrap, ri.UKM)
				if err != nil {
					return nil, err
				}
				return unwrapKey(kek, rk.Key)
			}
		}
		return nil, bad("key agreement algorithm %v", ri.Algorithm.Algorithm)
	}
	return nil, nil
}

// named: RecipientKeyIdentifier is [0] SEQUENCE whose first element is the subject key identifier.
func (k ECKey) named(id asn1.RawValue) bool {
	if id.Class == asn1.ClassContextSpecific {
		var ski []byte
		_, err := asn1.Unmarshal(id.Bytes, &ski)
		return err == nil && id.Tag == 0 && len(ski) > 0 && bytes.Equal(ski, k.Cert.SubjectKeyId)
	}
	return names(id, k.Cert)
}

// KEK is a recipient with a symmetric key of 16, 24 or 32 bytes that both sides know by ID
// (KEKRecipientInfo, RFC 5652 §6.2.3), and the key that opens it.
type KEK struct {
	ID  []byte
	Key []byte
}

type kekInfo struct {
	Version   int
	ID        kekID
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

type kekID struct {
	ID   []byte
	Rest asn1.RawValue `asn1:"optional"`
}

// WrapFor is the AES key wrap for a key of that many bytes, nil when there is none.
func WrapFor(size int) asn1.ObjectIdentifier {
	for _, o := range []asn1.ObjectIdentifier{OIDAES128Wrap, OIDAES192Wrap, OIDAES256Wrap} {
		if KeySize(o) == size {
			return o
		}
	}
	return nil
}

func (k KEK) info(key []byte) (der []byte, v0 bool, err error) {
	wrap := WrapFor(len(k.Key))
	if wrap == nil {
		return nil, false, bad("a key-encryption key of %d bytes", len(k.Key))
	}
	wrapped, err := wrapKey(k.Key, key)
	if err != nil {
		return nil, false, err
	}
	der, err = asn1.MarshalWithParams(kekInfo{Version: 4, ID: kekID{ID: k.ID}, Algorithm: pkix.AlgorithmIdentifier{Algorithm: wrap}, Key: wrapped}, "tag:2")
	return der, false, err
}

func (k KEK) open(info asn1.RawValue) ([]byte, error) {
	if info.Class != asn1.ClassContextSpecific || info.Tag != 2 {
		return nil, nil
	}
	var ri kekInfo
	if err := unmarshalTag(info.FullBytes, &ri, "tag:2", "KEKRecipientInfo"); err != nil || !bytes.Equal(ri.ID.ID, k.ID) {
		return nil, err
	}
	if !isWrap(ri.Algorithm.Algorithm) || KeySize(ri.Algorithm.Algorithm) != len(k.Key) {
		return nil, bad("key wrap algorithm %v for a key of %d bytes", ri.Algorithm.Algorithm, len(k.Key))
	}
	return unwrapKey(k.Key, ri.Key)
}
