// Package softkey is a TPM's attestation in plain software, for tests and benchmarks: it makes the same
// structures that a TPM makes, at the speed of the processor. A software key proves nothing: whoever can
// read the process can copy it and sign whatever it likes. So its Maker is imported as tier software-key, whose
// class is evaluation, and no shipped binary links it.
//
// The private keys are open to the caller, who may forge with them: the tests of package attest do.
package softkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/protocol/evidence"
)

// Firmware is the version that every Device reports.
const Firmware = 0x2019_1023_0016_3636

// Device is a TPM in software: an endorsement key with its certificate, and an IAK. Its methods
// are safe for concurrent use unless a field is changed meanwhile.
type Device struct {
	EK     crypto.Signer // *ecdsa.PrivateKey or *rsa.PrivateKey
	EKCert []byte        // DER, by the Maker
	IAK    *Key
	Clock  tpm2.TPMSClockInfo // as statements will say
}

// Key is a key of a Device. It implements crypto.Signer.
type Key struct {
	Private *ecdsa.PrivateKey
	Area    tpm2.TPMTPublic // public area
	Parent  tpm2.TPMHandle  // the hierarchy whose primary it is
}

// NewKey makes a key of an ECC template with curve P-256, as a primary of hierarchy: TPMRHEndorsement
// for an IAK or IDevID, TPMRHOwner for the others.
func NewKey(template tpm2.TPMTPublic, hierarchy tpm2.TPMHandle) (*Key, error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.Unique, err = unique(&priv.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Key{Private: priv, Area: template, Parent: hierarchy}, nil
}

// unique is the public point as a TPM holds it.
func unique(pub *ecdsa.PublicKey) (tpm2.TPMUPublicID, error) {
	point, err := pub.Bytes()
	if err != nil {
		return tpm2.TPMUPublicID{}, err
	}
	n := len(point) / 2
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]},
		Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]},
	}), nil
}

// Public implements crypto.Signer.
func (k *Key) Public() crypto.PublicKey { return &k.Private.PublicKey }

// Sign implements crypto.Signer. Of a restricted key a TPM would refuse a digest it has not made.
func (k *Key) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Private.Sign(rand, digest, opts)
}

// TPMTPublic returns the key's TPMT_PUBLIC.
func (k *Key) TPMTPublic() []byte { return tpm2.Marshal(k.Area) }

// Name returns the key's TPM name.
func (k *Key) Name() []byte {
	name, err := tpm2.ObjectName(&k.Area)
	if err != nil {
		panic("internal error: name of a software key: " + err.Error())
	}
	return name.Buffer
}

// qualifiedName of a primary key (TPM 2.0 Part 1 §16.3).
func (k *Key) qualifiedName() []byte {
	name := k.Name()
	alg, err := k.Area.NameAlg.Hash()
	if err != nil {
		panic("internal error: name of a software key: " + err.Error())
	}
	h := alg.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(k.Parent)))
	h.Write(name)
	return h.Sum(name[:2:2])
}

// NewIDevID makes an IDevID key.
func (d *Device) NewIDevID() (*Key, error) {
	return NewKey(evidence.IDevIDTemplate, tpm2.TPMRHEndorsement)
}

// NewLDevID makes an LDevID key.
func (d *Device) NewLDevID() (*Key, error) { return NewKey(evidence.LDevIDTemplate, tpm2.TPMRHOwner) }

// NewOperational makes an operational key. A TPM makes it under its SRK; this one is a primary.
func (d *Device) NewOperational() (*Key, error) {
	return NewKey(evidence.OperationalTemplate, tpm2.TPMRHOwner)
}

// Statement is the TPMS_ATTEST that Certify would sign.
func (d *Device) Statement(key *Key, extraData []byte) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Magic:           tpm2.TPMGeneratedValue,
		Type:            tpm2.TPMSTAttestCertify,
		QualifiedSigner: tpm2.TPM2BName{Buffer: d.IAK.qualifiedName()},
		ExtraData:       tpm2.TPM2BData{Buffer: extraData},
		ClockInfo:       d.Clock,
		FirmwareVersion: Firmware,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
			Name:          tpm2.TPM2BName{Buffer: key.Name()},
			QualifiedName: tpm2.TPM2BName{Buffer: key.qualifiedName()},
		}),
	}
}

// Certify does what TPM2_Certify does: the IAK states that key is in the same TPM. key may be the IAK.
func (d *Device) Certify(key *Key, extraData []byte) (evidence.Certify, error) {
	attest := tpm2.Marshal(d.Statement(key, extraData))
	sig, err := d.IAK.SignTPM(attest)
	if err != nil {
		return evidence.Certify{}, err
	}
	return evidence.Certify{Attest: attest, Signature: sig, Public: key.TPMTPublic()}, nil
}

// SignTPM signs message by ECDSA with SHA-256 and returns a TPMT_SIGNATURE.
func (k *Key) SignTPM(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, k.Private, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	n := (k.Private.Params().BitSize + 7) / 8
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, n))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, n))},
		}),
	}), nil
}

// template of the endorsement key: its name algorithm and symmetric key size.
func (d *Device) template() tpm2.TPMTPublic {
	switch k := d.EK.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() == 2048 {
			return evidence.EKTemplateRSA2048
		}
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			return evidence.EKTemplateP256
		}
	}
	return evidence.EKTemplateP384
}

// EKPublic is the endorsement key's TPMT_PUBLIC, as TPM2_ReadPublic would give it.
func (d *Device) EKPublic() []byte {
	t := d.template()
	switch k := d.EK.(type) {
	case *rsa.PrivateKey:
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	case *ecdsa.PrivateKey:
		id, err := unique(&k.PublicKey)
		if err != nil {
			panic("internal error: " + err.Error())
		}
		t.Unique = id
	}
	return tpm2.Marshal(t)
}
