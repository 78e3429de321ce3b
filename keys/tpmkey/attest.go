package tpmkey

import (
	"context"
	"errors"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// Certify has the IAK certify key (TPM2_Certify), with extraData as qualifying data. key may be the IAK's own.
// The IAK is ensured first.
func (t *TPM) Certify(ctx context.Context, key *Key, extraData []byte) (evidence.Certify, error) {
	var out evidence.Certify
	err := t.do(ctx, "certifying a key", func(tpm transport.TPM) error {
		iak, err := t.primary(tpm, HandleIAK)
		if err != nil {
			return err
		}
		s, err := t.secure(tpm)
		if err != nil {
			return err
		}
		handle, err := t.load(tpm, s, key)
		if err != nil {
			return err
		}
		object := tpm2.AuthHandle{Handle: handle, Name: key.name, Auth: tpm2.PasswordAuth(nil)}
		if key.branches != nil { // ADMIN role asks for the policy (Part 1 §19.2)
			object.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, evidence.AdminPolicy(key.branches, tpm2.TPMCCCertify))
		}
		certified, err := (tpm2.Certify{
			ObjectHandle:   object,
			SignHandle:     tpm2.AuthHandle{Handle: iak.handle, Name: iak.name, Auth: s.use(sealBoth)},
			QualifyingData: tpm2.TPM2BData{Buffer: extraData},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}).Execute(tpm)
		settle(tpm)
		if err != nil {
			return err
		}
		out = evidence.Certify{
			Attest:    certified.CertifyInfo.Bytes(),
			Signature: tpm2.Marshal(certified.Signature),
			Public:    key.TPMTPublic(),
		}
		return nil
	})
	return out, err
}

// CertifyIAK has the IAK certify itself.
func (t *TPM) CertifyIAK(ctx context.Context, extraData []byte) (evidence.Certify, error) {
	iak, err := t.EnsureIAK(ctx)
	if err != nil {
		return evidence.Certify{}, err
	}
	return t.Certify(ctx, iak.key, extraData)
}

// Activate opens a challenge's credential (TPM2_ActivateCredential): the secret comes out only if
// it was made for the endorsement key in use and this TPM's IAK. Invalid if it was not.
func (t *TPM) Activate(ctx context.Context, credentialBlob, encryptedSecret []byte) (secret []byte, err error) {
	err = t.do(ctx, "activating a credential", func(tpm transport.TPM) error {
		iak, err := t.primary(tpm, HandleIAK)
		if err != nil {
			return err
		}
		s, err := t.secure(tpm)
		if err != nil {
			return err
		}
		t.unload(tpm) // IAK and endorsement key take two of three slots, making the latter again one more
		return t.withEK(tpm, func(handle tpm2.TPMHandle) error {
			auth := tpm2.PasswordAuth(nil)
			if t.ek.policy != nil {
				auth = tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, t.ek.policy)
			}
			opened, err := (tpm2.ActivateCredential{
				ActivateHandle: tpm2.AuthHandle{
					Handle: iak.handle, Name: iak.name,
					Auth: tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, evidence.AdminPolicy(iak.branches, tpm2.TPMCCActivateCredential)),
				},
				KeyHandle:      tpm2.AuthHandle{Handle: handle, Name: t.ek.name, Auth: auth},
				CredentialBlob: tpm2.TPM2BIDObject{Buffer: credentialBlob},
				Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encryptedSecret},
			}).Execute(tpm, s.use(sealBoth))
			settle(tpm)
			if isNotForUs(err) {
				return cradle.Errorf(cradle.Invalid, "the challenge is not for this TPM's %s endorsement key and IAK", t.ek.Type).
					WithHint("the provider must make it for the EK certificate and attestation key of this very TPM")
			}
			if err != nil {
				return err
			}
			secret = opened.CertInfo.Buffer
			return nil
		})
	})
	return secret, err
}

// isNotForUs: what a TPM says to a credential that does not open.
func isNotForUs(err error) bool {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCIntegrity, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCInsufficient, tpm2.TPMRCECCPoint} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}
