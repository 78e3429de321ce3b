package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
)

// area changes one public area: its structure, then its bytes.
type area struct {
	name   string
	code   attest.Code // suffix; "ak-" or "key-" comes before it
	held   string
	change func(p *tpm2.TPMTPublic)
	bytes  func(b []byte) []byte
}

func attributes(change func(a *tpm2.TPMAObject)) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) { change(&p.ObjectAttributes) }
}

func eccParms(change func(c *tpm2.TPMSECCParms)) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		c, err := p.Parameters.ECCDetail()
		if err != nil {
			panic(err)
		}
		bent := *c
		change(&bent)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &bent)
	}
}

func point(x, y []byte) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y}})
	}
}

func ecdsaScheme(hash tpm2.TPMAlgID) tpm2.TPMTECCScheme {
	return tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})}
}

// rsaArea is a key with everything of p but its type.
func rsaArea(p *tpm2.TPMTPublic) {
	p.Type = tpm2.TPMAlgRSA
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
		KeyBits: 2048,
	})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xc1}, 256)})
}

// rsaKey makes p the RSA key of that modulus and scheme.
func rsaKey(n []byte, bits tpm2.TPMKeyBits, exponent uint32, scheme tpm2.TPMTRSAScheme) func(p *tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Scheme: scheme, KeyBits: bits, Exponent: exponent})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: n})
	}
}

func rsaScheme(alg, hash tpm2.TPMAlgID) tpm2.TPMTRSAScheme {
	s := tpm2.TPMTRSAScheme{Scheme: alg}
	switch alg {
	case tpm2.TPMAlgRSASSA:
		s.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash})
	case tpm2.TPMAlgRSAPSS:
		s.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: hash})
	case tpm2.TPMAlgOAEP:
		s.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSEncSchemeOAEP{HashAlg: hash})
	case tpm2.TPMAlgRSAES:
		s.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSEncSchemeRSAES{})
	}
	return s
}

const noConversion = "the key cannot be converted to one that verifies"

// exactAreas break a key that must match a template whole.
func exactAreas() []area {
	offCurve := bytes.Repeat([]byte{1}, 32)
	return []area{
		{"cut off", "malformed", "", nil, func(b []byte) []byte { return b[:len(b)-5] }},
		{"bytes after it", "malformed", "", nil, func(b []byte) []byte { return append(b, 0) }},
		{"huge", "malformed", "", nil, func(b []byte) []byte { return append(b, make([]byte, 4096)...) }},
		{"empty", "malformed", "", nil, func([]byte) []byte { return nil }},
		{"RSA key", "type", noConversion, rsaArea, nil},
		{"SHA-1 name", "name-alg", "", func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }, nil},
		{"SHA-512 name", "name-alg", "", func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA512 }, nil},
		{"unknown name algorithm", "name-alg", "there is no name", func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA3256 }, nil},
		{"duplicable", "fixed-tpm", "", attributes(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), nil},
		{"movable", "fixed-parent", "", attributes(func(a *tpm2.TPMAObject) { a.FixedParent = false }), nil},
		{"private part from outside", "origin", "", attributes(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }), nil},
		{"cannot sign", "sign", "", attributes(func(a *tpm2.TPMAObject) { a.SignEncrypt = false }), nil},
		{"also decrypts", "decrypt", "", attributes(func(a *tpm2.TPMAObject) { a.Decrypt = true }), nil},
		{"user role only by policy", "attributes", "", attributes(func(a *tpm2.TPMAObject) { a.UserWithAuth = false }), nil},
		{"admin role by password", "attributes", "", attributes(func(a *tpm2.TPMAObject) { a.AdminWithPolicy = false }), nil},
		{"exempt from dictionary attack protection", "attributes", "", attributes(func(a *tpm2.TPMAObject) { a.NoDA = true }), nil},
		{"cleared at start", "attributes", "", attributes(func(a *tpm2.TPMAObject) { a.STClear = true }), nil},
		{"no policy", "policy", "", func(p *tpm2.TPMTPublic) { p.AuthPolicy = tpm2.TPM2BDigest{} }, nil},
		{"policy of another template", "policy", "", func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = evidence.PolicyEndorsement }, nil},
		{"scheme with SHA-1", "scheme", "", eccParms(func(c *tpm2.TPMSECCParms) { c.Scheme = ecdsaScheme(tpm2.TPMAlgSHA1) }), nil},
		{"scheme with SHA-384", "scheme", "", eccParms(func(c *tpm2.TPMSECCParms) { c.Scheme = ecdsaScheme(tpm2.TPMAlgSHA384) }), nil},
		{"scheme left open", "scheme", "", eccParms(func(c *tpm2.TPMSECCParms) { c.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull} }), nil},
		{"ECDAA", "scheme", "", eccParms(func(c *tpm2.TPMSECCParms) {
			c.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDAA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDAA, &tpm2.TPMSSchemeECDAA{HashAlg: tpm2.TPMAlgSHA256, Count: 1})}
		}), nil},
		{"ECDH", "scheme", "", eccParms(func(c *tpm2.TPMSECCParms) {
			c.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDH,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDH, &tpm2.TPMSKeySchemeECDH{HashAlg: tpm2.TPMAlgSHA256})}
		}), nil},
		{"symmetric key of a storage key", "parameters", "", eccParms(func(c *tpm2.TPMSECCParms) {
			c.Symmetric = tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES,
				KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
				Mode:    tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)}
		}), nil},
		{"key derivation scheme", "parameters", "", eccParms(func(c *tpm2.TPMSECCParms) {
			c.KDF = tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgKDF2,
				Details: tpm2.NewTPMUKDFScheme(tpm2.TPMAlgKDF2, &tpm2.TPMSKDFSchemeKDF2{HashAlg: tpm2.TPMAlgSHA256})}
		}), nil},
		{"curve SM2", "curve", noConversion, eccParms(func(c *tpm2.TPMSECCParms) { c.CurveID = tpm2.TPMECCSM2P256 }), nil},
		{"curve P-192", "curve", noConversion, eccParms(func(c *tpm2.TPMSECCParms) { c.CurveID = tpm2.TPMECCNistP192 }), nil},
		{"point not on the curve", "point", noConversion, point(offCurve, offCurve), nil},
		{"point at infinity", "point", noConversion, point(nil, nil), nil},
		{"zero point", "point", noConversion, point(make([]byte, 32), make([]byte, 32)), nil},
		{"coordinates too long", "point", noConversion, point(bytes.Repeat([]byte{1}, 100), bytes.Repeat([]byte{1}, 100)), nil},
	}
}

// akRows bend the attestation key that a claim names, before anything is activated.
func akRows(t testing.TB) []row {
	device := must(must(softkey.NewMaker("m"))(t).NewDevice(""))(t)
	var rows []row
	add := func(name string, code attest.Code, held string, public []byte) {
		rows = append(rows, row{name: "AK: " + name, code: code, held: held, verify: func() attest.Reasons {
			_, why := attest.VerifyAttestationKey(public)
			return why
		}})
	}
	add("the template", "", "", device.IAK.TPMTPublic())
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	x := p384.X.FillBytes(make([]byte, 48))
	y := p384.Y.FillBytes(make([]byte, 48))
	areas := append(exactAreas(),
		area{"signs anything", "restricted", "", attributes(func(a *tpm2.TPMAObject) { a.Restricted = false }), nil},
		area{"reserved attribute bit", "attributes", "", nil, func(b []byte) []byte { b[4] |= 0x80; return b }},
		area{"P-384", "curve", "", func(p *tpm2.TPMTPublic) {
			eccParms(func(c *tpm2.TPMSECCParms) { c.CurveID = tpm2.TPMECCNistP384 })(p)
			point(x, y)(p)
		}, nil},
	)
	for _, a := range areas {
		p := device.IAK.Area
		if a.change != nil {
			a.change(&p)
		}
		b := tpm2.Marshal(p)
		if a.bytes != nil {
			b = a.bytes(b)
		}
		add(a.name, "ak-"+a.code, a.held, b)
	}
	add("IDevID key as attestation key", attest.AKRestricted, "", must(device.NewIDevID())(t).TPMTPublic())
	rows[len(rows)-1].also = []attest.Code{attest.AKPolicy}
	add("EK as attestation key", attest.AKDecrypt, "", tpm2.Marshal(evidence.EKTemplateP256))
	rows[len(rows)-1].also = []attest.Code{attest.AKSign, attest.AKAttributes, attest.AKPolicy, attest.AKScheme, attest.AKParameters, attest.AKPoint}
	return rows
}

// FuzzAttestationKey: what is accepted matches the template by the other comparison, and only so.
func FuzzAttestationKey(f *testing.F) {
	device := must(must(softkey.NewMaker("m"))(f).NewDevice(""))(f)
	for _, a := range exactAreas() {
		p := device.IAK.Area
		if a.change != nil {
			a.change(&p)
		}
		f.Add(tpm2.Marshal(p))
	}
	f.Add(device.IAK.TPMTPublic())
	f.Fuzz(func(t *testing.T, public []byte) {
		ak, why := attest.VerifyAttestationKey(public)
		if (ak != nil) != why.OK() {
			t.Fatalf("key %v with reasons %v", ak, why)
		}
		checkReasons(t, why)
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
		matches := err == nil && bytes.Equal(tpm2.Marshal(*pub), public) && evidence.MatchesTemplate(*pub, evidence.IAKTemplate)
		if why.OK() && !matches {
			t.Fatal("accepted, but does not match the template")
		}
		if matches && !why.OK() && !why.Has(attest.AKPoint) {
			t.Fatalf("matches the template, but refused: %v", why)
		}
	})
}

// checkReasons: reasons say something, and briefly.
func checkReasons(t *testing.T, why attest.Reasons) {
	t.Helper()
	for _, r := range why {
		if r.Code == "" || r.Detail == "" || len(r.Detail) > 1000 {
			t.Fatalf("reason %+v", r)
		}
	}
}
