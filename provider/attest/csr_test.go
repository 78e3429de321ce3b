package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
)

// enrolment is one attested enrolment while it is made. Attacks change it at the step that is theirs.
type enrolment struct {
	t       testing.TB
	device  *softkey.Device
	key     *softkey.Key // to be certified
	req     attest.Request
	binding evidence.Binding

	challenged func(e *enrolment)                      // after the nonce: state, keys, what the device binds
	stated     func(e *enrolment, s *tpm2.TPMSAttest)  // before the IAK signs
	certified  func(e *enrolment, c *evidence.Certify) // after it has signed
	bundled    func(e *enrolment, b *evidence.Bundle)  // before the CSR is signed
	requested  func(e *enrolment)                      // before the server judges
}

// world is the devices that the attacks share, since keys take time to make.
type world struct {
	device, second *softkey.Device
	anchors        *attest.AnchorSet
	ek             *attest.EK
	root           authority
}

func newWorld(t testing.TB) *world {
	m := must(softkey.NewMaker("Software maker"))(t)
	w := &world{device: must(m.NewDevice(""))(t), second: must(m.NewDevice(""))(t), root: authority{m.Cert, m.Key}}
	w.anchors = attest.NewAnchorSet([]attest.Anchor{w.root.anchor()})
	ek, why := w.anchors.VerifyEK(now, w.device.EKCert, nil, attest.Rules{}, nil)
	if !why.OK() {
		t.Fatal(why)
	}
	w.ek = ek
	return w
}

// start is what an honest device and the provider do until the challenge is there. At birth the secret
// takes the real way through Activation.
func (w *world) start(t testing.TB, p cradle.Profile) *enrolment {
	t.Helper()
	auth := []byte("client certificate")
	authDigest := sha256.Sum256(auth)
	label := cradle.Label("acme", p)
	e := &enrolment{t: t, device: w.device}
	e.req = attest.Request{Profile: p, Account: "acme", Label: label, AuthCert: auth, Anchors: w.anchors,
		State: attest.ChallengeState{Account: "acme", Label: label, EK: w.ek.Facts, IAK: w.device.IAK.TPMTPublic(),
			AuthCert: authDigest[:], Expiry: now.Add(2 * time.Minute), Nonce: []byte("nonce")}}
	e.binding = evidence.Binding{Challenge: []byte("sealed challenge"), Account: "acme", Label: label, AuthCert: auth}
	switch p {
	case cradle.IAK:
		e.key = w.device.IAK
	case cradle.IDevID:
		e.key = must(w.device.NewIDevID())(t)
	case cradle.LDevID:
		e.key = must(w.device.NewLDevID())(t)
	default:
		e.key = must(w.device.NewOperational())(t)
	}
	if p == cradle.IAK || p == cradle.IDevID {
		e.req.State.Secret = make([]byte, attest.SecretSize)
		rand.Read(e.req.State.Secret)
		blob, sealed, err := attest.Activation(w.ek, w.device.IAK.Name(), e.req.State.Secret)
		if err != nil {
			t.Fatal(err)
		}
		e.binding.Secret = must(w.device.Activate(blob, sealed))(t)
	}
	return e
}

// finish makes the CSR and returns the judge of it.
func (e *enrolment) finish() func() attest.Reasons {
	t := e.t
	t.Helper()
	if e.challenged != nil {
		e.challenged(e)
	}
	if e.binding.SPKI == nil {
		e.binding.SPKI = spkiOf(t, e.key.Public())
	}
	extra := e.binding.ExtraData()
	s := e.device.Statement(e.key, extra[:])
	if e.stated != nil {
		e.stated(e, &s)
	}
	c := evidence.Certify{Attest: tpm2.Marshal(s), Public: e.key.TPMTPublic()}
	c.Signature = must(e.device.IAK.SignTPM(c.Attest))(t)
	if e.certified != nil {
		e.certified(e, &c)
	}
	b := &evidence.Bundle{Certify: &c, Challenge: []byte("sealed challenge")}
	if e.bundled != nil {
		e.bundled(e, b)
	}
	if e.req.CSR == nil {
		e.req.CSR = must(evidence.ParseCSR(must(evidence.CreateCSR(pkix.Name{CommonName: "a wish"}, e.key, b))(t)))(t)
	}
	if e.requested != nil {
		e.requested(e)
	}
	return func() attest.Reasons { return attest.VerifyCSR(now, e.req).Reasons }
}

// csrRows bend challenge, statement, signature and CSR.
func csrRows(t testing.TB) []row {
	w := newWorld(t)
	var rows []row
	add := func(name string, code attest.Code, p cradle.Profile, change func(e *enrolment)) *row {
		t.Helper()
		e := w.start(t, p)
		change(e)
		rows = append(rows, row{name: "CSR: " + name, code: code, verify: e.finish()})
		return &rows[len(rows)-1]
	}
	const born, later = cradle.IDevID, cradle.LDevID

	for _, p := range []cradle.Profile{cradle.IAK, cradle.IDevID, cradle.LDevID, cradle.Operational} {
		add("honest "+string(p), "", p, func(*enrolment) {})
	}
	add("renewal with activation", "", later, func(e *enrolment) {
		e.req.State.Secret = bytes.Repeat([]byte{5}, 32)
		e.binding.Secret = e.req.State.Secret
	})
	add("no TLS client certificate on either side", "", later, func(e *enrolment) {
		e.req.AuthCert, e.req.State.AuthCert, e.binding.AuthCert = nil, nil, nil
	})
	add("firmware at the floor", "", born, func(e *enrolment) { e.req.Rules.MinFirmware = softkey.Firmware })

	// The challenge.
	add("expired challenge", attest.ChallengeExpired, born, func(e *enrolment) { e.req.State.Expiry = now.Add(-time.Second) })
	add("challenge of another account", attest.ChallengeAccount, born, func(e *enrolment) { e.req.State.Account = "other" })
	add("challenge of another label", attest.ChallengeLabel, later, func(e *enrolment) { e.req.State.Label = "acme-operational" })
	add("challenge of another client", attest.ChallengeClient, later, func(e *enrolment) {
		e.req.AuthCert = []byte("stolen")
		e.binding.AuthCert = e.req.AuthCert
	})
	add("client certificate left out", attest.ChallengeClient, later, func(e *enrolment) { e.req.AuthCert, e.binding.AuthCert = nil, nil })
	add("client certificate put in", attest.ChallengeClient, later, func(e *enrolment) { e.req.State.AuthCert = nil })
	add("IDevID without activation", attest.ChallengeNoSecret, born, func(e *enrolment) { e.req.State.Secret, e.binding.Secret = nil, nil })
	add("IAK without activation", attest.ChallengeNoSecret, cradle.IAK, func(e *enrolment) { e.req.State.Secret, e.binding.Secret = nil, nil })
	add("guessable secret", attest.ChallengeNoSecret, born, func(e *enrolment) {
		e.req.State.Secret, e.binding.Secret = []byte{1}, []byte{1}
	})
	add("EK denied since the challenge", attest.EKDenied, born, func(e *enrolment) {
		e.req.Denied = func(d string) bool { return d == w.ek.Facts.Digest }
	})
	add("anchor distrusted since the challenge", attest.CADistrusted, born, func(e *enrolment) {
		gone := w.root.anchor()
		gone.Distrusted = true
		e.req.Anchors = attest.NewAnchorSet([]attest.Anchor{gone})
	})
	add("anchor of an enrolled device distrusted", attest.CADistrusted, later, func(e *enrolment) {
		gone := w.root.anchor()
		gone.Distrusted = true
		e.req.State.EK.Issuers = nil // as an old record may have it
		e.req.Anchors = attest.NewAnchorSet([]attest.Anchor{gone})
	})
	add("unrestricted attestation key in the challenge", attest.AKRestricted, born, func(e *enrolment) {
		e.challenged = func(e *enrolment) {
			iak := *w.device.IAK
			iak.Area.ObjectAttributes.Restricted = false
			forger := *w.device
			forger.IAK = &iak
			e.device, e.req.State.IAK = &forger, iak.TPMTPublic()
		}
	})

	// The evidence as a whole.
	add("no evidence", attest.EvidenceMissing, born, func(e *enrolment) {
		e.requested = func(e *enrolment) { e.req.CSR.Bundle = nil }
	})
	add("challenge but no statement", attest.EvidenceMissing, born, func(e *enrolment) {
		e.bundled = func(_ *enrolment, b *evidence.Bundle) { b.Certify = nil }
	})
	add("statement but no challenge", attest.EvidenceMissing, born, func(e *enrolment) {
		e.bundled = func(_ *enrolment, b *evidence.Bundle) { b.Challenge = nil }
	})

	// The CSR.
	add("CSR signed with SHA-1", attest.CSRAlgorithm, later, func(e *enrolment) {
		e.requested = func(e *enrolment) { e.req.CSR = sha1CSR(t, e.key, e.req.CSR) }
	})
	add("CSR signed by another key", attest.CSRSignature, later, func(e *enrolment) {
		e.requested = func(e *enrolment) {
			other := must(evidence.CreateCSR(pkix.Name{CommonName: "a wish"}, p256(t), nil))(t)
			e.req.CSR.Request.Signature = must(evidence.ParseCSR(other))(t).Request.Signature
		}
	})
	add("CSR of a software key beside a good statement", attest.CSRKey, later, func(e *enrolment) {
		e.challenged = func(e *enrolment) {
			mine := p256(t)
			e.binding.SPKI = spkiOf(t, mine.Public())
			e.bundled = func(e *enrolment, b *evidence.Bundle) {
				e.req.CSR = must(evidence.ParseCSR(must(evidence.CreateCSR(pkix.Name{}, mine, b))(t)))(t)
			}
		}
	})
	add("RSA CSR beside a good statement", attest.CSRKey, later, func(e *enrolment) {
		mine := must(newRSA())(t)
		e.binding.SPKI = spkiOf(t, mine.Public())
		e.bundled = func(e *enrolment, b *evidence.Bundle) {
			e.req.CSR = must(evidence.ParseCSR(must(evidence.CreateCSR(pkix.Name{}, mine, b))(t)))(t)
		}
	})
	add("IAK certificate for a second attestation key", attest.NotTheAK, cradle.IAK, func(e *enrolment) {
		e.key = must(softkey.NewKey(evidence.IAKTemplate, tpm2.TPMRHEndorsement))(t)
	})
	add("IDevID in the storage hierarchy", attest.KeyHierarchy, born, func(e *enrolment) { e.key.Parent = tpm2.TPMRHOwner })
	add("IDevID in the null hierarchy", attest.KeyHierarchy, born, func(e *enrolment) { e.key.Parent = tpm2.TPMRHNull })

	// The statement.
	change := func(f func(c *evidence.Certify)) func(*enrolment, *evidence.Certify) {
		return func(e *enrolment, c *evidence.Certify) {
			f(c)
			c.Signature = must(e.device.IAK.SignTPM(c.Attest))(t)
		}
	}
	add("bytes after the statement", attest.AttestMalformed, born, func(e *enrolment) {
		e.certified = change(func(c *evidence.Certify) { c.Attest = append(c.Attest, 0) })
	})
	add("statement cut off", attest.AttestMalformed, born, func(e *enrolment) {
		e.certified = change(func(c *evidence.Certify) { c.Attest = c.Attest[:len(c.Attest)-3] })
	})
	add("statement of a few bytes", attest.AttestMalformed, born, func(e *enrolment) {
		e.certified = change(func(c *evidence.Certify) { c.Attest = []byte{0xff, 0x54} })
	})
	add("data that no TPM made", attest.AttestMagic, born, func(e *enrolment) {
		e.certified = change(func(c *evidence.Certify) { c.Attest[0] = 0xfe })
	})
	// TPM2_CertifyCreation's statement has the same shape, needs no use of the key, and carries a hash
	// where Certify has the qualified name.
	add("TPM2_CertifyCreation", attest.AttestType, later, func(e *enrolment) {
		e.stated = func(e *enrolment, s *tpm2.TPMSAttest) {
			s.Type = tpm2.TPMSTAttestCreation
			s.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{
				ObjectName: tpm2.TPM2BName{Buffer: e.key.Name()}, CreationHash: tpm2.TPM2BDigest{Buffer: make([]byte, 32)}})
		}
	})
	add("quote passed off", attest.AttestType, later, func(e *enrolment) {
		e.certified = change(func(c *evidence.Certify) { binary.BigEndian.PutUint16(c.Attest[4:], uint16(tpm2.TPMSTAttestQuote)) })
	})
	add("statement about another key of the TPM", attest.AttestName, later, func(e *enrolment) {
		e.stated = func(e *enrolment, s *tpm2.TPMSAttest) {
			real := must(e.device.NewLDevID())(t)
			s.Attested = e.device.Statement(real, nil).Attested
		}
	})
	add("attestation key of another hierarchy", attest.AttestSigner, born, func(e *enrolment) {
		e.stated = func(e *enrolment, s *tpm2.TPMSAttest) {
			owned := *e.device.IAK
			owned.Parent = tpm2.TPMRHOwner
			d := *e.device
			d.IAK = &owned
			s.QualifiedSigner = d.Statement(e.key, nil).QualifiedSigner
		}
	})
	for name, bend := range map[string]func(b *evidence.Binding){
		"old challenge":            func(b *evidence.Binding) { b.Challenge = []byte("last week's challenge") },
		"no challenge":             func(b *evidence.Binding) { b.Challenge = nil },
		"bound to another account": func(b *evidence.Binding) { b.Account = "other" },
		"bound to another label":   func(b *evidence.Binding) { b.Label = "acme-ldevid" },
		"bound to another client":  func(b *evidence.Binding) { b.AuthCert = []byte("other") },
		"bound to another key":     func(b *evidence.Binding) { b.SPKI = spkiOf(t, p256(t).Public()) },
		"secret not activated":     func(b *evidence.Binding) { b.Secret = nil },
		"secret of another TPM":    func(b *evidence.Binding) { b.Secret = bytes.Repeat([]byte{9}, 32) },
	} {
		add(name, attest.AttestExtra, born, func(e *enrolment) { bend(&e.binding) })
	}
	add("no extra data", attest.AttestExtra, later, func(e *enrolment) {
		e.stated = func(_ *enrolment, s *tpm2.TPMSAttest) { s.ExtraData = tpm2.TPM2BData{} }
	})
	add("extra data with a byte more", attest.AttestExtra, later, func(e *enrolment) {
		e.stated = func(_ *enrolment, s *tpm2.TPMSAttest) { s.ExtraData.Buffer = append(s.ExtraData.Buffer, 0) }
	})
	add("firmware below the floor", attest.FirmwareTooOld, born, func(e *enrolment) { e.req.Rules.MinFirmware = softkey.Firmware + 1 })

	// Its signature.
	add("RSA signature", attest.SignatureAlg, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) {
			c.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA,
				Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}})})
		}
	}).held = "the numbers do not verify either"
	add("HMAC instead of a signature", attest.SignatureAlg, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) {
			c.Signature = append([]byte{0, 5, 0, 11}, make([]byte, 32)...)
		}
	}).held = "the numbers do not verify either"
	add("no signature", attest.SignatureAlg, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) { c.Signature = []byte{0, 16} }
	}).held = "there are no numbers to verify"
	add("signature says SHA-1", attest.SignatureAlg, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) { c.Signature[3] = byte(tpm2.TPMAlgSHA1) }
	})
	add("signature says ECDAA", attest.SignatureAlg, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) { c.Signature[1] = byte(tpm2.TPMAlgECDAA) }
	})
	add("bytes after the signature", attest.SignatureMalformed, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) { c.Signature = append(c.Signature, 0) }
	})
	add("signature cut off", attest.SignatureMalformed, later, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) { c.Signature = c.Signature[:40] }
	})
	signedBy := func(k *softkey.Key) func(*enrolment, *evidence.Certify) {
		return func(_ *enrolment, c *evidence.Certify) { c.Signature = must(k.SignTPM(c.Attest))(t) }
	}
	add("signed by another TPM's attestation key", attest.AttestSignature, born, func(e *enrolment) { e.certified = signedBy(w.second.IAK) })
	add("signed by the certified key itself", attest.AttestSignature, born, func(e *enrolment) { e.certified = signedBy(e.key) })
	add("statement changed after signing", attest.AttestSignature, born, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) {
			i := bytes.Index(c.Attest, binary.BigEndian.AppendUint64(nil, softkey.Firmware))
			c.Attest[i] ^= 1
		}
	})
	add("zero signature", attest.AttestSignature, born, func(e *enrolment) {
		e.certified = func(_ *enrolment, c *evidence.Certify) {
			c.Signature = tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA,
				Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256})})
		}
	})
	return rows
}

// The facts to record come from the statement.
func TestVerdictFacts(t *testing.T) {
	w := newWorld(t)
	e := w.start(t, cradle.IDevID)
	judge := e.finish()
	if why := judge(); !why.OK() {
		t.Fatal(why)
	}
	v := attest.VerifyCSR(now, e.req)
	if v.EK.Digest != w.ek.Facts.Digest || !bytes.Equal(v.AKName, w.device.IAK.Name()) || !bytes.Equal(v.KeyName, e.key.Name()) ||
		v.Firmware != softkey.Firmware || v.ResetCount != 1 || v.Clock != 1000 || v.RestartCount != 0 {
		t.Errorf("got %+v", v)
	}
}

// A secret wrapped for one TPM and one attestation key opens in no other pair.
func TestActivation(t *testing.T) {
	m := must(softkey.NewMaker("m"))(t)
	anchors := attest.NewAnchorSet([]attest.Anchor{authority{m.Cert, m.Key}.anchor()})
	for _, typ := range []string{attest.RSA2048, attest.P256, attest.P384} {
		d, other := must(m.NewDevice(typ))(t), must(m.NewDevice(typ))(t)
		ek, why := anchors.VerifyEK(now, d.EKCert, nil, attest.Rules{}, nil)
		if !why.OK() || ek.Facts.Type != typ {
			t.Fatalf("%s: %v %v", typ, why, ek)
		}
		secret := bytes.Repeat([]byte{3}, attest.SecretSize)
		blob, sealed, err := attest.Activation(ek, d.IAK.Name(), secret)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Activate(blob, sealed); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: got %x, %v", typ, got, err)
		}
		if _, err := other.Activate(blob, sealed); err == nil {
			t.Errorf("%s: opened by another TPM", typ)
		}
		swapped := *d
		swapped.IAK = other.IAK
		if _, err := swapped.Activate(blob, sealed); err == nil {
			t.Errorf("%s: opened for another attestation key", typ)
		}
		for _, bad := range [][]byte{nil, make([]byte, 33)} {
			if _, _, err := attest.Activation(ek, d.IAK.Name(), bad); err == nil {
				t.Errorf("%s: wrapped a secret of %d bytes", typ, len(bad))
			}
		}
	}
}

// sha1CSR signs csr again, by ECDSA with SHA-1, which crypto/x509 does not.
func sha1CSR(t testing.TB, key *softkey.Key, csr *evidence.CSR) *evidence.CSR {
	return must(evidence.ParseCSR(signedSHA1(t, csr.Request.RawTBSCertificateRequest, key.Private)))(t)
}

func keyOn(t testing.TB, curve elliptic.Curve) (*ecdsa.PrivateKey, func(*tpm2.TPMTPublic)) {
	k := must(ecdsa.GenerateKey(curve, rand.Reader))(t)
	b := must(k.PublicKey.Bytes())(t)
	n := len(b) / 2
	return k, point(b[1:1+n], b[1+n:])
}
