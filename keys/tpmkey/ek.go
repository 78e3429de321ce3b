package tpmkey

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// EKInfo is an endorsement key's certificate as the TPM's NV memory holds it.
type EKInfo struct {
	Type  string   // "p256", "p384" or "rsa2048"
	Cert  []byte   // DER
	Chain [][]byte // DER of the CA certificates beside it, as the maker stored them; may be empty
}

// Templates of the endorsement keys that we know, best first: the P-256 key gives 128 bits for the least work;
// RSA comes last because a TPM takes seconds to make such a key.
var ekKinds = []struct {
	name     string
	nvIndex  uint32
	handle   tpm2.TPMHandle
	template tpm2.TPMTPublic
	policy   tpm2.PolicyCallback // nil: the key is used with its (empty) authorisation value
}{
	{"p256", 0x01C0000A, 0x81010002, evidence.EKTemplateP256, evidence.EKPolicy},
	{"p384", 0x01C00016, 0x81010016, evidence.EKTemplateP384, nil},
	{"rsa2048", 0x01C00002, 0x81010001, evidence.EKTemplateRSA2048, evidence.EKPolicy},
}

// Indices of the EK certificate's chain (EK Credential Profile v2.5 §2.2.1.5), and our bounds on it.
const (
	nvChainFirst   = 0x01C00100
	nvChainMax     = 16
	maxChainCerts  = 8
	maxChainLength = 16 << 10
	maxCertificate = 8 << 10 // bytes
)

// endorsementKey is a key that its certificate vouches for. public is built from the certificate
// and the template, not from what the TPM says.
type endorsementKey struct {
	EKInfo
	handle tpm2.TPMHandle // where it is, or belongs, persistently
	policy tpm2.PolicyCallback
	public tpm2.TPMTPublic
	name   tpm2.TPM2BName
	input  tpm2.TPMTPublic // the template
}

// EKCertificate returns the certificate of the endorsement key in use: the one chosen by UseEK, else the best of the
// TPM's. NotFound when NV holds none of a known kind.
func (t *TPM) EKCertificate(ctx context.Context) (EKInfo, error) {
	var info EKInfo
	err := t.do(ctx, "reading the EK certificate", func(tpm transport.TPM) error {
		ek, err := t.endorsement(tpm)
		if err == nil {
			info = ek.EKInfo
		}
		return err
	})
	return info, err
}

// UseEK makes the endorsement key of one of types (names as in EKInfo.Type) the one in use, for
// sessions and for Activate, and returns its certificate. The TPM's best of them is taken. NotFound when it has no
// certificate for any.
func (t *TPM) UseEK(ctx context.Context, types ...string) (EKInfo, error) {
	var info EKInfo
	err := t.do(ctx, "choosing the endorsement key", func(tpm transport.TPM) error {
		if _, err := t.endorsement(tpm); err != nil {
			return err
		}
		for _, ek := range t.eks {
			for _, name := range types {
				if ek.Type == name {
					t.flush(tpm) // the session belongs to the other key
					t.ek, info = ek, ek.EKInfo
					return nil
				}
			}
		}
		return cradle.Errorf(cradle.NotFound, "the TPM has no EK certificate of type %v, only %v", types, t.ekTypes()).
			WithHint("use an order whose ek_types include one that the TPM has")
	})
	return info, err
}

func (t *TPM) ekTypes() []string {
	var out []string
	for _, ek := range t.eks {
		out = append(out, ek.Type)
	}
	return out
}

// endorsement reads the EK certificates once per connection.
func (t *TPM) endorsement(tpm transport.TPM) (*endorsementKey, error) {
	if t.ek != nil {
		return t.ek, nil
	}
	var found []*endorsementKey
	var unusable error // told only when there is no better one
	for _, kind := range ekKinds {
		content, err := readNV(tpm, kind.nvIndex, nil)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("NV index 0x%08x: %w", kind.nvIndex, err)
		}
		der, _, err := cutCertificate(stripHeader(content))
		if err != nil {
			unusable = badEK(kind.name, kind.nvIndex, err)
			continue
		}
		ek := &endorsementKey{
			EKInfo: EKInfo{Type: kind.name, Cert: der},
			handle: kind.handle, policy: kind.policy, input: kind.template,
		}
		if ek.public, err = certifiedPublic(der, kind.template); err != nil {
			unusable = badEK(kind.name, kind.nvIndex, err)
			continue
		}
		name, err := tpm2.ObjectName(&ek.public)
		if err != nil {
			return nil, err
		}
		ek.name = *name
		found = append(found, ek)
	}
	if len(found) == 0 && unusable != nil {
		return nil, unusable
	}
	if len(found) == 0 {
		return nil, cradle.Errorf(cradle.NotFound, "the TPM holds no EK certificate").
			WithHint("some makers keep it elsewhere: store it in the TPM first (tpm2_getekcertificate, tpm2_nvwrite at 0x01C0000A or 0x01C00002); a new software TPM needs a TPM maker")
	}
	chain, err := readChain(tpm)
	if err != nil {
		return nil, err
	}
	for _, ek := range found {
		ek.Chain = chain
	}
	t.eks, t.ek = found, found[0]
	return t.ek, nil
}

func badEK(kind string, index uint32, err error) error {
	return cradle.Errorf(cradle.Invalid, "the %s EK certificate at NV index 0x%08x is not usable: %w", kind, index, err).
		WithHint("read it with tpm2_nvread 0x%08x and compare it with what the TPM's maker delivers", index)
}

// certifiedPublic is the public area of the endorsement key that a certificate vouches for.
func certifiedPublic(der []byte, template tpm2.TPMTPublic) (tpm2.TPMTPublic, error) {
	key, err := certificateKey(der)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	public := template
	switch key := key.(type) {
	case *rsa.PublicKey:
		if template.Type != tpm2.TPMAlgRSA || key.N.BitLen() != 2048 || key.E != 65537 {
			return public, fmt.Errorf("it certifies another kind of key, RSA of %d bits", key.N.BitLen())
		}
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.FillBytes(make([]byte, 256))})
	case *ecdsa.PublicKey:
		if template.Type != tpm2.TPMAlgECC {
			return public, fmt.Errorf("it certifies another kind of key, %s", key.Params().Name)
		}
		parms, err := template.Parameters.ECCDetail()
		if err != nil {
			return public, err
		}
		curve, err := parms.CurveID.Curve()
		if err != nil || key.Curve != curve {
			return public, fmt.Errorf("it certifies another kind of key, %s", key.Params().Name)
		}
		point, err := key.Bytes() // 0x04, X, Y
		if err != nil {
			return public, err
		}
		size := (len(point) - 1) / 2
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+size]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[1+size:]},
		})
	default:
		return public, fmt.Errorf("it certifies another kind of key, %T", key)
	}
	return public, nil
}

// withEK runs fn with the endorsement key in use in the TPM. It is taken from its persistent handle,
// put there if the handle is free, and else loaded for the length of fn.
func (t *TPM) withEK(tpm transport.TPM, fn func(handle tpm2.TPMHandle) error) error {
	ek, err := t.endorsement(tpm)
	if err != nil {
		return err
	}
	free := false
	switch there, err := (tpm2.ReadPublic{ObjectHandle: ek.handle}).Execute(tpm); {
	case err == nil && string(there.Name.Buffer) == string(ek.name.Buffer):
		return fn(ek.handle)
	case isAbsent(err):
		free = true
	case err != nil:
		return fmt.Errorf("looking for the endorsement key: %w", err)
	}
	made, err := (tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHEndorsement,
		InPublic:      tpm2.New2B(ek.input),
	}).Execute(tpm)
	if err != nil {
		return fmt.Errorf("making the endorsement key again: %w", err)
	}
	defer (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(tpm)
	if string(made.Name.Buffer) != string(ek.name.Buffer) {
		return cradle.Errorf(cradle.Conflict, "the EK certificate in NV is not for this TPM's %s endorsement key", ek.Type).
			WithHint("the certificate was taken from another TPM, or the endorsement seed was changed (TPM2_ChangeEPS): the TPM's maker must certify it anew")
	}
	if free {
		// An owner hierarchy that others protect does not keep us from using the key, only from keeping it.
		_, err := (tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
			PersistentHandle: ek.handle,
		}).Execute(tpm)
		if err != nil && t.conn.Broken() != nil {
			return err
		}
	}
	return fn(made.ObjectHandle)
}

// secure returns the session, started if need be.
func (t *TPM) secure(tpm transport.TPM) (*session, error) {
	if t.session != nil {
		return t.session, nil
	}
	err := t.withEK(tpm, func(handle tpm2.TPMHandle) (err error) {
		t.session, err = startSession(tpm, handle, &t.ek.public)
		return err
	})
	return t.session, err
}

// isAbsent: no such NV index or object.
func isAbsent(err error) bool { return errors.Is(err, tpm2.TPMRCHandle) }
