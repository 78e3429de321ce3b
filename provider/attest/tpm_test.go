package attest_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmio"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
)

// tpmUnit is a real TPM implementation in its own process, with what the provider knows of it.
type tpmUnit struct {
	soft *swtpm.TPM
	tpm  *tpmkey.TPM
	ek   *attest.EK
	ak   *attest.AttestationKey
}

func newUnit(t *testing.T, m *tpmmaker.Maker, kind tpmmaker.EKType) *tpmUnit {
	t.Helper()
	u := &tpmUnit{soft: must(swtpm.Start(t.Context(), t.TempDir(), swtpm.Options{}))(t)}
	t.Cleanup(func() { u.soft.Stop() })
	must(m.Manufacture(t.Context(), u.soft.Socket(), tpmmaker.Options{EKType: kind}))(t)
	u.tpm = must(tpmkey.Open(t.Context(), u.soft.Socket()))(t)
	t.Cleanup(func() { u.tpm.Close() })
	info := must(u.tpm.EKCertificate(t.Context()))(t)

	var anchors []attest.Anchor
	for rest := m.CABundle(); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		anchors = append(anchors, attest.Anchor{Maker: "demo", Tier: cradle.Simulator, Cert: must(attest.ParseAnchor(b.Bytes))(t)})
	}
	rules := attest.Rules{Tiers: []cradle.Tier{cradle.Simulator}, Makers: []cradle.MakerID{"demo"}, EKTypes: []string{string(kind)}}
	ek, why := attest.NewAnchorSet(anchors).VerifyEK(time.Now(), info.Cert, info.Chain, rules, nil)
	if !why.OK() {
		t.Fatal(why)
	}
	u.ek = ek
	iak := must(u.tpm.EnsureIAK(t.Context()))(t)
	if u.ak, why = attest.VerifyAttestationKey(iak.Public()); !why.OK() {
		t.Fatal(why)
	}
	return u
}

// enrol runs one enrolment; certify makes the statement.
func (u *tpmUnit) enrol(t *testing.T, p cradle.Profile, signer crypto.Signer, certify func(extra []byte) (evidence.Certify, error)) attest.Verdict {
	t.Helper()
	secret := make([]byte, attest.SecretSize)
	secret[0] = 42
	blob, sealed, err := attest.Activation(u.ek, u.ak.Name, secret)
	if err != nil {
		t.Fatal(err)
	}
	label := cradle.Label("acme", p)
	b := evidence.Binding{Challenge: []byte("c"), Account: "acme", Label: label, AuthCert: []byte("station"),
		Secret: must(u.tpm.Activate(t.Context(), blob, sealed))(t), SPKI: spkiOf(t, signer.Public())}
	extra := b.ExtraData()
	c := must(certify(extra[:]))(t)
	csr := must(evidence.CreateCSR(pkix.Name{CommonName: "x"}, signer, &evidence.Bundle{Certify: &c, Challenge: b.Challenge}))(t)
	auth := sha256.Sum256(b.AuthCert)
	return attest.VerifyCSR(time.Now(), attest.Request{Profile: p, Account: "acme", Label: label, AuthCert: b.AuthCert,
		CSR: must(evidence.ParseCSR(csr))(t),
		State: attest.ChallengeState{Account: "acme", Label: label, EK: u.ek.Facts, IAK: u.ak.Public, Secret: secret,
			AuthCert: auth[:], Expiry: time.Now().Add(time.Minute)}})
}

// TestTPM: what a real TPM says is accepted, for every profile and type of endorsement key, and what it
// refuses to say cannot be had from it.
func TestTPM(t *testing.T) {
	testenv.Require(t, "swtpm")
	m := must(tpmmaker.NewMaker(filepath.Join(t.TempDir(), "maker")))(t)
	for _, kind := range []tpmmaker.EKType{tpmmaker.P256, tpmmaker.P384, tpmmaker.RSA2048} {
		t.Run(string(kind), func(t *testing.T) {
			ctx := t.Context()
			u := newUnit(t, m, kind)
			iak := must(u.tpm.EnsureIAK(ctx))(t)
			v := u.enrol(t, cradle.IAK, iak.Signer(), func(extra []byte) (evidence.Certify, error) { return u.tpm.CertifyIAK(ctx, extra) })
			if !v.OK() {
				t.Errorf("IAK: %v", v.Reasons)
			}
			if v.Firmware == 0 || v.ResetCount == 0 {
				t.Errorf("IAK: facts %+v", v)
			}
			for p, key := range map[cradle.Profile]*tpmkey.Key{
				cradle.IDevID:      must(u.tpm.EnsureIDevID(ctx))(t),
				cradle.LDevID:      must(u.tpm.EnsureLDevID(ctx))(t),
				cradle.Operational: must(u.tpm.LoadKey(ctx, must(u.tpm.CreateKey(ctx))(t)))(t),
			} {
				certify := func(extra []byte) (evidence.Certify, error) { return u.tpm.Certify(ctx, key, extra) }
				if v := u.enrol(t, p, key, certify); !v.OK() {
					t.Errorf("%s: %v", p, v.Reasons)
				}
				if p == cradle.LDevID {
					if v := u.enrol(t, cradle.IDevID, key, certify); !v.Has(attest.KeyPolicy) || !v.Has(attest.KeyHierarchy) {
						t.Errorf("LDevID key as IDevID: %v", v.Reasons)
					}
				}
			}
		})
	}
	t.Run("attacks", func(t *testing.T) {
		u, other := newUnit(t, m, tpmmaker.P256), newUnit(t, m, tpmmaker.P256)
		for name, c := range map[string]struct {
			ek   *attest.EK
			name []byte
		}{
			"other TPM's EK": {other.ek, u.ak.Name}, "other TPM's attestation key": {u.ek, other.ak.Name},
		} {
			blob, sealed, err := attest.Activation(c.ek, c.name, make([]byte, 32))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := u.tpm.Activate(t.Context(), blob, sealed); err == nil {
				t.Errorf("%s: activated", name)
			}
		}
		softwareKey(t, u)
	})
}

// TestTPMRSA: an RSA key that a real TPM made is proved like any other, whatever its signature scheme.
func TestTPMRSA(t *testing.T) {
	testenv.Require(t, "swtpm")
	m := must(tpmmaker.NewMaker(filepath.Join(t.TempDir(), "maker")))(t)
	u := newUnit(t, m, tpmmaker.P256)
	for i, scheme := range []tpm2.TPMTRSAScheme{rsaScheme(tpm2.TPMAlgNull, 0), rsaScheme(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256)} {
		k := &rsaTPMKey{t: t, u: u, handle: tpm2.TPMHandle(0x81020000 + i)}
		k.create(scheme)
		if v := u.enrol(t, cradle.Operational, k, k.certify); !v.OK() {
			t.Errorf("scheme %#x: %v", scheme.Scheme, v.Reasons)
		}
		if v := u.enrol(t, cradle.IDevID, k, k.certify); !v.Has(attest.KeyType) {
			t.Errorf("RSA key as IDevID: %v", v.Reasons)
		}
	}
}

// rsaTPMKey is an RSA key in a TPM, made and used as any tool does.
type rsaTPMKey struct {
	t      *testing.T
	u      *tpmUnit
	handle tpm2.TPMHandle
	area   tpm2.TPMTPublic
	pub    *rsa.PublicKey
}

// with opens the TPM: a software TPM serves one connection at a time.
func (k *rsaTPMKey) with(fn func(tpm transport.TPM) error) error {
	conn, err := tpmio.Open(k.t.Context(), k.u.soft.Socket())
	if err != nil {
		return err
	}
	defer conn.Close()
	return fn(conn.With(k.t.Context()))
}

func (k *rsaTPMKey) create(scheme tpm2.TPMTRSAScheme) {
	k.t.Helper()
	area := tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
		UserWithAuth: true, SignEncrypt: true, NoDA: true}}
	rsaKey(nil, 2048, 0, scheme)(&area)
	if err := k.u.tpm.Close(); err != nil {
		k.t.Fatal(err)
	}
	err := k.with(func(tpm transport.TPM) error {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(area)}.Execute(tpm)
		if err != nil {
			return err
		}
		defer tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(tpm)
		public, err := made.OutPublic.Contents()
		if err != nil {
			return err
		}
		k.area = *public
		unique, err := public.Unique.RSA()
		if err != nil {
			return err
		}
		k.pub = &rsa.PublicKey{N: new(big.Int).SetBytes(unique.Buffer), E: 65537}
		_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: k.handle}.Execute(tpm)
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	k.u.tpm = must(tpmkey.Open(k.t.Context(), k.u.soft.Socket()))(k.t)
}

func (k *rsaTPMKey) auth(tpm transport.TPM, h tpm2.TPMHandle) (tpm2.AuthHandle, error) {
	name, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(tpm)
	if err != nil {
		return tpm2.AuthHandle{}, err
	}
	return tpm2.AuthHandle{Handle: h, Name: name.Name, Auth: tpm2.PasswordAuth(nil)}, nil
}

func (k *rsaTPMKey) certify(extra []byte) (c evidence.Certify, err error) {
	if err := k.u.tpm.Close(); err != nil {
		return c, err
	}
	defer func() { k.u.tpm = must(tpmkey.Open(k.t.Context(), k.u.soft.Socket()))(k.t) }()
	err = k.with(func(tpm transport.TPM) error {
		key, err := k.auth(tpm, k.handle)
		if err != nil {
			return err
		}
		iak, err := k.auth(tpm, tpm2.TPMHandle(tpmkey.HandleIAK))
		if err != nil {
			return err
		}
		out, err := tpm2.Certify{ObjectHandle: key, SignHandle: iak, QualifyingData: tpm2.TPM2BData{Buffer: extra},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(tpm)
		if err != nil {
			return err
		}
		c = evidence.Certify{Attest: out.CertifyInfo.Bytes(), Signature: tpm2.Marshal(out.Signature), Public: tpm2.Marshal(k.area)}
		return nil
	})
	return c, err
}

// Public implements crypto.Signer.
func (k *rsaTPMKey) Public() crypto.PublicKey { return k.pub }

// Sign makes a signature of PKCS #1 v1.5 with SHA-256.
func (k *rsaTPMKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) (sig []byte, err error) {
	if err := k.u.tpm.Close(); err != nil {
		return nil, err
	}
	defer func() { k.u.tpm = must(tpmkey.Open(k.t.Context(), k.u.soft.Socket()))(k.t) }()
	err = k.with(func(tpm transport.TPM) error {
		key, err := k.auth(tpm, k.handle)
		if err != nil {
			return err
		}
		out, err := tpm2.Sign{KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: digest},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck}}.Execute(tpm)
		if err != nil {
			return err
		}
		s, err := out.Signature.Signature.RSASSA()
		if err == nil {
			sig = s.Sig.Buffer
		}
		return err
	})
	return sig, err
}

// softwareKey loads a software key into the TPM, whose genuine attestation key then certifies it (attack 3 of
// the list): only its attributes betray it.
func softwareKey(t *testing.T, u *tpmUnit) {
	priv := p256(t)
	area := evidence.OperationalTemplate
	area.ObjectAttributes = tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true, NoDA: true}
	b := must(priv.PublicKey.Bytes())(t)
	point(b[1:33], b[33:])(&area)
	d := must(priv.Bytes())(t)
	v := u.enrol(t, cradle.LDevID, priv, func(extra []byte) (evidence.Certify, error) {
		if err := u.tpm.Close(); err != nil { // a software TPM serves one connection
			return evidence.Certify{}, err
		}
		conn, err := tpmio.Open(t.Context(), u.soft.Socket())
		if err != nil {
			return evidence.Certify{}, err
		}
		defer conn.Close()
		tpm := conn.With(t.Context())
		loaded, err := (tpm2.LoadExternal{
			InPrivate: tpm2.New2B(tpm2.TPMTSensitive{SensitiveType: tpm2.TPMAlgECC,
				Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: d})}),
			InPublic:  tpm2.New2B(area),
			Hierarchy: tpm2.TPMRHNull,
		}).Execute(tpm)
		if err != nil {
			return evidence.Certify{}, err
		}
		defer tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(tpm)
		name, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpmkey.HandleIAK)}.Execute(tpm)
		if err != nil {
			return evidence.Certify{}, err
		}
		out, err := tpm2.Certify{
			ObjectHandle:   tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth(nil)},
			SignHandle:     tpm2.AuthHandle{Handle: tpm2.TPMHandle(tpmkey.HandleIAK), Name: name.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: extra},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(tpm)
		if err != nil {
			return evidence.Certify{}, err
		}
		return evidence.Certify{Attest: out.CertifyInfo.Bytes(), Signature: tpm2.Marshal(out.Signature), Public: tpm2.Marshal(area)}, nil
	})
	for _, code := range []attest.Code{attest.KeyFixedTPM, attest.KeyFixedPar, attest.KeyOrigin} {
		if !v.Has(code) {
			t.Errorf("software key: %s is missing in %v", code, v.Reasons)
		}
	}
	if len(v.Reasons) != 3 {
		t.Errorf("software key: got %v", v.Reasons)
	}
}
