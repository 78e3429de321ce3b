package provisioning_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningtest"
)

// issuer is a credential provider with one CA, which answers the same request with the same certificate.
type issuer struct {
	ca *provisioningtest.CA

	mu     sync.Mutex
	asked  []string
	fail   error
	before func()
	had    map[string][][]byte
}

func newIssuer(t *testing.T) *issuer {
	return &issuer{ca: provisioningtest.NewCA(t, "acme", "acme registration"), had: map[string][][]byte{}}
}

func (i *issuer) IssueByCSR(_ context.Context, account cradle.AccountID, policy string, id cradle.DeviceID, csr []byte) ([][]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, string(account)+"/"+policy+"/"+string(id))
	if i.before != nil {
		i.before()
	}
	if i.fail != nil {
		return nil, i.fail
	}
	if had := i.had[string(csr)]; had != nil {
		return had, nil
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	leaf := i.ca.LeafFor(string(id), req.PublicKey.(*ecdsa.PublicKey))
	i.had[string(csr)] = [][]byte{leaf.Raw, i.ca.Cert.Raw}
	return i.had[string(csr)], nil
}

func (i *issuer) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail = err
}

func (i *issuer) calls() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string{}, i.asked...)
}

func csrFor(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// policied is a service with an issuer and a group with a credential policy.
func (w *world) policied(i *issuer, policy string) *replica {
	w.t.Helper()
	r := w.start(true, func(c *provisioning.Config) { c.Issuer = i })
	r.policy(w, policy)
	return r
}

func (r *replica) policy(w *world, name string) {
	w.t.Helper()
	if _, err := r.replaceGroup(provisioning.GroupRequest{ID: "acme-devices", Attestation: provisioning.SignedBy(w.ca.Cert, nil),
		Terms: provisioning.Terms{Enabled: true, CredentialPolicy: name}}); err != nil {
		w.t.Fatal(err)
	}
}

func (r *replica) ask(id string, leaf *x509.Certificate, csr []byte) (provisioning.Registration, *provisioning.Caller, error) {
	c, err := r.Authenticate(r.t.Context(), shown(id, leaf))
	if err != nil {
		return provisioning.Registration{}, nil, err
	}
	reg, err := r.Register(r.t.Context(), c, provisioning.Ask{CSR: csr})
	return reg, c, err
}

func (r *replica) issued(id string, leaf *x509.Certificate, csr []byte) provisioning.Registration {
	r.t.Helper()
	reg, c, err := r.ask(id, leaf, csr)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.await(c, reg.Operation)
}

// TestIssue: a CSR in the registration gets a certificate under the enrolment's policy; the hub's entry knows that one, by
// the two-slot rule.
func TestIssue(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w, i := newWorld(t, url), newIssuer(t)
		r := w.policied(i, "operational")
		boot := w.ca.Leaf("dev-1", nil)
		csr := csrFor(t, "DEV-1")
		reg := r.issued("dev-1", boot.Leaf, csr)
		chain := reg.IssuedChain()
		if reg.Status != provisioning.Assigned || len(chain) != 2 || chain[0].Subject.CommonName != "dev-1" || !chain[1].Equal(i.ca.Cert) {
			t.Fatalf("got %+v with %d certificates", reg, len(chain))
		}
		if got := i.calls(); len(got) != 1 || got[0] != "acme/operational/dev-1" {
			t.Errorf("asked for %v", got)
		}
		if got := slots(w.hub.Device("dev-1")); got != [2]string{provisioning.Thumbprint(sha256.Sum256(chain[0].Raw)).String(), ""} {
			t.Errorf("slots %v", got)
		}
		// The same again, and another one: the next slot.
		if again := r.issued("dev-1", boot.Leaf, csr).IssuedChain(); !again[0].Equal(chain[0]) {
			t.Error("the same CSR got another certificate")
		}
		next := r.issued("dev-1", boot.Leaf, csrFor(t, "dev-1")).IssuedChain()
		if got := slots(w.hub.Device("dev-1")); got[1] != provisioning.Thumbprint(sha256.Sum256(next[0].Raw)).String() {
			t.Errorf("after the second: slots %v", got)
		}
		// Without a CSR the device goes on with what it has.
		reg = r.issued("dev-1", boot.Leaf, nil)
		if reg.Status != provisioning.Assigned || len(reg.IssuedChain()) != 0 || len(i.calls()) != 3 {
			t.Errorf("without a CSR: %+v, asked %v", reg, i.calls())
		}
		// So it does where the enrolment names no policy.
		r.policy(w, "")
		if reg = r.issued("dev-1", boot.Leaf, csrFor(t, "dev-1")); reg.Status != provisioning.Assigned || len(reg.IssuedChain()) != 0 || len(i.calls()) != 3 {
			t.Errorf("without a policy: %+v", reg)
		}
		// A policy of another account is named with it, and what that account says of the device counts from then on.
		r.policy(w, "other-edge")
		r.issued("dev-1", boot.Leaf, csrFor(t, "dev-1"))
		if got := i.calls(); got[len(got)-1] != "other/edge/dev-1" {
			t.Errorf("asked for %v", got)
		}
		r.issued("dev-1", boot.Leaf, nil)
		w.feed.Set("other", "dev-1", cradle.Revoked)
		r.OnBlock("other", "dev-1", cradle.Revoked)
		testenv.Eventually(t, "the hub's entry is disabled", func() bool { return w.hub.Device("dev-1").Status == "disabled" })
		if _, _, err := r.ask("dev-1", boot.Leaf, csrFor(t, "dev-1")); cradle.KindOf(err) != cradle.Unauthorized || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("revoked: %v", err)
		}
	})
}

// TestIssueRefused: what is refused at once, what fails, and what waits.
func TestIssueRefused(t *testing.T) {
	w, i := newWorld(t, t.TempDir()+"/p.db"), newIssuer(t)
	r := w.policied(i, "operational")
	boot := w.ca.Leaf("dev-1", nil)
	tampered := csrFor(t, "dev-1")
	tampered[len(tampered)-1] ^= 1
	for _, c := range []struct {
		name string
		csr  []byte
		part string
	}{
		{"for another name", csrFor(t, "dev-2"), "common name"},
		{"without a name", csrFor(t, ""), "common name"},
		{"not signed by its key", tampered, "not signed"},
		{"no CSR", []byte("hello"), "does not parse"},
		{"armoured", []byte("-----BEGIN CERTIFICATE REQUEST-----"), "does not parse"},
		{"too long", make([]byte, provisioning.MaxCSR+1), "at most"},
	} {
		if _, _, err := r.ask("dev-1", boot.Leaf, c.csr); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if len(i.calls()) != 0 || w.hub.Device("dev-1") != nil {
		t.Error("a refused registration was heard of")
	}
	// An individual enrolment that gives the device another name at its hub.
	renamed := w.ca.Leaf("dev-9", nil)
	if _, err := r.PutEnrollment(t.Context(), provisioning.EnrollmentRequest{ID: "dev-9", Device: "lamp-9", Attestation: provisioning.Attestation{Kind: provisioning.X509Client, Primary: renamed.Leaf.Raw},
		Terms: provisioning.Terms{Enabled: true, CredentialPolicy: "acme-operational"}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.ask("dev-9", renamed.Leaf, csrFor(t, "dev-9")); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), "lamp-9") {
		t.Errorf("another name at the hub: %v", err)
	}
	i.set(cradle.Errorf(cradle.Forbidden, "the name belongs to a device that did not come by this credential"))
	if reg := r.issued("dev-1", boot.Leaf, csrFor(t, "dev-1")); reg.Status != provisioning.Failed || !strings.Contains(reg.ErrorMessage, "did not come") || w.hub.Device("dev-1") != nil {
		t.Errorf("refused by the provider: %+v", reg)
	}
	for _, wait := range []error{cradle.Errorf(cradle.Busy, "the provider is away"), cradle.Errorf(cradle.Pending, "an operator has to approve").After(time.Millisecond)} {
		i.set(wait)
		before := len(i.calls())
		reg, c, err := r.ask("dev-1", boot.Leaf, csrFor(t, "dev-1"))
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "the provider was asked", func() bool { return len(i.calls()) > before })
		if got, err := r.Operation(t.Context(), c, reg.Operation, time.Millisecond); err != nil || got.Status != provisioning.Assigning {
			t.Errorf("%v: %+v, %v", wait, got, err)
		}
		if cradle.KindOf(wait) == cradle.Pending {
			break // it rests for some seconds
		}
		i.set(nil)
		if got := r.await(c, reg.Operation); got.Status != provisioning.Assigned || len(got.IssuedChain()) == 0 {
			t.Errorf("after %v: %+v", wait, got)
		}
	}
}

// TestIssueCrash: the process dies between the provider's answer and the hub; the next one asks again and gets the same
// certificate, so that none is in the world that nobody knows of.
func TestIssueCrash(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w, i := newWorld(t, url), newIssuer(t)
		r := w.policied(i, "operational")
		reached := make(chan struct{})
		var once sync.Once
		w.hub.Before(func(string, cradle.DeviceID) { once.Do(func() { close(reached); r.store.Close() }) })
		boot := w.ca.Leaf("dev-1", nil)
		csr := csrFor(t, "dev-1")
		reg, _, err := r.ask("dev-1", boot.Leaf, csr)
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		r.stop()
		w.hub.Before(nil)
		r = w.start(true, func(c *provisioning.Config) { c.Issuer = i })
		c, err := r.Authenticate(t.Context(), shown("dev-1", boot.Leaf))
		if err != nil {
			t.Fatal(err)
		}
		got := r.await(c, reg.Operation)
		if got.Status != provisioning.Assigned || !bytes.Equal(got.IssuedChain()[0].Raw, i.had[string(csr)][0]) {
			t.Errorf("after the restart: %+v", got)
		}
		if n := len(i.calls()); n != 2 || len(i.had) != 1 {
			t.Errorf("asked %d times for %d certificates", n, len(i.had))
		}
	})
}

// TestIssueByOtherProofs: a device that proves itself by a symmetric key gets a certificate too; its hub entry then knows
// it by that, and by its key again when it registers without a CSR.
func TestIssueByOtherProofs(t *testing.T) {
	w, i := newWorld(t, t.TempDir()+"/p.db"), newIssuer(t)
	r := w.start(true, func(c *provisioning.Config) { c.Issuer = i })
	key := bytes.Repeat([]byte{7}, 32)
	if _, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: "keys", Attestation: provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: key, SecondaryKey: bytes.Repeat([]byte{8}, 32)},
		Terms: provisioning.Terms{Enabled: true, CredentialPolicy: "acme-operational"}}); err != nil {
		t.Fatal(err)
	}
	arrive := func(csr []byte) provisioning.Registration {
		t.Helper()
		token := sas.Sign(r.Identity().IDScope+"/registrations/dev-1", "registration", dps.DeviceKey(key, "dev-1"), time.Now().Add(time.Hour))
		c, err := r.Authenticate(t.Context(), provisioning.Credentials{RegistrationID: "dev-1", Token: token})
		if err != nil {
			t.Fatal(err)
		}
		reg, err := r.Register(t.Context(), c, provisioning.Ask{CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		return r.await(c, reg.Operation)
	}
	if reg := arrive(nil); reg.Status != provisioning.Assigned || w.hub.Device("dev-1").Authentication.Type != iothub.SAS {
		t.Errorf("by its key: %+v", reg)
	}
	reg := arrive(csrFor(t, "dev-1"))
	if got := w.hub.Device("dev-1"); reg.Status != provisioning.Assigned || got.Authentication.Type != iothub.SelfSigned || got.CredentialPolicy == nil || *got.CredentialPolicy != "acme-operational" ||
		slots(got) != [2]string{provisioning.Thumbprint(sha256.Sum256(reg.IssuedChain()[0].Raw)).String(), ""} {
		t.Errorf("with a CSR: %+v, entry %+v", reg, got)
	}
	if got := i.calls(); len(got) != 1 || got[0] != "acme/operational/dev-1" {
		t.Errorf("asked for %v", got)
	}
	if arrive(nil); w.hub.Device("dev-1").Authentication.Type != iothub.SAS {
		t.Errorf("by its key again: %+v", w.hub.Device("dev-1"))
	}
	// What the policy's account says of it counts.
	w.feed.Set("acme", "dev-1", cradle.Revoked)
	r.OnBlock("acme", "dev-1", cradle.Revoked)
	testenv.Eventually(t, "the hub's entry is disabled", func() bool { return w.hub.Device("dev-1").Status == iothub.Disabled })
}

// stuck is an EST server that does not answer.
type stuck struct{ begun, ended atomic.Int32 }

func (s *stuck) IssueByCSR(ctx context.Context, _ cradle.AccountID, _ string, _ cradle.DeviceID, _ []byte) ([][]byte, error) {
	s.begun.Add(1)
	<-ctx.Done()
	s.ended.Add(1)
	return nil, ctx.Err()
}

// However many wait for a certificate that does not come, the others are told to their hub.
func TestIssuerHangs(t *testing.T) {
	w, est := newWorld(t, t.TempDir()+"/p.db"), new(stuck)
	r := w.start(true, func(c *provisioning.Config) { c.Issuer = est })
	r.policy(w, "operational")
	for i := range 70 { // more than there are workers
		id := fmt.Sprintf("waits-%d", i)
		if _, _, err := r.ask(id, w.ca.Leaf(id, nil).Leaf, csrFor(t, id)); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "certificates are asked for", func() bool { return est.begun.Load() > 8 })
	if reg := r.arrive("dev-1", w.ca.Leaf("dev-1", nil).Leaf); reg.Status != provisioning.Assigned {
		t.Errorf("a device that asks for no certificate: %+v", reg)
	}
	if n := est.ended.Load(); n > 0 {
		t.Errorf("it was assigned after %d of the others had given up", n)
	}
}
