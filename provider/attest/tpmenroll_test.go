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
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
)

// unproved is a CSR without evidence.
func unproved(t testing.TB, key crypto.Signer) *evidence.CSR {
	t.Helper()
	return must(evidence.ParseCSR(must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-1"}}, key))(t)))(t)
}

// oldCSR is signed as nobody should any more.
func oldCSR(t testing.TB, key *ecdsa.PrivateKey) *evidence.CSR {
	t.Helper()
	var req struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(unproved(t, key).Request.Raw, &req); err != nil {
		t.Fatal(err)
	}
	digest := sha1.Sum(req.Info.FullBytes)
	req.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	sig := must(ecdsa.SignASN1(rand.Reader, key, digest[:]))(t)
	req.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	return must(evidence.ParseCSR(must(asn1.Marshal(req))(t)))(t)
}

// forgedCSR has its last byte changed.
func forgedCSR(t testing.TB, key crypto.Signer) *evidence.CSR {
	t.Helper()
	der := unproved(t, key).Request.Raw
	der[len(der)-1] ^= 1
	return must(evidence.ParseCSR(der))(t)
}

// signingKey is a key as GlobalSign's client makes it: unrestricted, and so able to sign a CSR.
func signingKey(t testing.TB) *softkey.Key {
	t.Helper()
	return must(softkey.NewKey(evidence.OperationalTemplate, tpm2.TPMRHOwner))(t)
}

func tpmRows(t testing.TB) []row {
	w := newWorld(t)
	m := must(softkey.NewMaker("A maker that nobody imported"))(t)
	foreign := must(m.NewDevice(""))(t)
	rsaDevice := must((&softkey.Maker{Cert: w.root.cert, Key: w.root.key.(*ecdsa.PrivateKey)}).NewDevice(softkey.RSA2048))(t)
	var rows []row
	add := func(name string, code attest.Code, change func(q *attest.TPMEnroll, key *softkey.Key)) {
		key := signingKey(t)
		q := attest.TPMEnroll{EKChain: [][]byte{w.device.EKCert}, EKPublic: w.device.EKPublic(), Anchors: w.anchors, CSR: unproved(t, key.Private)}
		change(&q, key)
		if q.AKPublic == nil {
			q.AKPublic = key.TPMTPublic()
		}
		rows = append(rows, row{name: "tpmenroll: " + name, code: code, verify: func() attest.Reasons { return attest.VerifyTPMEnroll(now, q).Reasons }})
	}
	area := func(change func(p *tpm2.TPMTPublic)) func(*attest.TPMEnroll, *softkey.Key) {
		return func(_ *attest.TPMEnroll, k *softkey.Key) { change(&k.Area) }
	}
	ek := func(change func(p *tpm2.TPMTPublic)) func(*attest.TPMEnroll, *softkey.Key) {
		return func(q *attest.TPMEnroll, _ *softkey.Key) {
			p := must(tpm2.Unmarshal[tpm2.TPMTPublic](q.EKPublic))(t)
			change(p)
			q.EKPublic = tpm2.Marshal(*p)
		}
	}

	add("EC", "", func(*attest.TPMEnroll, *softkey.Key) {})
	add("RSA endorsement key", "", func(q *attest.TPMEnroll, _ *softkey.Key) {
		q.EKChain, q.EKPublic = [][]byte{rsaDevice.EKCert}, rsaDevice.EKPublic()
	})
	add("RSA key to certify", "", func(q *attest.TPMEnroll, _ *softkey.Key) {
		k := must(rsa.GenerateKey(rand.Reader, 2048))(t)
		q.CSR, q.AKPublic = unproved(t, k), rsaSigningArea(k)
	})

	add("no EK certificate", attest.EKMalformed, func(q *attest.TPMEnroll, _ *softkey.Key) { q.EKChain = nil })
	add("EK of a maker that nobody imported", attest.EKUntrusted, func(q *attest.TPMEnroll, _ *softkey.Key) {
		q.EKChain, q.EKPublic = [][]byte{foreign.EKCert}, foreign.EKPublic()
	})
	add("another TPM's EK certificate", attest.EKPubKey, func(q *attest.TPMEnroll, _ *softkey.Key) { q.EKChain = [][]byte{w.second.EKCert} })
	add("public area of an own key", attest.EKPubKey, func(q *attest.TPMEnroll, _ *softkey.Key) { q.EKPublic = w.second.EKPublic() })
	add("EK that may leave the TPM", attest.EKPubAttributes, ek(attributes(func(a *tpm2.TPMAObject) { a.FixedTPM = false })))
	add("EK made outside", attest.EKPubAttributes, ek(attributes(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })))
	add("EK that decrypts anything", attest.EKPubAttributes, ek(attributes(func(a *tpm2.TPMAObject) { a.Restricted = false })))
	add("EK that signs", attest.EKPubAttributes, ek(attributes(func(a *tpm2.TPMAObject) { a.SignEncrypt = true })))
	add("EK of another name algorithm", attest.EKPubParameters, ek(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }))
	add("bytes after the EK's public area", attest.EKPubMalformed, func(q *attest.TPMEnroll, _ *softkey.Key) { q.EKPublic = append(q.EKPublic, 0) })
	add("a key that may leave the TPM", attest.KeyFixedTPM, area(attributes(func(a *tpm2.TPMAObject) { a.FixedTPM = false })))
	add("a key that may move", attest.KeyFixedPar, area(attributes(func(a *tpm2.TPMAObject) { a.FixedParent = false })))
	add("a key made outside", attest.KeyOrigin, area(attributes(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })))
	add("a key that does not sign", attest.KeySign, area(attributes(func(a *tpm2.TPMAObject) { a.SignEncrypt = false })))
	add("a key that decrypts too", attest.KeyDecrypt, area(attributes(func(a *tpm2.TPMAObject) { a.Decrypt = true })))
	add("a restricted key", attest.KeyRestricted, area(attributes(func(a *tpm2.TPMAObject) { a.Restricted = true })))
	add("a software key beside the TPM's", attest.CSRKey, func(q *attest.TPMEnroll, _ *softkey.Key) { q.CSR = unproved(t, p256(t)) })
	add("a CSR that its key did not sign", attest.POPSignature, func(q *attest.TPMEnroll, k *softkey.Key) { q.CSR = forgedCSR(t, k.Private) })
	add("a CSR with SHA-1", attest.POPAlgorithm, func(q *attest.TPMEnroll, k *softkey.Key) { q.CSR = oldCSR(t, k.Private) })
	return rows
}

// rsaSigningArea is the public area of an RSA key that signs with whatever scheme is asked for.
func rsaSigningArea(k *rsa.PrivateKey) []byte {
	p := evidence.OperationalTemplate
	p.Type = tpm2.TPMAlgRSA
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}, KeyBits: 2048})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	return tpm2.Marshal(p)
}

func popRows(t testing.TB) []row {
	var rows []row
	add := func(name string, code attest.Code, csr *evidence.CSR) {
		rows = append(rows, row{name: "CSR: " + name, code: code, verify: func() attest.Reasons { return attest.VerifyPossession(csr) }})
	}
	ec := p256(t)
	add("EC", "", unproved(t, ec))
	add("RSA 2048", "", unproved(t, must(rsa.GenerateKey(rand.Reader, 2048))(t)))
	add("RSA 1024", attest.POPKey, unproved(t, must(rsa.GenerateKey(rand.Reader, 1024))(t)))
	add("P-224", attest.POPKey, unproved(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)))
	add("SHA-1", attest.POPAlgorithm, oldCSR(t, ec))
	add("not signed by its key", attest.POPSignature, forgedCSR(t, ec))
	return rows
}
