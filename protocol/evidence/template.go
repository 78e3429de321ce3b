package evidence

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// The key templates. A device makes its keys from them and a verifier compares what it was sent
// with them, field by field: a key with any other attribute or policy is another kind of key.
//
// IAK and IDevID are the recoverable keys of TCG "TPM 2.0 Keys for Device Identity and
// Attestation" v1.10, §7.3: primaries of the endorsement hierarchy whose unique field holds a fixed
// text, so that the same TPM derives the same key again after TPM2_Clear. Treat all of these as
// constants.
var (
	// IAKTemplate is the initial attestation key: restricted, signs only what the TPM itself made.
	IAKTemplate = devIDTemplate("IAK", true, IAKPolicy)
	// IDevIDTemplate is the initial device identity key of IEEE 802.1AR.
	IDevIDTemplate = devIDTemplate("IDEVID", false, IDevIDPolicy)
	// LDevIDTemplate is every key of the storage hierarchy that Cradle makes: the LDevID key, a
	// primary whose unique field holds "LDEVID", so that TPM2_Clear ends it.
	LDevIDTemplate = ownerTemplate("LDEVID")
	// OperationalTemplate is the LDevIDTemplate with an empty unique field, for children of the SRK.
	OperationalTemplate = ownerTemplate("")
	// SRKTemplate is the storage root key, ECC P-256 (TCG Provisioning Guidance v1.0 §7.5.1).
	SRKTemplate = tpm2.ECCSRKTemplate
	// EKTemplateRSA2048 is template L-1 of the TCG EK Credential Profile v2.5, appendix B.3.
	EKTemplateRSA2048 = tpm2.RSAEKTemplate
	// EKTemplateP256 is template L-2.
	EKTemplateP256 = tpm2.ECCEKTemplate
	// EKTemplateP384 is template H-3 (appendix B.4): SHA-384, AES-256, empty unique field.
	EKTemplateP384 = tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA384,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: unhex("b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4" +
			"cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12")},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			CurveID: tpm2.TPMECCNistP384,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
)

// The policies of TCG Keys v1.10 §7.3.6, SHA-256. IAKPolicy and IDevIDPolicy are PolicyOR over
// their branches: PolicySecret of the endorsement hierarchy alone; the same for Certify only; the
// same for ActivateCredential only; PolicyAuthorizeNV of a reserved index, which Cradle never defines.
var (
	PolicyEndorsement = unhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
	policyCertify     = unhex("b2a69e6391e2684a0fe752d39e14acd2e5cb922e4bd035830eea31f2aabe9870")
	policyActivate    = unhex("cd9917cf18c3848c3a2e606986a066c68142f9bc2710a278287a650ca3bbf245")

	IAKPolicy    = unhex("5437182326e414fca797d5f174615a1641f61255797c3a2b22c21d120b2d1e07")
	IDevIDPolicy = unhex("ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea")

	// IAKBranches and IDevIDBranches are the operands of the two PolicyORs, in order.
	IAKBranches    = branches(nvIndexAKPolicy)
	IDevIDBranches = branches(nvIndexDevIDPolicy)
)

// NV indices reserved for policies that an administrator may add later (TCG Keys v1.10 §7.3.6.5).
const (
	nvIndexDevIDPolicy = 0x01C90010
	nvIndexAKPolicy    = 0x01C90018
)

// AdminPolicy satisfies, in a policy session, the branch of an IAK or IDevID policy that allows cc:
// PolicySecret of the endorsement hierarchy (with an empty authorisation), PolicyCommandCode,
// PolicyOR. cc is TPMCCCertify or TPMCCActivateCredential.
func AdminPolicy(branches []tpm2.TPM2BDigest, cc tpm2.TPMCC) tpm2.PolicyCallback {
	return func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		if err := EKPolicy(t, session, nonce); err != nil {
			return err
		}
		if _, err := (tpm2.PolicyCommandCode{PolicySession: session, Code: cc}).Execute(t); err != nil {
			return fmt.Errorf("policy command code: %w", err)
		}
		or := tpm2.PolicyOr{PolicySession: session, PHashList: tpm2.TPMLDigest{Digests: branches}}
		if _, err := or.Execute(t); err != nil {
			return fmt.Errorf("policy or: %w", err)
		}
		return nil
	}
}

// EKPolicy is the policy of the low-range EK templates: PolicySecret of the endorsement hierarchy.
func EKPolicy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	secret := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session,
		NonceTPM:      nonce,
	}
	if _, err := secret.Execute(t); err != nil {
		return fmt.Errorf("policy secret of the endorsement hierarchy: %w", err)
	}
	return nil
}

func branches(index tpm2.TPMHandle) []tpm2.TPM2BDigest {
	name, err := tpm2.NVName(&tpm2.TPMSNVPublic{
		NVIndex: index,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			PolicyWrite: true, WriteAll: true, PPRead: true, OwnerRead: true, AuthRead: true,
			PolicyRead: true, NoDA: true, Written: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: PolicyEndorsement},
		DataSize:   2 + 32,
	})
	if err != nil {
		panic("internal error: name of the policy index: " + err.Error())
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err == nil {
		err = calc.Update(tpm2.TPMCCPolicyAuthorizeNV, name.Buffer)
	}
	if err != nil {
		panic("internal error: policy of the policy index: " + err.Error())
	}
	var out []tpm2.TPM2BDigest
	for _, b := range [][]byte{PolicyEndorsement, policyCertify, policyActivate, calc.Hash().Digest} {
		out = append(out, tpm2.TPM2BDigest{Buffer: b})
	}
	return out
}

func devIDTemplate(unique string, restricted bool, policy []byte) tpm2.TPMTPublic {
	p := signingTemplate(unique)
	p.ObjectAttributes.AdminWithPolicy = true
	p.ObjectAttributes.Restricted = restricted
	p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	return p
}

func ownerTemplate(unique string) tpm2.TPMTPublic {
	p := signingTemplate(unique)
	// Not counted for dictionary attacks: the key has no authorisation value to guess, and a
	// device that loses power often would otherwise lock itself out (TPM 2.0 Part 1 §19.8.6).
	p.ObjectAttributes.NoDA = true
	return p
}

func signingTemplate(unique string) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte(unique)}}),
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return b
}

// MatchesTemplate reports whether pub could have been made from template: everything but the
// unique field, which the TPM replaces by the public key, is equal.
func MatchesTemplate(pub, template tpm2.TPMTPublic) bool {
	if pub.Type != template.Type {
		return false
	}
	pub.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(pub), tpm2.Marshal(template))
}
