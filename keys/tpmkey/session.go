package tpmkey

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// session is an HMAC session salted to the endorsement key (TPM 2.0 Part 1 §19.6): SHA-256, AES-128 in
// CFB mode for parameters. It lasts as long as the connection. Unlike go-tpm's own, it says anew for each
// command which parameter it encrypts, since not every command has one that can be, and the TPM
// has room for three sessions only. All authorisation values are empty.
type session struct {
	handle      tpm2.TPMHandle
	key         []byte
	nonceCaller []byte
	nonceTPM    []byte
	spoiled     bool // a command has had no good answer: the two sides may not agree on the nonces
}

// Which parameters a use of the session encrypts: the first of the command, of the response, none, both.
var (
	sealNone = tpm2.TPMASession{ContinueSession: true}
	sealIn   = tpm2.TPMASession{ContinueSession: true, Decrypt: true}
	sealOut  = tpm2.TPMASession{ContinueSession: true, Encrypt: true}
	sealBoth = tpm2.TPMASession{ContinueSession: true, Decrypt: true, Encrypt: true}
)

const nonceSize = 16

// startSession agrees a session key with the endorsement key whose public area is pub. Nobody but
// the holder of its private part can compute the HMACs that follow.
func startSession(tpm transport.TPM, ek tpm2.TPMHandle, pub *tpm2.TPMTPublic) (*session, error) {
	encapsulation, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	salt, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, encapsulation)
	if err != nil {
		return nil, fmt.Errorf("salting a session: %w", err)
	}
	s := &session{nonceCaller: make([]byte, nonceSize)}
	rand.Read(s.nonceCaller)
	started, err := (tpm2.StartAuthSession{
		TPMKey:        ek,
		Bind:          tpm2.TPMRHNull,
		NonceCaller:   tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		SessionType:   tpm2.TPMSEHMAC,
		Symmetric: tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		AuthHash: tpm2.TPMAlgSHA256,
	}).Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	s.handle = tpm2.TPMHandle(started.SessionHandle.HandleValue())
	s.nonceTPM = started.NonceTPM.Buffer
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.nonceTPM, s.nonceCaller, 256)
	return s, nil
}

// use returns the session for one command.
func (s *session) use(attrs tpm2.TPMASession) tpm2.Session { return sessionUse{s, attrs} }

type sessionUse struct {
	*session
	attrs tpm2.TPMASession
}

func (u sessionUse) Init(transport.TPM) error  { return nil }
func (u sessionUse) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: u.nonceTPM} }
func (u sessionUse) IsEncryption() bool        { return u.attrs.Encrypt }
func (u sessionUse) IsDecryption() bool        { return u.attrs.Decrypt }
func (u sessionUse) Handle() tpm2.TPMHandle    { return u.handle }

// CleanupFailure is called when the TPM answers with an error code: then the nonces stay.
func (u sessionUse) CleanupFailure(transport.TPM) error {
	u.spoiled = false
	return nil
}

func (u sessionUse) NewNonceCaller() error {
	u.nonceCaller = make([]byte, nonceSize)
	_, err := rand.Read(u.nonceCaller)
	return err
}

// Authorize computes the HMAC of a command (Part 1 §19.6.5).
func (u sessionUse) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	cpHash := sha256.New()
	cpHash.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	for _, n := range names {
		cpHash.Write(n.Buffer)
	}
	cpHash.Write(parms)
	u.spoiled = true
	return &tpm2.TPMSAuthCommand{
		Handle:        u.handle,
		Nonce:         tpm2.TPM2BNonce{Buffer: u.nonceCaller},
		Attributes:    u.attrs,
		Authorization: tpm2.TPM2BData{Buffer: u.mac(cpHash.Sum(nil), u.nonceCaller, u.nonceTPM, addNonces, tpm2.Marshal(u.attrs))},
	}, nil
}

// Validate checks the HMAC of a response and takes its nonce.
func (u sessionUse) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	u.nonceTPM = auth.Nonce.Buffer
	rpHash := sha256.New()
	rpHash.Write(binary.BigEndian.AppendUint32(nil, uint32(rc)))
	rpHash.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	rpHash.Write(parms)
	want := u.mac(rpHash.Sum(nil), u.nonceTPM, u.nonceCaller, tpm2.Marshal(auth.Attributes))
	if !hmac.Equal(want, auth.Authorization.Buffer) {
		return errors.New("the answer is not from the holder of the endorsement key: something on the bus changes what the TPM says")
	}
	if !auth.Attributes.ContinueSession {
		return errors.New("the TPM ended the session")
	}
	u.spoiled = false
	return nil
}

// Encrypt seals the first parameter of a command, in place (Part 1 §21.3).
func (u sessionUse) Encrypt(parameter []byte) error {
	if !u.attrs.Decrypt {
		return nil
	}
	return u.cfb(parameter, u.nonceCaller, u.nonceTPM, false)
}

// Decrypt opens the first parameter of a response, in place.
func (u sessionUse) Decrypt(parameter []byte) error {
	if !u.attrs.Encrypt {
		return nil
	}
	return u.cfb(parameter, u.nonceTPM, u.nonceCaller, true)
}

func (s *session) mac(parts ...[]byte) []byte {
	h := hmac.New(sha256.New, s.key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// cfb is AES-128 in CFB mode with full-block feedback, keyed for one parameter.
func (s *session) cfb(data, nonceNewer, nonceOlder []byte, decrypt bool) error {
	keyIV := tpm2.KDFa(crypto.SHA256, s.key, "CFB", nonceNewer, nonceOlder, 256)
	block, err := aes.NewCipher(keyIV[:16])
	if err != nil {
		return err
	}
	crypt(block, keyIV[16:], data, decrypt)
	return nil
}

func crypt(block cipher.Block, iv, data []byte, decrypt bool) {
	feedback := append([]byte(nil), iv...)
	pad := make([]byte, block.BlockSize())
	for len(data) > 0 {
		block.Encrypt(pad, feedback)
		n := min(len(data), len(pad))
		if decrypt {
			copy(feedback, data[:n])
		}
		for i := range n {
			data[i] ^= pad[i]
		}
		if !decrypt {
			copy(feedback, data[:n])
		}
		data = data[n:]
	}
}
