package attest

import (
	"encoding/binary"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// attestation is a TPMS_ATTEST of type CERTIFY (TPM 2.0 Part 2 §10.12.12).
type attestation struct {
	magic           uint32
	kind            tpm2.TPMST
	qualifiedSigner []byte
	extraData       []byte
	clock           uint64 // milliseconds that the TPM has been powered, ever
	resetCount      uint32
	restartCount    uint32
	safe            bool
	firmware        uint64
	name            []byte
	qualifiedName   []byte
}

// wire reads big-endian TPM structures; after the first short read everything is zero.
type wire struct {
	b   []byte
	bad bool
}

func (w *wire) take(n int) []byte {
	if w.bad || len(w.b) < n {
		w.bad = true
		return make([]byte, min(n, 8))
	}
	out := w.b[:n]
	w.b = w.b[n:]
	return out
}

func (w *wire) u16() uint16 { return binary.BigEndian.Uint16(w.take(2)) }
func (w *wire) u32() uint32 { return binary.BigEndian.Uint32(w.take(4)) }
func (w *wire) u64() uint64 { return binary.BigEndian.Uint64(w.take(8)) }

// sized reads a TPM2B.
func (w *wire) sized() []byte {
	n := int(w.u16())
	if w.bad || n > len(w.b) {
		w.bad = true
		return nil
	}
	return w.take(n)
}

// parseAttest reads b whole. The fields after type are those of a CERTIFY whatever type says: the check
// of the type comes after.
func parseAttest(b []byte) (a attestation, ok bool) {
	w := wire{b: b}
	a.magic = w.u32()
	a.kind = tpm2.TPMST(w.u16())
	a.qualifiedSigner = w.sized()
	a.extraData = w.sized()
	a.clock = w.u64()
	a.resetCount = w.u32()
	a.restartCount = w.u32()
	safe := w.take(1)[0]
	a.safe = safe == 1
	a.firmware = w.u64()
	a.name = w.sized()
	a.qualifiedName = w.sized()
	return a, !w.bad && len(w.b) == 0 && safe <= 1
}

// signature is a TPMT_SIGNATURE of the ECDSA kind (Part 2 §11.3.4).
type signature struct {
	alg, hash tpm2.TPMAlgID
	r, s      *big.Int
}

func parseSignature(b []byte) (sig signature, ok bool) {
	w := wire{b: b}
	sig.alg = tpm2.TPMAlgID(w.u16())
	sig.hash = tpm2.TPMAlgID(w.u16())
	r, s := w.sized(), w.sized()
	sig.r, sig.s = new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)
	return sig, !w.bad && len(w.b) == 0 && len(r) <= 66 && len(s) <= 66
}
