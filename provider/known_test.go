package provider_test

import (
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider"
)

// Keylime before its fix sent the same challenge to every agent and at every time, so a recorded quote passed for ever.
func TestKnown_Keylime_CVE_2026_6420_ConstantChallenge(t *testing.T) {
	r := newRig(t, filepath.Join(t.TempDir(), "p.db"))
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	ep, err := r.p.Endpoint(t.Context(), cradle.Label("acme", cradle.Operational))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 200 {
		n, err := r.p.Nonce(t.Context(), ep, u.op, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{n.Nonce, n.Challenge.Challenge} {
			if len(b) < 32 || seen[string(b)] {
				t.Fatalf("a challenge of %d bytes, given before: %v", len(b), seen[string(b)])
			}
			seen[string(b)] = true
		}
	}
	// A statement over an earlier challenge does not pass with a later one, nor does the earlier challenge come back
	// for another key once it was spent.
	k, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	ask := attempt{profile: cradle.Operational, operation: provider.Reenroll, peer: u.op, key: k, subject: u.op.Subject}
	first, err := r.request(r.p, u, ask)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := evidence.ParseCSR(first.CSR)
	if err != nil {
		t.Fatal(err)
	}
	later, err := r.p.Nonce(t.Context(), ep, u.op, nil)
	if err != nil {
		t.Fatal(err)
	}
	replayed, err := evidence.CreateCSR(u.op.Subject, k, &evidence.Bundle{Certify: csr.Bundle.Certify, Challenge: later.Challenge.Challenge})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.p.Enroll(t.Context(), provider.Request{Endpoint: ep, Operation: provider.Reenroll, Client: provider.Client{Peer: u.op}, CSR: replayed})
	refused(t, err, cradle.Forbidden, "extraData is not the digest of this challenge")
	if _, err := r.p.Enroll(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	other, err := u.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	ask.key, ask.bendCSR = other, func(b *evidence.Binding) { b.Challenge = csr.Bundle.Challenge }
	spent, err := r.request(r.p, u, ask)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.p.Enroll(t.Context(), spent)
	refused(t, err, cradle.Conflict, "challenge")
	r.check()
}
