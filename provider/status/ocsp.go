package status

import (
	"crypto"
	_ "crypto/sha1" // CertIDs of clients; nothing is signed with it
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/asn1"
	"math/big"

	"github.com/cradle-iot/cradle"
)

// Limits of a request. The largest that a client of ours sends has two certificates and a nonce.
const (
	maxRequest = 8 << 10
	maxCerts   = 16
	maxNonce   = 128 // RFC 9654 §2.1
	maxSerial  = 21  // bytes; RFC 5280 §4.1.2.2 has 20, some write a sign byte more
)

// CertID names a certificate by its issuer's name and key and its serial number (RFC 6960 §4.1.1).
type CertID struct {
	Hash     crypto.Hash
	NameHash []byte
	KeyHash  []byte
	Serial   *big.Int
	raw      []byte // as it was sent: the answer repeats it
}

// Request is an OCSP request as far as it is answered: a signature and the name of who asks are read over.
type Request struct {
	Certs []CertID
	Nonce []byte // nil for none
}

var certIDHashes = []struct {
	oid  asn1.ObjectIdentifier
	hash crypto.Hash
}{
	{asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, crypto.SHA1},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA256},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA384},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, crypto.SHA512},
}

var (
	oidNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidBasic = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
)

func malformed(format string, args ...any) error {
	return cradle.Errorf(cradle.Invalid, "OCSP request: "+format, args...)
}

// der walks through DER values.
type der struct{ rest []byte }

func (d *der) empty() bool { return len(d.rest) == 0 }

// next reads any one value.
func (d *der) next() (v asn1.RawValue, err error) {
	d.rest, err = asn1.Unmarshal(d.rest, &v)
	return v, err
}

// sequence reads a SEQUENCE and enters it.
func (d *der) sequence() (der, bool) {
	v, err := d.next()
	return der{v.Bytes}, err == nil && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence && v.IsCompound
}

// optional enters [tag] if it comes next; a tag that is there and is not constructed is not ok.
func (d *der) optional(tag int) (in der, there, ok bool) {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(d.rest, &v)
	if d.empty() || err != nil || v.Class != asn1.ClassContextSpecific || v.Tag != tag {
		return der{}, false, true
	}
	d.rest = rest
	return der{v.Bytes}, true, v.IsCompound
}

// ParseRequest reads a DER OCSPRequest. Errors are of kind Invalid, or TooLarge.
func ParseRequest(b []byte) (*Request, error) {
	if len(b) > maxRequest {
		return nil, cradle.Errorf(cradle.TooLarge, "OCSP request has %d bytes; at most %d", len(b), maxRequest)
	}
	top := der{b}
	seq, ok := top.sequence()
	if !ok || !top.empty() {
		return nil, malformed("not one SEQUENCE")
	}
	tbs, ok := seq.sequence()
	if !ok {
		return nil, malformed("no TBSRequest")
	}
	if _, _, ok := seq.optional(0); !ok || !seq.empty() { // optionalSignature: nobody has to sign here
		return nil, malformed("something follows the TBSRequest")
	}
	out := new(Request)
	if v, there, ok := tbs.optional(0); !ok {
		return nil, malformed("version")
	} else if there {
		if n, err := v.next(); err != nil || n.Tag != asn1.TagInteger || len(n.Bytes) != 1 || n.Bytes[0] != 0 || !v.empty() {
			return nil, malformed("version is not v1")
		}
	}
	if _, _, ok := tbs.optional(1); !ok {
		return nil, malformed("requestorName")
	}
	list, ok := tbs.sequence()
	if !ok {
		return nil, malformed("no requestList")
	}
	for !list.empty() {
		if len(out.Certs) == maxCerts {
			return nil, cradle.Errorf(cradle.TooLarge, "OCSP request asks for more than %d certificates", maxCerts)
		}
		id, err := parseSingle(&list)
		if err != nil {
			return nil, err
		}
		out.Certs = append(out.Certs, id)
	}
	if len(out.Certs) == 0 {
		return nil, malformed("it asks for no certificate")
	}
	ext, there, ok := tbs.optional(2)
	if !ok || !tbs.empty() {
		return nil, malformed("something follows the requestList")
	}
	if there {
		if err := parseExtensions(&ext, func(id asn1.ObjectIdentifier, value []byte) (bool, error) {
			if !id.Equal(oidNonce) {
				return false, nil
			}
			if out.Nonce != nil {
				return false, malformed("two nonces")
			}
			n, err := parseNonce(value)
			out.Nonce = n
			return true, err
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseNonce reads the nonce inside of its extension (RFC 9654 §2.1: an OCTET STRING of 1 to 128).
func parseNonce(value []byte) ([]byte, error) {
	in := der{value}
	v, err := in.next()
	if err != nil || !in.empty() || v.Class != asn1.ClassUniversal || v.Tag != asn1.TagOctetString || v.IsCompound {
		return nil, malformed("the nonce is not an OCTET STRING")
	}
	if len(v.Bytes) == 0 || len(v.Bytes) > maxNonce {
		return nil, malformed("the nonce has %d bytes; 1 to %d are allowed", len(v.Bytes), maxNonce)
	}
	return v.Bytes, nil
}

// parseSingle reads one Request.
func parseSingle(list *der) (CertID, error) {
	single, ok := list.sequence()
	if !ok {
		return CertID{}, malformed("no Request")
	}
	id, err := parseCertID(&single)
	if err != nil {
		return CertID{}, err
	}
	ext, there, ok := single.optional(0)
	if !ok || !single.empty() {
		return CertID{}, malformed("something follows the CertID")
	}
	if there {
		err = parseExtensions(&ext, func(asn1.ObjectIdentifier, []byte) (bool, error) { return false, nil })
	}
	return id, err
}

func parseCertID(d *der) (CertID, error) {
	whole, err := d.next()
	if err != nil || whole.Class != asn1.ClassUniversal || whole.Tag != asn1.TagSequence || !whole.IsCompound {
		return CertID{}, malformed("no CertID")
	}
	in := der{whole.Bytes}
	alg, ok := in.sequence()
	if !ok {
		return CertID{}, malformed("no hashAlgorithm")
	}
	var oid asn1.ObjectIdentifier
	if alg.rest, err = asn1.Unmarshal(alg.rest, &oid); err != nil {
		return CertID{}, malformed("hashAlgorithm: %v", err)
	}
	if !alg.empty() {
		if v, err := alg.next(); err != nil || v.Tag != asn1.TagNull || v.Class != asn1.ClassUniversal || len(v.Bytes) != 0 || !alg.empty() {
			return CertID{}, malformed("hashAlgorithm has parameters")
		}
	}
	id := CertID{raw: whole.FullBytes}
	for _, h := range certIDHashes {
		if h.oid.Equal(oid) {
			id.Hash = h.hash
		}
	}
	if id.Hash == 0 {
		return CertID{}, malformed("hash algorithm %v is not SHA-1 or SHA-2", oid)
	}
	for _, to := range []*[]byte{&id.NameHash, &id.KeyHash} {
		v, err := in.next()
		if err != nil || v.Class != asn1.ClassUniversal || v.Tag != asn1.TagOctetString || v.IsCompound || len(v.Bytes) != id.Hash.Size() {
			return CertID{}, malformed("a hash of the issuer has not %d bytes", id.Hash.Size())
		}
		*to = v.Bytes
	}
	v, err := in.next()
	if err != nil || v.Class != asn1.ClassUniversal || v.Tag != asn1.TagInteger || len(v.Bytes) > maxSerial || !in.empty() {
		return CertID{}, malformed("serialNumber")
	}
	id.Serial = new(big.Int)
	if _, err := asn1.Unmarshal(v.FullBytes, &id.Serial); err != nil {
		return CertID{}, malformed("serialNumber: %v", err)
	}
	return id, nil
}

// parseExtensions calls take for each extension; one that is critical and not taken refuses the request.
func parseExtensions(d *der, take func(id asn1.ObjectIdentifier, value []byte) (bool, error)) error {
	list, ok := d.sequence()
	if !ok || !d.empty() {
		return malformed("extensions")
	}
	for !list.empty() {
		v, err := list.next()
		if err != nil {
			return malformed("extensions: %v", err)
		}
		var e struct {
			ID       asn1.ObjectIdentifier
			Critical bool `asn1:"optional"`
			Value    []byte
		}
		if rest, err := asn1.Unmarshal(v.FullBytes, &e); err != nil || len(rest) > 0 {
			return malformed("an extension cannot be read")
		}
		taken, err := take(e.ID, e.Value)
		if err != nil {
			return err
		}
		if e.Critical && !taken {
			return malformed("critical extension %v is not understood", e.ID)
		}
	}
	return nil
}
