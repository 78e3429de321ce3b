package softkey_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// go-tpm's CreateCredential is the other side, as a TPM would meet it.
func TestActivate(t *testing.T) {
	m, err := softkey.NewMaker("Test maker")
	if err != nil {
		t.Fatal(err)
	}
	for typ, template := range map[string]tpm2.TPMTPublic{
		softkey.RSA2048: evidence.EKTemplateRSA2048, softkey.P256: evidence.EKTemplateP256, softkey.P384: evidence.EKTemplateP384,
	} {
		d, err := m.NewDevice(typ)
		if err != nil {
			t.Fatal(err)
		}
		switch k := d.EK.(type) {
		case *rsa.PrivateKey:
			template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
		case *ecdsa.PrivateKey:
			b, _ := k.PublicKey.Bytes()
			n := len(b) / 2
			template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: b[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: b[1+n:]}})
		}
		key, err := tpm2.ImportEncapsulationKey(&template)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{7}, 32)
		blob, secret, err := tpm2.CreateCredential(rand.Reader, key, d.IAK.Name(), want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Activate(blob, secret); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, %v; want %x", typ, got, err, want)
		}
		blob, secret, err = tpm2.CreateCredential(rand.Reader, key, append([]byte{0, 11}, make([]byte, 32)...), want)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Activate(blob, secret); err == nil {
			t.Errorf("%s: activated for another name", typ)
		}
	}
}

func TestCertify(t *testing.T) {
	m, err := softkey.NewMaker("Test maker")
	if err != nil {
		t.Fatal(err)
	}
	d, err := m.NewDevice("")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(d.EKCert)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(m.Cert); err != nil {
		t.Error(err)
	}
	key, err := d.NewIDevID()
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Certify(key, []byte("extra"))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](c.Signature)
	if err != nil {
		t.Fatal(err)
	}
	ecc, err := sig.Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	der := sha256.Sum256(c.Attest)
	r, s := new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer)
	if !ecdsa.Verify(&d.IAK.Private.PublicKey, der[:], r, s) {
		t.Error("the statement is not signed by the IAK")
	}
	if !evidence.MatchesTemplate(key.Area, evidence.IDevIDTemplate) {
		t.Error("the key does not match its template")
	}
}
