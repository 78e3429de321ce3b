package provider_test

// Security failures of comparable systems, each tried against this one. Those of the wire and of CSRs are in
// package estserver, those of tokens in adminserver.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
)

func anyAccount(cradle.AccountID) error { return nil }

// SPIRE 1.14.6, aws_iid: the identity document was read from another field than the one whose signature was
// checked. Here a signed order carries a second payload in every place where a reader might look for one.
func TestFailureSPIREUnsignedField(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(func(o *order.Order) { o.ID = "first" })
	good := *o
	good.ID = "wanted"
	signed := r.signed(&good)
	evil := good
	evil.Quantity = 1000
	body, err := json.Marshal(evil)
	if err != nil {
		t.Fatal(err)
	}
	payload := fmt.Sprintf("%q", base64.RawURLEncoding.EncodeToString(body))
	inner := bytes.TrimSuffix(bytes.TrimPrefix(bytes.TrimSpace(signed), []byte("{")), []byte("}"))
	var jws struct {
		Payload    json.RawMessage   `json:"payload"`
		Signatures []json.RawMessage `json:"signatures"`
	}
	if err := json.Unmarshal(signed, &jws); err != nil {
		t.Fatal(err)
	}
	sig := string(jws.Signatures[0])
	withHeader := strings.Replace(sig, "{", `{"header":{"payload":`+payload+`},`, 1)
	for name, doc := range map[string]string{
		"second payload behind":        fmt.Sprintf(`{%s,"payload":%s}`, inner, payload),
		"second payload before":        fmt.Sprintf(`{"payload":%s,%s}`, payload, inner),
		"payload in other case":        fmt.Sprintf(`{%s,"Payload":%s}`, inner, payload),
		"payload in other case before": fmt.Sprintf(`{"PAYLOAD":%s,%s}`, payload, inner),
		"order beside":                 fmt.Sprintf(`{%s,"order":%s}`, inner, body),
		"in an unprotected header":     fmt.Sprintf(`{"payload":%s,"signatures":[%s]}`, jws.Payload, withHeader),
		"payload exchanged":            fmt.Sprintf(`{"payload":%s,"signatures":[%s]}`, payload, sig),
		"flat beside general":          fmt.Sprintf(`{%s,"protected":"","signature":""}`, inner),
		"two documents":                string(signed) + string(body),
	} {
		if got, err := r.p.CreateOrder(t.Context(), []byte(doc), anyAccount); err == nil {
			t.Errorf("%s: registered with quantity %d", name, got.Quantity)
		} else if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.Unauthorized {
			t.Errorf("%s: %v: %v", name, k, err)
		}
	}
	if _, err := r.p.Order(t.Context(), "wanted"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("an order was registered: %v", err)
	}
	if got, err := r.p.CreateOrder(t.Context(), signed, anyAccount); err != nil || got.Quantity != good.Quantity {
		t.Errorf("the signed order: %v, %v", got, err)
	}
	r.check()
}

// The same in the evidence: a statement about one key, in a request for another.
func TestFailureSPIREStatementOfAnotherKey(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	inTPM, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	mine := newKey(t) // in no TPM
	ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", cradle.Operational))
	if err != nil {
		t.Fatal(err)
	}
	for name, spkiOf := range map[string]any{"binding names the request's key": mine.Public(), "binding names the TPM's key": inTPM.Public()} {
		n, err := r.p.Nonce(t.Context(), ep, u.ldevid, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		b := evidence.Binding{Challenge: n.Challenge.Challenge, Account: "acme", Label: ep.Label, AuthCert: u.ldevid.Raw}
		if b.SPKI, err = x509.MarshalPKIXPublicKey(spkiOf); err != nil {
			t.Fatal(err)
		}
		extra := b.ExtraData()
		certify, err := u.Certify(inTPM, extra[:])
		if err != nil {
			t.Fatal(err)
		}
		csr, err := evidence.CreateCSR(pkix.Name{}, mine, &evidence.Bundle{Certify: &certify, Challenge: b.Challenge})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Enroll, Client: provider.Client{Peer: u.ldevid}, CSR: csr})
		if cradle.KindOf(err) != cradle.Forbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.check()
}

// SPIRE 1.14.6: a join token could be used twice, since nobody looked whether its deletion had deleted anything. Here
// a challenge is spent by many requests at the same moment, at two replicas.
func TestFailureSPIREJoinTokenTwice(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		o := r.order(nil)
		u := r.active(o, r.station(o), "SN0001")
		replicas := []*provider.Provider{r.p, r.replica(r.db)}
		ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", cradle.Operational))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			n, err := r.p.Nonce(t.Context(), ep, u.ldevid, []byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			requests := make([]provider.Request, 8)
			for i := range requests {
				k, err := u.NewOperational()
				if err != nil {
					t.Fatal(err)
				}
				b := evidence.Binding{Challenge: n.Challenge.Challenge, Account: "acme", Label: ep.Label, AuthCert: u.ldevid.Raw}
				if b.SPKI, err = x509.MarshalPKIXPublicKey(k.Public()); err != nil {
					t.Fatal(err)
				}
				extra := b.ExtraData()
				certify, err := u.Certify(k, extra[:])
				if err != nil {
					t.Fatal(err)
				}
				csr, err := evidence.CreateCSR(pkix.Name{}, k, &evidence.Bundle{Certify: &certify, Challenge: b.Challenge})
				if err != nil {
					t.Fatal(err)
				}
				requests[i] = provider.Request{Endpoint: ep, Operation: provider.Enroll, Client: provider.Client{Peer: u.ldevid}, CSR: csr}
			}
			before, err := r.p.Certificates(t.Context(), "acme", cradle.DeviceID(u.op.Subject.CommonName))
			if err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			won := make([]error, len(requests))
			for i := range requests {
				all.Go(func() { _, won[i] = replicas[i%2].Enroll(t.Context(), requests[i]) })
			}
			all.Wait()
			issued := 0
			for _, err := range won {
				if err == nil {
					issued++
				} else if k := cradle.KindOf(err); k != cradle.Conflict && k != cradle.Busy {
					t.Errorf("a loser is told %v: %v", k, err)
				}
			}
			after, err := r.p.Certificates(t.Context(), "acme", cradle.DeviceID(u.op.Subject.CommonName))
			if err != nil {
				t.Fatal(err)
			}
			if issued != 1 || len(after) != len(before)+1 {
				t.Errorf("%d of %d requests with one challenge were served, %d certificates are stored", issued, len(requests), len(after)-len(before))
			}
		}
		r.check()
	})
}

// SPIRE 1.15.1, azure_imds: the chain of one certificate was verified, and another one had signed. Here a
// stranger's certificate comes with genuine ones beside it, in every order, as endorsement certificate and as client certificate.
func TestFailureSPIREOtherCertificateVerified(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	station := r.station(o)
	genuine := r.unit(o, "SN0001")
	impostor, err := softkey.NewMaker("test maker") // the trusted maker's name, another key
	if err != nil {
		t.Fatal(err)
	}
	fake, err := impostor.NewDevice("")
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][][]byte{
		"alone": nil, "with the genuine root": {r.maker.Cert.Raw}, "with both roots": {impostor.Cert.Raw, r.maker.Cert.Raw}, "with a genuine endorsement": {genuine.EKCert, r.maker.Cert.Raw},
	} {
		u := &unit{Device: fake, order: o, serial: "SN0002"}
		claim := u.claim()
		claim.EKChain = chain
		_, err := r.enroll(u, attempt{profile: cradle.IAK, peer: station, key: u.IAK, claim: claim})
		if err == nil || cradle.KindOf(err) != cradle.Forbidden {
			t.Errorf("endorsement %s: %v", name, err)
		}
	}
	// As client certificate: a CA is trusted, a namesake of it signed the leaf.
	trusted, stranger := newOtherCA(t), newOtherCA(t)
	manifest, err := provider.ParseManifest("gw-1\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.LDevID, Certs: [][]byte{trusted.root.Raw}}, manifest); err != nil {
		t.Fatal(err)
	}
	leaf, real := stranger.idevid(t, "gw-1", ""), trusted.idevid(t, "gw-1", "")
	for name, chain := range map[string][]*x509.Certificate{
		"its own chain": {leaf, stranger.sub, stranger.root}, "the genuine chain behind": {leaf, trusted.sub, trusted.root}, "a genuine leaf first": {real, trusted.sub, leaf, stranger.sub},
		"both": {leaf, stranger.sub, trusted.sub, trusted.root, real},
	} {
		_, err := r.plain(cradle.LDevID, provider.Enroll, provider.Client{Peer: leaf, Chain: chain}, plainCSR(t, "gw-1", newKey(t), false))
		if cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("client certificate with %s: %v", name, err)
		}
	}
	if _, err := r.plain(cradle.LDevID, provider.Enroll, byCert(real, trusted.sub), plainCSR(t, "gw-1", newKey(t), false)); err != nil {
		t.Errorf("the genuine one: %v", err)
	}
	r.check()
}

// step-ca 0.29.0 (#2491): some kinds of requests of a protocol issued without asking for the authorization that
// its usual ones need. Here everything that issues is called at every label by those who may not.
func TestFailureStepCAOtherOperations(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	station := r.station(o)
	u := r.active(o, station, "SN0001")
	revoked := r.active(o, station, "SN0002")
	if _, err := r.p.ChangeState(t.Context(), "acme", cradle.DeviceID(revoked.op.Subject.CommonName), provider.Revoke, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	stranger := newOtherCA(t)
	clients := map[string]provider.Client{
		"nobody": {}, "a stranger": byCert(stranger.idevid(t, string(u.op.Subject.CommonName), ""), stranger.sub),
		"an issuing CA's own certificate": {Peer: r.root(cradle.Evaluation)}, "wrong password": {Basic: &provider.Basic{User: "admin", Password: "admin"}},
		"revoked": byCert(revoked.op), "revoked, its LDevID": byCert(revoked.ldevid), "revoked, its IDevID": byCert(revoked.idevid),
	}
	certificates := func() int { return bytes.Count(r.export(), []byte("\n{\"certificate\":")) }
	before := certificates()
	issue := map[string]func(ep provider.Endpoint, c provider.Client, k *ecdsa.PrivateKey) error{
		"simpleenroll": func(ep provider.Endpoint, c provider.Client, k *ecdsa.PrivateKey) error {
			_, err := r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Enroll, Client: c, CSR: plainCSR(t, u.op.Subject.CommonName, k, false)})
			return err
		},
		"simplereenroll": func(ep provider.Endpoint, c provider.Client, k *ecdsa.PrivateKey) error {
			_, err := r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Reenroll, Client: c, CSR: plainCSR(t, u.op.Subject.CommonName, k, false)})
			return err
		},
		"an operation that there is not": func(ep provider.Endpoint, c provider.Client, k *ecdsa.PrivateKey) error {
			_, err := r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: "", Client: c, CSR: plainCSR(t, u.op.Subject.CommonName, k, false)})
			return err
		},
		"serverkeygen": func(ep provider.Endpoint, c provider.Client, k *ecdsa.PrivateKey) error {
			_, err := r.p.GenerateKey(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Enroll, Client: c, CSR: plainCSR(t, u.op.Subject.CommonName, k, false)}, 0)
			return err
		},
		"tpmenroll": func(ep provider.Endpoint, c provider.Client, k *ecdsa.PrivateKey) error {
			_, err := r.p.TPMEnroll(t.Context(), provider.TPMRequest{Endpoint: ep, Client: c, CSR: plainCSR(t, u.op.Subject.CommonName, k, false)})
			return err
		},
	}
	for _, profile := range []cradle.Profile{cradle.IDevID, cradle.IAK, cradle.LDevID, cradle.Operational} {
		ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", profile))
		if err != nil {
			t.Fatal(err)
		}
		for op, call := range issue {
			for who, c := range clients {
				err := call(ep, c, newKey(t))
				switch cradle.KindOf(err) {
				case cradle.Unauthorized, cradle.Forbidden, cradle.NotFound, cradle.Invalid, cradle.Busy:
				default:
					t.Errorf("%s at %s by %s: %v", op, profile, who, err)
				}
			}
		}
	}
	if n := certificates(); n != before || before == 0 {
		t.Errorf("%d certificates before, %d after", before, n)
	}
	r.check()
}
