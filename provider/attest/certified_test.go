package attest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
)

// keyRows bend the certified key. A TPM would certify each of them truthfully: the statement's name is that of
// the bent public area.
func keyRows(t testing.TB) []row {
	w := newWorld(t)
	var rows []row
	add := func(p cradle.Profile, a area, also ...attest.Code) {
		t.Helper()
		e := w.start(t, p)
		e.challenged = func(e *enrolment) {
			if a.change != nil {
				k := *e.key
				a.change(&k.Area)
				e.key = &k
			}
		}
		if a.bytes != nil {
			e.certified = func(_ *enrolment, c *evidence.Certify) { c.Public = a.bytes(c.Public) }
			e.bundled = func(_ *enrolment, b *evidence.Bundle) {
				if len(b.Certify.Public) == 0 || len(b.Certify.Public) > evidence.MaxPublic {
					b.Certify.Public = []byte{0} // the attribute itself refuses those
				}
			}
		}
		code := attest.Code("")
		if a.code != "" {
			code = "key-" + a.code
		}
		rows = append(rows, row{name: string(p) + " key: " + a.name, code: code, also: also, held: a.held, verify: e.finish()})
	}
	// another key pair on another curve, which the CSR then has too.
	curve := func(id tpm2.TPMECCCurve, c elliptic.Curve) func(e *enrolment) {
		return func(e *enrolment) {
			priv, setPoint := keyOn(t, c)
			k := *e.key
			k.Private = priv
			eccParms(func(p *tpm2.TPMSECCParms) { p.CurveID = id })(&k.Area)
			setPoint(&k.Area)
			e.key = &k
		}
	}

	// IDevID: the template, whole.
	for _, a := range exactAreas() {
		switch {
		case a.code == "type" || a.code == "point" || a.code == "curve":
			add(cradle.IDevID, a, attest.CSRKey) // no such key can be in the CSR
		case a.held != "":
		default:
			add(cradle.IDevID, a)
		}
	}
	add(cradle.IDevID, area{"restricted", "restricted", "", attributes(func(a *tpm2.TPMAObject) { a.Restricted = true }), nil})
	e := w.start(t, cradle.IDevID)
	e.challenged = curve(tpm2.TPMECCNistP384, elliptic.P384())
	rows = append(rows, row{name: "idevid key: P-384", code: attest.KeyCurve, verify: e.finish()})
	e = w.start(t, cradle.IDevID)
	e.key = must(e.device.NewLDevID())(t)
	e.key.Parent = tpm2.TPMRHEndorsement
	rows = append(rows, row{name: "idevid key: LDevID template", code: attest.KeyPolicy, also: []attest.Code{attest.KeyAttributes}, verify: e.finish()})

	// IAK: its own template, by itself.
	add(cradle.IAK, area{"unrestricted", "restricted", "", attributes(func(a *tpm2.TPMAObject) { a.Restricted = false }), nil}, attest.NotTheAK)

	// RSA keys of LDevID and operational. The CSR has another key than these RSA keys; TestTPM
	// has sound ones.
	mine := must(newRSA())(t)
	n, null := mine.N.Bytes(), rsaScheme(tpm2.TPMAlgNull, 0)
	for _, a := range []area{
		{"RSA", "", "", rsaKey(n, 2048, 0, null), nil},
		{"RSA for PKCS #1 v1.5", "", "", rsaKey(n, 2048, 65537, rsaScheme(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256)), nil},
		{"RSA for PSS with SHA-384", "", "", rsaKey(n, 2048, 0, rsaScheme(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA384)), nil},
		{"RSA with SHA-1", "scheme", "", rsaKey(n, 2048, 0, rsaScheme(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA1)), nil},
		{"RSA for OAEP", "scheme", "", rsaKey(n, 2048, 0, rsaScheme(tpm2.TPMAlgOAEP, tpm2.TPMAlgSHA256)), nil},
		{"RSA for RSAES", "scheme", "", rsaKey(n, 2048, 0, rsaScheme(tpm2.TPMAlgRSAES, 0)), nil},
		{"RSA of 1024 bits", "modulus", "", rsaKey(n[:128], 1024, 0, null), nil},
		{"RSA with exponent 3", "modulus", "", rsaKey(n, 2048, 3, null), nil},
		{"RSA with the ROCA fingerprint", "modulus", "", rsaKey(rocaModulus().Bytes(), 2048, 0, null), nil},
		{"RSA shorter than it says", "modulus", "", rsaKey(n[:255], 2048, 0, null), nil},
		{"RSA with small factors", "modulus", "", rsaArea, nil},
		{"RSA with bytes after it", "malformed", "", rsaKey(n, 2048, 0, null), func(b []byte) []byte { return append(b, 1) }},
		{"HMAC", "type", "", func(p *tpm2.TPMTPublic) {
			p.Type = tpm2.TPMAlgKeyedHash
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}})
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: make([]byte, 32)})
		}, nil},
	} {
		switch a.code {
		case "":
			a.code = "csr"
			add(cradle.LDevID, a)
			rows[len(rows)-1].code = attest.CSRKey
		case "malformed":
			add(cradle.LDevID, a)
		default:
			add(cradle.LDevID, a, attest.CSRKey)
		}
	}

	// RSA keys that the CSR has too.
	for _, bits := range []int{1024, 2048} {
		mine := must(rsa.GenerateKey(rand.Reader, bits))(t)
		e := w.start(t, cradle.Operational)
		e.challenged = func(e *enrolment) {
			k := *e.key
			rsaKey(mine.N.Bytes(), tpm2.TPMKeyBits(bits), 0, null)(&k.Area)
			e.key = &k
			e.binding.SPKI = spkiOf(t, mine.Public())
		}
		e.bundled = func(e *enrolment, b *evidence.Bundle) {
			e.req.CSR = must(evidence.ParseCSR(must(evidence.CreateCSR(pkix.Name{}, mine, b))(t)))(t)
		}
		r := row{name: fmt.Sprintf("operational key: RSA of %d bits in the CSR too", bits), verify: e.finish()}
		if bits < 2048 {
			r.code = attest.KeyModulus
		}
		rows = append(rows, r)
	}

	// LDevID and operational: any signing key that cannot leave the TPM.
	for _, p := range []cradle.Profile{cradle.LDevID, cradle.Operational} {
		for _, a := range []area{
			{"other policy", "", "", func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = evidence.PolicyEndorsement }, nil},
			{"scheme chosen when signing", "", "", eccParms(func(c *tpm2.TPMSECCParms) { c.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull} }), nil},
			{"SHA-384 name", "", "", func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 }, nil},
			{"SHA-1 name", "name-alg", "", func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }, nil},
			{"duplicable", "fixed-tpm", "", attributes(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), nil},
			{"movable", "fixed-parent", "", attributes(func(a *tpm2.TPMAObject) { a.FixedParent = false }), nil},
			{"imported private part", "origin", "", attributes(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }), nil},
			{"restricted", "restricted", "", attributes(func(a *tpm2.TPMAObject) { a.Restricted = true }), nil},
			{"cannot sign", "sign", "", attributes(func(a *tpm2.TPMAObject) { a.SignEncrypt = false }), nil},
			{"also decrypts", "decrypt", "", attributes(func(a *tpm2.TPMAObject) { a.Decrypt = true }), nil},
			{"scheme with SHA-1", "scheme", "", eccParms(func(c *tpm2.TPMSECCParms) { c.Scheme = ecdsaScheme(tpm2.TPMAlgSHA1) }), nil},
			{"bytes after it", "malformed", "", nil, func(b []byte) []byte { return append(b, 1) }},
		} {
			add(p, a)
		}
		// TPM2_LoadExternal takes a software key, and a genuine attestation key certifies it.
		add(p, area{"software key loaded into the TPM", "fixed-tpm", "", attributes(func(a *tpm2.TPMAObject) {
			a.FixedTPM, a.FixedParent, a.SensitiveDataOrigin = false, false, false
		}), nil}, attest.KeyFixedPar, attest.KeyOrigin)
		e := w.start(t, p)
		e.challenged = curve(tpm2.TPMECCNistP384, elliptic.P384())
		rows = append(rows, row{name: string(p) + " key: P-384", verify: e.finish()})
	}
	return rows
}

func spkiOf(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	return must(x509.MarshalPKIXPublicKey(pub))(t)
}

func newRSA() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }

// signedSHA1 wraps info into a request signed by ECDSA with SHA-1.
func signedSHA1(t testing.TB, info []byte, key *ecdsa.PrivateKey) []byte {
	d := sha1.Sum(info)
	sig := must(ecdsa.SignASN1(rand.Reader, key, d[:]))(t)
	return must(asn1.Marshal(struct {
		Info asn1.RawValue
		Alg  struct{ OID asn1.ObjectIdentifier }
		Sig  asn1.BitString
	}{asn1.RawValue{FullBytes: info}, struct{ OID asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}},
		asn1.BitString{Bytes: sig, BitLength: len(sig) * 8}}))(t)
}

// FuzzCSR: whatever the statement, signature and public area, only our reasons come out, and nothing but the honest
// statement is accepted.
func FuzzCSR(f *testing.F) {
	w := newWorld(f)
	e := w.start(f, cradle.LDevID)
	e.finish()
	good := *e.req.CSR.Bundle.Certify
	f.Add(good.Attest, good.Signature, good.Public)
	f.Add([]byte{}, []byte{}, []byte{})
	f.Add(good.Attest, good.Signature, w.device.IAK.TPMTPublic())
	for _, a := range exactAreas() {
		if a.change != nil {
			k := *e.key
			a.change(&k.Area)
			f.Add(good.Attest, good.Signature, k.TPMTPublic())
		}
	}
	f.Fuzz(func(t *testing.T, attested, signature, public []byte) {
		r, csr := e.req, *e.req.CSR
		bundle := *csr.Bundle
		bundle.Certify = &evidence.Certify{Attest: attested, Signature: signature, Public: public}
		csr.Bundle, r.CSR = &bundle, &csr
		v := attest.VerifyCSR(now, r)
		checkReasons(t, v.Reasons)
		if v.OK() && (string(attested) != string(good.Attest) || string(public) != string(good.Public)) {
			t.Fatal("a forged statement was accepted")
		}
	})
}

// FuzzEK: only our reasons come out, and nothing but the maker's certificate is accepted.
func FuzzEK(f *testing.F) {
	root := maker(f, "Root")
	ca := root.intermediate(f, "CA", nil, nil)
	cert := ca.issue(f, p256(f).Public(), nil)
	anchors := attest.NewAnchorSet([]attest.Anchor{root.anchor()})
	f.Add(cert, ca.cert.Raw)
	f.Add(cert, []byte{})
	f.Add([]byte{}, cert)
	f.Add(root.cert.Raw, ca.cert.Raw)
	f.Fuzz(func(t *testing.T, der, inter []byte) {
		ek, why := anchors.VerifyEK(now, der, [][]byte{inter}, attest.Rules{}, nil)
		checkReasons(t, why)
		if (ek != nil) != why.OK() {
			t.Fatalf("EK %v with reasons %v", ek, why)
		}
		if why.OK() && string(ek.Cert.RawTBSCertificate) != string(must(x509.ParseCertificate(cert))(t).RawTBSCertificate) {
			t.Fatal("another certificate was accepted")
		}
	})
}

// BenchmarkVerifyCSR has two signature checks as its floor.
func BenchmarkVerifyCSR(b *testing.B) {
	e := newWorld(b).start(b, cradle.LDevID)
	e.finish()
	b.ReportAllocs()
	for b.Loop() {
		if v := attest.VerifyCSR(now, e.req); !v.OK() {
			b.Fatal(v)
		}
	}
}

func BenchmarkVerifyEK(b *testing.B) {
	root := maker(b, "Root")
	ca := root.intermediate(b, "CA", must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(b), nil)
	pinned := must(softkey.NewMaker("Pinned"))(b)
	for name, c := range map[string]struct {
		cert  []byte
		chain [][]byte
	}{
		"pinned P-256 issuer": {must(pinned.NewDevice(""))(b).EKCert, nil},
		"P-384 intermediate":  {ca.issue(b, p256(b).Public(), nil), [][]byte{ca.cert.Raw}},
	} {
		set := attest.NewAnchorSet([]attest.Anchor{root.anchor(), authority{pinned.Cert, pinned.Key}.anchor()})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, why := set.VerifyEK(now, c.cert, c.chain, attest.Rules{}, nil); !why.OK() {
					b.Fatal(why)
				}
			}
		})
	}
}
