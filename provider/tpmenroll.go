package provider

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// TPMRequest is a tpmenroll request: a CSR whose key is the AK, certified if the TPM of that EK holds it.
type TPMRequest struct {
	Endpoint
	Client   Client
	CSR      []byte
	EKChain  [][]byte // DER, the EK certificate first
	EKPublic []byte   // TPMT_PUBLIC
	AKPublic []byte   // TPMT_PUBLIC
}

// TPMEnrolled is a certificate with the secret under which it is to be sent, and that secret encrypted to
// the TPM (TPM 2.0 Part 1 §24).
type TPMEnrolled struct {
	Cert            []byte // DER
	CredentialBlob  []byte // content of TPM2B_ID_OBJECT
	EncryptedSecret []byte // content of TPM2B_ENCRYPTED_SECRET
	Secret          []byte // 16 bytes
}

// TPMEnroll is tpmenroll: the TPM signs nothing that says where the key lives; the client proves it by reading the
// certificate, which it can only after activating the key's name under its endorsement key. So the certificate is secret
// until it is used: the log holds a commitment, its record is sealed, and its first use opens both (docs/decisions/0018).
//
// The client authenticates as for simpleenroll without evidence, and the device is bound to its endorsement key. Profiles
// of the line never have it; a TPM that came under an order is certified only for the device that it is.
func (p *Provider) TPMEnroll(ctx context.Context, q TPMRequest) (*TPMEnrolled, error) {
	r := Request{Endpoint: q.Endpoint, Operation: TPMEnroll, Client: q.Client, CSR: q.CSR}
	out, err := p.tpmEnroll(ctx, r, q)
	if err != nil {
		p.logRefusal(ctx, r, err)
	}
	return out, err
}

func (p *Provider) tpmEnroll(ctx context.Context, r Request, q TPMRequest) (*TPMEnrolled, error) {
	d, err := p.judge(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	v, err := p.judgeTPM(ctx, r, d, q)
	if err != nil {
		return nil, err
	}
	d.tpm = &q
	issued, err := p.issue(ctx, r, d)
	if err != nil {
		return nil, err
	}
	out := &TPMEnrolled{Cert: issued.DER, Secret: make([]byte, 16)}
	rand.Read(out.Secret)
	out.CredentialBlob, out.EncryptedSecret, err = attest.Activation(v.EK, v.KeyName, out.Secret)
	return out, err
}

// judgeTPM is the further half of judge for tpmenroll: the TPM, and whether it is the device's.
func (p *Provider) judgeTPM(ctx context.Context, r Request, d *decision, q TPMRequest) (attest.TPMVerdict, error) {
	dir := p.dir.Load()
	v := attest.VerifyTPMEnroll(p.now(), attest.TPMEnroll{EKChain: q.EKChain, EKPublic: q.EKPublic, AKPublic: q.AKPublic, CSR: d.csr, Anchors: dir.anchors, Denied: dir.deniedEK})
	if err := v.Err(); err != nil {
		return v, err
	}
	ek := v.EK.Facts
	switch {
	case d.birth:
		d.dev.Tier, d.dev.Maker, d.dev.Anchor, d.dev.Issuers = ek.Tier, ek.Maker, ek.Anchor, ek.Issuers
		d.dev.EKDigest, d.dev.EKCert = ek.Digest, v.EK.Cert.Raw
	case d.dev.EKDigest == "":
		return v, cradle.Errorf(cradle.Forbidden, "device %s came without a TPM and gets none later", d.dev.ID).WithHint("enrol under another name")
	case d.dev.EKDigest != ek.Digest:
		return v, cradle.Errorf(cradle.Forbidden, "device %s has another TPM than the one of this request", d.dev.ID).WithHint("one TPM is one device")
	}
	var err error
	d.auth, err = p.lateCA(ctx, UnprovedCA, r.Account, d.dev.Class())
	return v, err
}

// activated reports whether the certificate is to be readable only by its key's TPM.
func (d *decision) activated() bool { return d.operation == TPMEnroll }

// Sealing keeps certificates that are secret until they are used.
type Sealing interface {
	// Salt returns what blinds the commitment of a sealed certificate (NotFound).
	Salt(ctx context.Context, digest string) ([]byte, error)
	// Unseal moves a certificate from sealed to current, and the former current to superseded, with the leaf that
	// opens its commitment; it does nothing, without the leaf, when the certificate is sealed no more.
	Unseal(ctx context.Context, c Certificate, leaf ledger.Leaf) error
}

// unseal opens the commitment of a certificate that its holder has read: TLS proved its key.
func (p *Provider) unseal(ctx context.Context, c *Credential) error {
	salt, err := p.store.Salt(ctx, c.Cert.Digest)
	if err != nil {
		return err
	}
	leaf, err := p.leaf(string(c.Cert.Account), ledger.KindOpening, map[string]any{"certificate": c.Cert.Digest, "serial": c.Cert.Serial, "device": c.Cert.Device,
		"profile": c.Cert.Profile, "lineage": c.Cert.Lineage, "salt": hex.EncodeToString(salt), "commitment": ledger.Commitment(salt, c.Cert.Digest)})
	if err != nil {
		return err
	}
	if err := p.store.Unseal(ctx, c.Cert, leaf); err != nil {
		return err
	}
	c.Cert.Slot = Current
	return nil
}

func newSalt() []byte {
	salt := make([]byte, sha256.Size)
	rand.Read(salt)
	return salt
}
