// Package tpmblob makes what Azure DPS sends to a TPM: a symmetric key that only the TPM with a given
// endorsement key takes in, below a storage root key that it holds. The device activates the wrapping key
// with TPM2_ActivateCredential and imports the symmetric one with TPM2_Import; it then signs its SAS tokens
// inside the TPM.
//
// A blob is the concatenation, big-endian, that Microsoft's clients take apart:
//
//	TPM2B_ID_OBJECT | TPM2B_ENCRYPTED_SECRET   the wrapping key, for the EK, bound to the SRK's name
//	TPM2B_PRIVATE | TPM2B_ENCRYPTED_SECRET     the symmetric key, wrapped with it and for the SRK
//	TPM2B_PUBLIC                               the symmetric key's public area (keyedHash, HMAC-SHA256)
//	TPM2B_DATA                                 empty
//
// (TPM 2.0 Part 1 §23.3 duplication, §24 credential protection.) Everything that decides here is taken from
// the public areas, which Parse checks: an endorsement key, and a storage key, that never leave a TPM.
// Whether that TPM is genuine, or the right one, is for the caller to know.
package tpmblob

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
)

// MaxPublic bounds a TPM2B_PUBLIC in bytes; that of a 4096-bit key has some 570.
const MaxPublic = 1024

// KeySize is the size in bytes of the symmetric key.
const KeySize = 32

// Public is the public area of a TPM's restricted decryption key.
type Public struct {
	area tpm2.TPMTPublic
	raw  []byte // TPMT_PUBLIC
	spki []byte
}

// Parse reads a TPM2B_PUBLIC of an endorsement or a storage root key: nameAlg SHA-256, AES-128-CFB, RSA of 2048 to
// 4096 bits or P-256, made in a TPM and fixed to it. what names the key in errors, which are of kind Invalid.
func Parse(what string, b []byte) (*Public, error) {
	bad := func(format string, args ...any) (*Public, error) {
		return nil, cradle.Errorf(cradle.Invalid, "%s: %s", what, fmt.Sprintf(format, args...)).
			WithHint("send the key's TPM2B_PUBLIC, size included, in base64")
	}
	if len(b) < 2 || len(b) > MaxPublic || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return bad("%d bytes are no TPM2B_PUBLIC", len(b))
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b[2:])
	if err != nil {
		return bad("not a TPMT_PUBLIC: %v", err)
	}
	p := &Public{area: *area, raw: tpm2.Marshal(*area)}
	if !bytes.Equal(p.raw, b[2:]) {
		return bad("the TPMT_PUBLIC is followed by more bytes, or not in its canonical form")
	}
	a := area.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return bad("its attributes are not those of a restricted decryption key that is fixed to its TPM")
	}
	if area.NameAlg != tpm2.TPMAlgSHA256 {
		return bad("its name algorithm is 0x%04x, not SHA-256", uint16(area.NameAlg))
	}
	var sym tpm2.TPMTSymDefObject
	switch area.Type {
	case tpm2.TPMAlgRSA:
		parms, err := area.Parameters.RSADetail()
		if err != nil {
			return bad("RSA parameters: %v", err)
		}
		sym = parms.Symmetric
	case tpm2.TPMAlgECC:
		parms, err := area.Parameters.ECCDetail()
		if err != nil {
			return bad("ECC parameters: %v", err)
		}
		sym = parms.Symmetric
	default:
		return bad("its type is 0x%04x, neither RSA nor ECC", uint16(area.Type))
	}
	bits, bitsErr := sym.KeyBits.AES()
	mode, modeErr := sym.Mode.AES()
	if sym.Algorithm != tpm2.TPMAlgAES || bitsErr != nil || modeErr != nil || *bits != 128 || *mode != tpm2.TPMAlgCFB {
		return bad("its symmetric algorithm is not AES-128-CFB")
	}
	pub, err := tpm2.Pub(*area)
	if err != nil {
		return bad("%v", err)
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 || k.E < 3 || k.E%2 == 0 || k.N.Bit(0) == 0 {
			return bad("an RSA key of %d bits is not supported (2048 to 4096)", n)
		}
	case *ecdsa.PublicKey:
		if k.Params().BitSize != 256 || !k.Curve.IsOnCurve(k.X, k.Y) { //nolint:staticcheck // ECDH below checks again
			return bad("an ECC key must be on P-256")
		}
	}
	if p.spki, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		return bad("%v", err)
	}
	return p, nil
}

// Digest is SHA-256 of the key's SubjectPublicKeyInfo, by which the credential provider knows an endorsement key.
func (p *Public) Digest() [32]byte { return sha256.Sum256(p.spki) }

// Type names the kind of key as orders do: rsa2048, rsa3072, rsa4096, p256.
func (p *Public) Type() string {
	key, err := x509.ParsePKIXPublicKey(p.spki)
	if rsaKey, ok := key.(*rsa.PublicKey); err == nil && ok {
		return "rsa" + strconv.Itoa(rsaKey.N.BitLen())
	}
	return "p256" // what else Parse lets pass
}

// Equal compares whole public areas.
func (p *Public) Equal(o *Public) bool { return bytes.Equal(p.raw, o.raw) }

// name is TPM2B_NAME's content.
func name(area []byte) []byte {
	sum := sha256.Sum256(area)
	return append([]byte{0x00, 0x0b}, sum[:]...)
}

// Make wraps key (KeySize bytes) for the TPM that holds ek and srk.
func Make(ek, srk *Public, key []byte) ([]byte, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("key of %d bytes, not %d", len(key), KeySize)
	}
	var wrap [16]byte
	var seed [32]byte
	rand.Read(wrap[:])
	rand.Read(seed[:])

	unique := sha256.Sum256(append(append([]byte{}, seed[:]...), key...))
	object := tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true, NoDA: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique[:]}),
	})
	objectName := name(object)

	// TPM2B_SENSITIVE, then the inner wrapper: TPM2B_DIGEST of it with the name, encrypted (Part 1 §23.3.2.2).
	sensitive := sized([]byte{0x00, 0x08, 0x00, 0x00}, sized(seed[:]), sized(key))
	integrity := sha256.Sum256(append(append([]byte{}, sensitive...), objectName...))
	inner := append(sized(integrity[:]), sensitive...)
	encrypt(wrap[:], inner)

	// The outer wrapper, for the storage root key (Part 1 §23.3.2.3).
	parent, err := tpm2.ImportEncapsulationKey(&srk.area)
	if err != nil {
		return nil, fmt.Errorf("storage root key: %w", err)
	}
	outerSeed, duplicateSecret, err := parent.Encapsulate(rand.Reader, "DUPLICATE")
	if err != nil {
		return nil, fmt.Errorf("wrapping for the storage root key: %w", err)
	}
	encrypt(tpm2.KDFa(crypto.SHA256, outerSeed, "STORAGE", objectName, nil, 128), inner)
	mac := hmac.New(sha256.New, tpm2.KDFa(crypto.SHA256, outerSeed, "INTEGRITY", nil, nil, 256))
	mac.Write(inner)
	mac.Write(objectName)
	duplicate := append(sized(mac.Sum(nil)), inner...)

	endorser, err := tpm2.ImportEncapsulationKey(&ek.area)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	credential, credentialSecret, err := tpm2.CreateCredential(rand.Reader, endorser, name(srk.raw), wrap[:])
	if err != nil {
		return nil, fmt.Errorf("wrapping for the endorsement key: %w", err)
	}
	return bytes.Join([][]byte{sized(credential), sized(credentialSecret), sized(duplicate), sized(duplicateSecret), sized(object), {0, 0}}, nil), nil
}

// encrypt is AES-CFB without an initialisation vector, in place. The key has 16 bytes.
func encrypt(key, b []byte) {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	cipher.NewCFBEncrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(b, b) //nolint:staticcheck // the TPM's mode
}

// sized prefixes the concatenation of its parts with their length, as a TPM2B is.
func sized(parts ...[]byte) []byte {
	out := []byte{0, 0}
	for _, p := range parts {
		out = append(out, p...)
	}
	binary.BigEndian.PutUint16(out, uint16(len(out)-2))
	return out
}

// Parts takes a blob apart, as a client does: the six TPM2B with their sizes.
func Parts(blob []byte) ([][]byte, error) {
	var out [][]byte
	for len(blob) > 0 {
		if len(blob) < 2 || len(out) == 6 {
			return nil, cradle.Errorf(cradle.Invalid, "authentication key: %d bytes too many", len(blob))
		}
		n := 2 + int(binary.BigEndian.Uint16(blob))
		if n > len(blob) {
			return nil, cradle.Errorf(cradle.Invalid, "authentication key is cut short")
		}
		out, blob = append(out, blob[:n]), blob[n:]
	}
	if len(out) != 6 {
		return nil, cradle.Errorf(cradle.Invalid, "authentication key has %d parts, not 6", len(out))
	}
	return out, nil
}
