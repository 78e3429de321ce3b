package provider_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// tpmRequest is what GlobalSign's client sends: nothing in it is signed by the TPM but the CSR, by its new key.
func tpmRequest(t *testing.T, r *rig, profile cradle.Profile, c provider.Client, d *softkey.Device, cn string) (provider.TPMRequest, *softkey.Key) {
	t.Helper()
	ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", profile))
	if err != nil {
		t.Fatal(err)
	}
	key, err := softkey.NewKey(evidence.OperationalTemplate, tpm2.TPMRHOwner)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key.Private)
	if err != nil {
		t.Fatal(err)
	}
	return provider.TPMRequest{Endpoint: ep, Client: c, CSR: csr, EKChain: [][]byte{d.EKCert}, EKPublic: d.EKPublic(), AKPublic: key.TPMTPublic()}, key
}

// TestTPMEnroll: only the TPM reads the certificate, and the log says which it was when it is used.
func TestTPMEnroll(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		born := r.active(o, r.station(o), "SN0001")
		free, err := r.maker.NewDevice(softkey.RSA2048)
		if err != nil {
			t.Fatal(err)
		}
		q, _ := tpmRequest(t, r, cradle.LDevID, byBasic("line"), free, "gw-1")
		_, err = r.p.TPMEnroll(t.Context(), q)
		refused(t, err, cradle.Unauthorized, "no TLS client certificate") // nobody is let in yet
		q, _ = tpmRequest(t, r, cradle.LDevID, byCert(born.idevid), born.Device, "")
		_, err = r.p.TPMEnroll(t.Context(), q)
		refused(t, err, cradle.Forbidden, "no evidence") // nor is it asked for less than evidence
		r.basicUser(cradle.LDevID, "line", "")
		r.basicUser(cradle.LDevID, "other", "")

		q, key := tpmRequest(t, r, cradle.LDevID, byBasic("line"), free, "gw-1")
		out, err := r.p.TPMEnroll(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if out.CredentialBlob[0] != 0 || out.CredentialBlob[1] != 32 || len(out.EncryptedSecret) != 256 || len(out.Secret) != 16 {
			t.Errorf("blob begins %x, secret of %d bytes in %d", out.CredentialBlob[:2], len(out.Secret), len(out.EncryptedSecret))
		}
		tpm := *free
		tpm.IAK = key // the key whose name is activated
		if secret, err := tpm.Activate(out.CredentialBlob, out.EncryptedSecret); err != nil || !bytes.Equal(secret, out.Secret) {
			t.Errorf("activated %x, %v", secret, err)
		}
		if _, err := free.Activate(out.CredentialBlob, out.EncryptedSecret); err == nil {
			t.Error("the secret was for another key too")
		}
		cert, err := x509.ParseCertificate(out.Cert)
		if err != nil {
			t.Fatal(err)
		}
		if len(cert.Policies) != 3 || !cert.Policies[0].Equal(cradle.TierPolicy(cradle.Simulator)) || !cert.Policies[1].Equal(cradle.PolicyKeyNotProved) || !cert.Policies[2].Equal(cradle.PolicyKeyActivated) {
			t.Errorf("policies %v", cert.Policies)
		}
		d, err := r.p.Device(t.Context(), "acme", "gw-1")
		if err != nil || d.Tier != cradle.Simulator || d.Maker != "soft" || d.EKDigest == "" {
			t.Errorf("device %+v, %v", d, err)
		}
		again, err := r.p.TPMEnroll(t.Context(), q) // the answer was lost
		if err != nil || !bytes.Equal(again.Cert, out.Cert) || bytes.Equal(again.Secret, out.Secret) {
			t.Errorf("asked again: the same certificate %v, the same secret %v, %v", bytes.Equal(again.Cert, out.Cert), bytes.Equal(again.Secret, out.Secret), err)
		}

		digest := []byte(ca.Digest(cert.Raw))
		sealed := r.export()
		if bytes.Contains(sealed, digest) || bytes.Contains(sealed, []byte(cert.SerialNumber.Text(16))) || !bytes.Contains(sealed, []byte(`\"commitment\"`)) {
			t.Error("the log tells of the certificate before it was used, or holds no commitment to it")
		}
		r.check()
		renewed := must[*x509.Certificate](t)(r.plain(cradle.LDevID, provider.Reenroll, byCert(cert), reCSR(t, cert)))
		if !bytes.Contains(r.export(), digest) {
			t.Error("its use did not open the log's commitment")
		}
		must[*x509.Certificate](t)(r.plain(cradle.LDevID, provider.Reenroll, byCert(renewed), reCSR(t, renewed)))
		r.check()

		plain := must[*x509.Certificate](t)(r.plain(cradle.LDevID, provider.Enroll, byBasic("line"), plainCSR(t, "gw-2", newKey(t), false)))
		station := r.station(o)
		second, err := r.maker.NewDevice("")
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			name    string
			profile cradle.Profile
			client  provider.Client
			device  *softkey.Device
			cn      string
			bend    func(q *provider.TPMRequest)
			kind    cradle.Kind
			part    string
		}{
			{"a profile of the line", cradle.IDevID, byCert(station), second, "", nil, cradle.Forbidden, "no evidence"},
			{"the same TPM under another name", cradle.LDevID, byBasic("line"), free, "gw-9", nil, cradle.Forbidden, "another unit"},
			{"a TPM that was born under an order", cradle.LDevID, byBasic("line"), born.Device, "gw-8", nil, cradle.Forbidden, "another unit"},
			{"that TPM by its own certificate, where it attested", cradle.LDevID, byCert(born.idevid), born.Device, "", nil, cradle.Forbidden, "with evidence"},
			{"another TPM for a known device", cradle.LDevID, byBasic("line"), second, "gw-1", nil, cradle.Forbidden, "another TPM"},
			{"another TPM beside an own certificate", cradle.LDevID, byCert(born.idevid), second, "", nil, cradle.Forbidden, "another TPM"},
			{"a TPM for a device that came without", cradle.LDevID, byBasic("line"), second, plain.Subject.CommonName, nil, cradle.Forbidden, "came without a TPM"},
			{"another credential's device", cradle.LDevID, byBasic("other"), free, "gw-1", nil, cradle.Forbidden, "did not come by this credential"},
			{"a software key", cradle.LDevID, byBasic("line"), second, "gw-3", func(q *provider.TPMRequest) { q.CSR = plainCSR(t, "gw-3", newKey(t), false) }, cradle.Forbidden, "csr-key"},
			{"another TPM's EK certificate", cradle.LDevID, byBasic("line"), second, "gw-3", func(q *provider.TPMRequest) { q.EKChain = [][]byte{free.EKCert} }, cradle.Forbidden, "ekpub-key"},
		} {
			t.Run(x.name, func(t *testing.T) {
				q, _ := tpmRequest(t, r, x.profile, x.client, x.device, x.cn)
				if x.bend != nil {
					x.bend(&q)
				}
				_, err := r.p.TPMEnroll(t.Context(), q)
				refused(t, err, x.kind, x.part)
			})
		}
		r.check()
	})
}

// TestSealedTampering: a sealed certificate that the store shows as used, and an opening of something else, are found.
func TestSealedTampering(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "provider.db"))
	r.basicUser(cradle.LDevID, "line", "")
	enroll := func(cn string) *x509.Certificate {
		t.Helper()
		d, err := r.maker.NewDevice("")
		if err != nil {
			t.Fatal(err)
		}
		q, _ := tpmRequest(t, r, cradle.LDevID, byBasic("line"), d, cn)
		out, err := r.p.TPMEnroll(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(out.Cert)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, two := enroll("gw-1"), enroll("gw-2")
	db, err := sql.Open("sqlite", r.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `UPDATE certificates SET slot = 'current' WHERE digest = ?`, ca.Digest(one.Raw)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `UPDATE commitments SET salt = ? WHERE certificate = ?`, make([]byte, 32), ca.Digest(two.Raw)); err != nil {
		t.Fatal(err)
	}
	must[*x509.Certificate](t)(r.plain(cradle.LDevID, provider.Reenroll, byCert(two), reCSR(t, two)))
	findings, _, err := ledger.Verify(bytes.NewReader(r.export()), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	codes := map[ledger.Code]bool{}
	for _, f := range findings {
		codes[f.Code] = true
	}
	if !codes[ledger.CertificateUnlogged] || !codes[ledger.CommitmentWrong] {
		t.Errorf("findings %v", findings)
	}
}
