package main

import (
	"bufio"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cms"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// tpmenroll from the client's first byte to the certificate that only its TPM can read; and the mistakes that the
// server of GlobalSign's client lets pass.
func TestESTTPMEnroll(t *testing.T) {
	s := newESTRig(t)
	maker, err := softkey.NewMaker("test maker")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.p.ImportMaker(t.Context(), "soft", cradle.Simulator, [][]byte{maker.Cert.Raw}); err != nil {
		t.Fatal(err)
	}
	unknown, err := softkey.NewMaker("a maker that nobody imported")
	if err != nil {
		t.Fatal(err)
	}
	device := func(m *softkey.Maker) (*softkey.Device, *softkey.Key) {
		d, err := m.NewDevice(softkey.RSA2048)
		if err != nil {
			t.Fatal(err)
		}
		k, err := softkey.NewKey(evidence.OperationalTemplate, tpm2.TPMRHOwner)
		if err != nil {
			t.Fatal(err)
		}
		return d, k
	}
	tpm, key := device(maker)
	other, otherKey := device(maker)
	foreign, foreignKey := device(unknown)
	send := func(q est.TPMEnrollRequest, change func(string) string) string {
		typ, body, err := q.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			body = []byte(change(string(body)))
		}
		return s.send(s.tls(nil), request("POST", label+"/tpmenroll", string(body), "Content-Type: "+typ, basicHeader("line", linePassword)))
	}
	right := est.TPMEnrollRequest{CSR: csrOf(t, "gw-2", key.Private), EKChain: [][]byte{tpm.EKCert}, EKPublic: tpm.EKPublic(), AKPublic: key.TPMTPublic()}
	soft := key.Area
	soft.ObjectAttributes.FixedTPM = false
	for name, q := range map[string]est.TPMEnrollRequest{
		"a CSR of another key":           {CSR: csrOf(t, "gw-2", otherKey.Private), EKChain: right.EKChain, EKPublic: right.EKPublic, AKPublic: right.AKPublic},
		"a key outside the TPM":          {CSR: csrOf(t, "gw-2", testca.Key(t)), EKChain: right.EKChain, EKPublic: right.EKPublic, AKPublic: right.AKPublic},
		"another TPM's EK":               {CSR: right.CSR, EKChain: right.EKChain, EKPublic: other.EKPublic(), AKPublic: right.AKPublic},
		"an EK of an unknown maker":      {CSR: csrOf(t, "gw-2", foreignKey.Private), EKChain: [][]byte{foreign.EKCert}, EKPublic: foreign.EKPublic(), AKPublic: foreignKey.TPMTPublic()},
		"a key that may leave the TPM":   {CSR: right.CSR, EKChain: right.EKChain, EKPublic: right.EKPublic, AKPublic: tpm2.Marshal(soft)},
		"a certificate that is no EK's":  {CSR: right.CSR, EKChain: [][]byte{s.maker.Cert.Raw}, EKPublic: right.EKPublic, AKPublic: right.AKPublic},
		"public areas that are garbage":  {CSR: right.CSR, EKChain: right.EKChain, EKPublic: []byte("x"), AKPublic: []byte("y")},
		"a name that it may not ask for": {CSR: csrOf(t, "other", key.Private), EKChain: right.EKChain, EKPublic: right.EKPublic, AKPublic: right.AKPublic},
	} {
		t.Run(name, func(t *testing.T) {
			s.unchanged(t, func() {
				got := send(q, nil)
				if !strings.HasPrefix(got, "HTTP/1.1 400") && !strings.HasPrefix(got, "HTTP/1.1 403") {
					t.Errorf("%.500q", got)
				}
			})
		})
	}
	for name, change := range map[string]func(string) string{
		"a part too few": func(b string) string {
			return b[:strings.LastIndex(b[:len(b)-len("--estTPMEnrollBoundary--\r\n")], "--estTPMEnrollBoundary")] + "--estTPMEnrollBoundary--\r\n"
		},
		"parts in another order": func(b string) string {
			return strings.Replace(b, "application/pkcs10", "application/octet-stream", 1)
		},
		"cut off": func(b string) string { return b[:len(b)/2] },
	} {
		t.Run(name, func(t *testing.T) { s.unchanged(t, func() { one(t, send(right, change), "400", "") }) })
	}

	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(send(right, nil))), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%+v, %v", resp, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := est.ParseTPMEnrollResponse(resp.Header.Get("Content-Type"), body)
	if err != nil {
		t.Fatal(err)
	}
	tpm.IAK, other.IAK = key, key
	if _, err := other.Activate(a.CredentialBlob, a.EncryptedSecret); err == nil {
		t.Error("another TPM recovered the secret")
	}
	secret, err := tpm.Activate(a.CredentialBlob, a.EncryptedSecret)
	if err != nil {
		t.Fatal(err)
	}
	der, err := cms.DecryptData(a.Certificate, secret)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil || c.Subject.CommonName != "gw-2" || !key.Private.PublicKey.Equal(c.PublicKey) {
		t.Errorf("%v, %v", c, err)
	}
}
