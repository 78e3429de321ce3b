package ledger

import (
	"crypto/sha256"
	"encoding/hex"
)

// Commitment binds a leaf to a certificate without saying which: SHA-256 over a random salt and the certificate's
// SHA-256, in hexadecimal. A certificate is proved to its device by being secret until it is used (tpmenroll), so
// nobody may find it by the log before.
func Commitment(salt []byte, certificate string) string {
	d, _ := hex.DecodeString(certificate)
	h := sha256.New()
	h.Write(salt)
	h.Write(d)
	return hex.EncodeToString(h.Sum(nil))
}

// commitment is what a leaf said of a certificate that it did not name.
type commitment struct {
	device, profile string
	opened          bool
}

func (v *verification) committed(name string, b Body) {
	switch _, ok := parseDigest(b.Commitment); {
	case !ok || b.Proved:
		v.find(LeafMalformed, name, "it holds a commitment where none may be, or none that is one")
	case v.commitments[b.Commitment] != nil:
		v.find(CommitmentWrong, "commitment "+b.Commitment, "%s is its second", name)
	default:
		v.commitments[b.Commitment] = &commitment{device: b.Device, profile: b.Profile}
		v.slotsOf(lineageOf(b)).sealed = true
	}
}

// opened holds a leaf that opens a commitment against the one that made it.
func (v *verification) opened(name string, b Body) {
	salt, err := hex.DecodeString(b.Salt)
	c := v.commitments[b.Commitment]
	switch {
	case err != nil || len(salt) != sha256.Size || Commitment(salt, b.Certificate) != b.Commitment:
		v.find(CommitmentWrong, "commitment "+b.Commitment, "%s opens it by what it was not made of", name)
		return
	case c == nil:
		v.find(CommitmentWrong, "commitment "+b.Commitment, "%s opens it, but no leaf made it", name)
		return
	case c.opened || c.device != b.Device || c.profile != b.Profile:
		v.find(CommitmentWrong, "commitment "+b.Commitment, "%s opens it again, or for another device or profile", name)
		return
	}
	c.opened = true
	if r := v.logged(name, b, b.Profile); r != nil && (r.device != b.Device || !r.unproved) {
		v.find(CertificateChanged, "certificate "+b.Certificate, "the row says device %s, %s says %s", r.device, name, b.Device)
	}
}
