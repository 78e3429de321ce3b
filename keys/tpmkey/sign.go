package tpmkey

import (
	"context"
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
)

// signTimeout bounds a signature asked for through crypto.Signer, which has no context. It covers the wait for
// other users of the TPM.
const signTimeout = time.Minute

// Public returns the *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.ecdsa }

// Sign signs a SHA-256 digest and returns the ASN.1 signature (crypto.Signer). rand is not used. The
// key refuses other digests: for TLS 1.2, where a peer may ask for more, set
// tls.Certificate.SupportedSignatureAlgorithms to tls.ECDSAWithP256AndSHA256.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	return k.SignDigest(ctx, digest, opts)
}

// SignDigest is Sign with a context.
func (k *Key) SignDigest(ctx context.Context, digest []byte, opts crypto.SignerOpts) (der []byte, err error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != 32 {
		return nil, cradle.Errorf(cradle.Invalid, "a TPM key signs SHA-256 digests, not %v", opts.HashFunc())
	}
	if k.public.ObjectAttributes.Restricted {
		return nil, cradle.Errorf(cradle.Invalid, "an attestation key signs messages that the TPM hashed, not digests").
			WithHint("use crypto.SignMessage with AttestationKey.Signer")
	}
	// The ticket of a digest made outside: none.
	none := tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}
	err = k.t.do(ctx, "signing", func(tpm transport.TPM) error {
		der, err = k.sign(tpm, digest, none)
		return err
	})
	return der, err
}

// Signer returns the attestation key as a crypto.Signer for whole messages: it implements
// crypto.MessageSigner, and package x509 and evidence.CreateCSR use that. The TPM hashes the
// message itself and refuses one that could pass for a statement of its own, or is shorter than four bytes.
func (a *AttestationKey) Signer() crypto.Signer { return messageSigner{a.key} }

type messageSigner struct{ key *Key }

var _ crypto.MessageSigner = messageSigner{}

func (m messageSigner) Public() crypto.PublicKey { return m.key.ecdsa }

func (m messageSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return m.key.Sign(r, digest, opts)
}

func (m messageSigner) SignMessage(_ io.Reader, msg []byte, opts crypto.SignerOpts) (der []byte, err error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, cradle.Errorf(cradle.Invalid, "a TPM key signs with SHA-256, not %v", opts.HashFunc())
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	err = m.key.t.do(ctx, "signing with the IAK", func(tpm transport.TPM) error {
		digest, ticket, err := hashInTPM(tpm, msg)
		if err != nil {
			return fmt.Errorf("hashing the message: %w", err)
		}
		der, err = m.key.sign(tpm, digest, ticket)
		return err
	})
	return der, err
}

// hashInTPM hashes msg by a hash sequence and returns the ticket that says so. The TPM takes at
// least 1024 bytes at a time (MAX_DIGEST_BUFFER). An eavesdropper may read a CSR, and changing it on the
// bus gives a digest that no verifier finds; so no session.
func hashInTPM(tpm transport.TPM, msg []byte) ([]byte, tpm2.TPMTTKHashCheck, error) {
	const chunk = 1024
	started, err := (tpm2.HashSequenceStart{HashAlg: tpm2.TPMAlgSHA256}).Execute(tpm)
	if err != nil {
		return nil, tpm2.TPMTTKHashCheck{}, err
	}
	sequence := tpm2.AuthHandle{Handle: started.SequenceHandle, Auth: tpm2.PasswordAuth(nil)}
	for len(msg) > chunk {
		_, err := (tpm2.SequenceUpdate{SequenceHandle: sequence, Buffer: tpm2.TPM2BMaxBuffer{Buffer: msg[:chunk]}}).Execute(tpm)
		if err != nil {
			(tpm2.FlushContext{FlushHandle: started.SequenceHandle}).Execute(tpm)
			return nil, tpm2.TPMTTKHashCheck{}, err
		}
		msg = msg[chunk:]
	}
	done, err := (tpm2.SequenceComplete{
		SequenceHandle: sequence,
		Buffer:         tpm2.TPM2BMaxBuffer{Buffer: msg},
		Hierarchy:      tpm2.TPMRHEndorsement,
	}).Execute(tpm)
	if err != nil {
		(tpm2.FlushContext{FlushHandle: started.SequenceHandle}).Execute(tpm)
		return nil, tpm2.TPMTTKHashCheck{}, err
	}
	return done.Result.Buffer, done.Validation, nil
}

func (k *Key) sign(tpm transport.TPM, digest []byte, ticket tpm2.TPMTTKHashCheck) ([]byte, error) {
	s, err := k.t.secure(tpm)
	if err != nil {
		return nil, err
	}
	handle, err := k.t.load(tpm, s, k)
	if err != nil {
		return nil, err
	}
	signed, err := (tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: handle, Name: k.name, Auth: s.use(sealIn)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: ticket,
	}).Execute(tpm)
	if k.protected() {
		settle(tpm)
	}
	if errors.Is(err, tpm2.TPMRCTicket) {
		return nil, cradle.Errorf(cradle.Invalid, "the TPM refuses to sign what could pass for its own statement")
	}
	if err != nil {
		return nil, err
	}
	sig, err := signed.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer),
		new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}
