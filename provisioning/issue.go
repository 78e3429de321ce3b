package provisioning

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Issuer gets a certificate for a device's CSR from the credential provider. policy is one of the account's; the chain is
// DER, the leaf first, the root last. The same request within a few minutes gets the same certificate, so that one whose
// answer was lost is asked for again. Pending: somebody has to approve, Busy: the provider is away; both are tried again.
// Every other refusal is for good.
type Issuer interface {
	IssueByCSR(ctx context.Context, account cradle.AccountID, policy string, id cradle.DeviceID, csr []byte) (chain [][]byte, err error)
}

// Issuance is the certificate that a device asked for in its newest register call. It is comparable, as a registration is.
type Issuance struct {
	Account cradle.AccountID // whose policy it is, or was when one was asked for last: what its status feed says counts
	Policy  string           // under which it is issued; empty: none was asked for
	CSR     string           // DER
	Chain   string           // DER certificates one behind the other, the leaf first; empty: not issued yet
}

// waits reports whether the certificate has to be asked for.
func (i *Issuance) waits() bool { return i.Policy != "" && i.Chain == "" }

// IssuedChain returns the certificates that were issued in the newest operation, the leaf first; none when the device asked
// for none, or has to wait.
func (r Registration) IssuedChain() []*x509.Certificate {
	certs, err := x509.ParseCertificates([]byte(r.Issuance.Chain))
	if err != nil {
		return nil // they were parsed before they were stored: somebody changed the store
	}
	return certs
}

// entry is the registration as its hub is told of it: of a device that got a certificate, this one counts, and not what it
// showed to get it.
func (r Registration) entry() Registration {
	chain := r.IssuedChain()
	if len(chain) == 0 {
		return r
	}
	leaf := chain[0]
	r.Thumbprint, r.NotBefore, r.Newest = sha256.Sum256(leaf.Raw), leaf.NotBefore, time.Time{}
	r.Primary, r.Secondary = "", ""
	return r
}

// MaxCSR bounds a certificate request in bytes.
const MaxCSR = 8 << 10

// checkCSR refuses a certificate request that cannot lead to a certificate for this device: one that does not parse, is not
// signed by its key, or is for another name.
func checkCSR(id RegistrationID, der []byte) error {
	const hint = "send a PKCS#10 request in base64, without PEM armour, whose common name is the registration id"
	if len(der) > MaxCSR {
		return cradle.Errorf(cradle.Invalid, "the CSR has %d bytes, at most %d", len(der), MaxCSR)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "the CSR does not parse: %v", err).WithHint(hint)
	}
	if err := req.CheckSignature(); err != nil {
		return cradle.Errorf(cradle.Invalid, "the CSR is not signed by its key: %v", err).WithHint(hint)
	}
	if !strings.EqualFold(req.Subject.CommonName, string(id)) {
		return cradle.Errorf(cradle.Invalid, "the CSR's common name is %.70q, the registration id is %q", req.Subject.CommonName, id).WithHint(hint)
	}
	return nil
}

// credentialPolicy reads the name of a policy: a profile of the account that the device's proof belongs to, or
// "<account>-<profile>", as where it belongs to none (symmetric keys, a CA from elsewhere). That the service may ask under
// the policy is for the account to say, at the provider.
func credentialPolicy(name string, own cradle.AccountID) (account cradle.AccountID, policy string, err error) {
	account, policy = own, name
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		account, policy = cradle.AccountID(name[:i]), name[i+1:]
	}
	if account == "" {
		return "", "", cradle.Errorf(cradle.Invalid, "the enrolment's credential policy %.80q names no account", name).
			WithHint("write it <account>-<profile>")
	}
	if err = cradle.CheckID("account", string(account)); err == nil {
		err = cradle.CheckID("credential policy", policy)
	}
	return account, policy, err
}

// issuance is what a register call asks for under an enrolment's terms: nothing without a CSR, and nothing where the
// enrolment names no policy; then the device goes on with what it has.
func (a *admission) issuance(by Enrolled, account cradle.AccountID, before Issuance) (Issuance, error) {
	t := by.Terms()
	if len(a.ask.CSR) == 0 || t.CredentialPolicy == "" || !a.issues {
		return Issuance{Account: before.Account}, nil
	}
	if err := checkCSR(a.by.ID, a.ask.CSR); err != nil {
		return Issuance{}, err
	}
	if e := by.Individual; e != nil && e.Device != "" && e.Device != cradle.DeviceID(a.by.ID) {
		return Issuance{}, cradle.Errorf(cradle.Invalid, "the enrolment names the device %q at its hub: a certificate for registration id %q would not let it in", e.Device, a.by.ID).
			WithHint("leave csr out, or the enrolment's device id")
	}
	account, policy, err := credentialPolicy(t.CredentialPolicy, account)
	return Issuance{Account: account, Policy: policy, CSR: string(a.ask.CSR)}, err
}

// sameWish reports whether two register calls ask for the same certificate.
func sameWish(a, b Issuance) bool {
	return a.Account == b.Account && a.Policy == b.Policy && a.CSR == b.CSR
}

// approvalPause is how long a registration rests that waits for somebody's approval, where the provider says nothing.
const approvalPause = 5 * time.Second

// issue gets the certificate that a registration waits for. It is called with the registration and its delivery on record,
// so that after a crash it is asked for again.
func (s *Service) issue(ctx context.Context, r *Registration) (Issuance, error) {
	out := r.Issuance
	chain, err := s.issuer.IssueByCSR(ctx, out.Account, out.Policy, cradle.DeviceID(r.ID), []byte(out.CSR))
	if err != nil {
		return out, err
	}
	for _, der := range chain {
		if _, err := x509.ParseCertificate(der); err != nil {
			return out, err
		}
		out.Chain += string(der)
	}
	if len(chain) == 0 {
		return out, cradle.Errorf(cradle.Internal, "the provider answered without a certificate")
	}
	return out, nil
}

// issuedThen puts an issued certificate into the registration that a delivery settles.
func issuedThen(i Issuance, done Settled) Settled {
	return func(r Registration) (Registration, []string) {
		r.Issuance = i
		return done(r)
	}
}

// unissued ends one try of a delivery whose certificate was not issued: the registration waits, or has failed. The hub was
// not told.
func (o *outbox) unissued(ctx context.Context, d Delivery, err error) *Delivery {
	s, r := o.s, &d.Registration
	switch cradle.KindOf(err) {
	case cradle.Pending:
		o.postpone(ctx, d, s.now().Add(max(cradle.RetryAfter(err), approvalPause)), err.Error())
		return nil
	case cradle.Busy, cradle.Internal:
		s.log.Warn("no certificate is issued yet", "registration", r.ID, "policy", r.Policy, "err", err)
		o.postpone(ctx, d, s.now().Add(max(cradle.RetryAfter(err), backoff(d.Attempts))), err.Error())
		return nil
	}
	s.log.Warn("no certificate is issued: registration failed", "registration", r.ID, "account", r.Issuance.Account, "policy", r.Policy, "err", err)
	settled, again, serr := s.store.Settle(ctx, d, o.lease(), delivered(s.time(), err))
	if serr != nil && ctx.Err() == nil {
		s.log.Warn("delivery is not settled; it is made again", "registration", r.ID, "hub", d.Hub, "err", serr)
	}
	s.waiters.wake(r.ID, settled)
	return again
}

// credentialPolicy tells a hub under which policy it renews the device's certificate; it reports whether that is news. Of a
// device without one nothing is said.
func (r *Registration) credentialPolicy(d *iothub.Device) bool {
	if r.Policy == "" {
		return false
	}
	name := cradle.Label(r.Issuance.Account, cradle.Profile(r.Policy))
	if d.CredentialPolicy != nil && *d.CredentialPolicy == name {
		return false
	}
	d.CredentialPolicy = &name
	return true
}
