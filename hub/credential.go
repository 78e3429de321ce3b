package hub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Issuer gets a certificate for a device's CSR from the credential provider, under a policy of an account. The chain is
// DER, the leaf first, the root last. The same request within a few minutes gets the same certificate. Pending: somebody
// has to approve, Busy: the provider is away; every other refusal is for good.
type Issuer interface {
	IssueByCSR(ctx context.Context, account cradle.AccountID, policy string, id cradle.DeviceID, csr []byte) (chain [][]byte, err error)
}

// CredentialState is where a device's request for a certificate is.
type CredentialState string

// The states.
const (
	CredentialActive  CredentialState = "active"
	CredentialIssued  CredentialState = "issued"
	CredentialRefused CredentialState = "refused"
)

// CredentialRequest is a device's newest wish for a certificate, and what became of it.
type CredentialRequest struct {
	ID          string // the device's own
	Correlation string
	CSR         []byte // DER
	State       CredentialState
	Chain       []byte // DER certificates one behind the other, the leaf first; when issued
	Code        int    // of iothub's, when refused
	Message     string
	Told        bool // the answer was sent
	Asked       time.Time
	Expires     time.Time // then it counts no more
	Begun       time.Time // when the device's present hour began,
	Count       int64     // and how many certificates it asked for in it
}

// Credentials keeps the newest request of each device; it goes with the device.
type Credentials interface {
	// CredentialRequest returns a device's request; nil when there is none.
	CredentialRequest(ctx context.Context, hub Name, id cradle.DeviceID) (*CredentialRequest, error)
	// ChangeCredentialRequest stores what change makes of the present request (nil: there is none), and returns it; the same
	// or nil stores nothing. Changes of one device follow each other; change may run more than once. NotFound: no such device.
	ChangeCredentialRequest(ctx context.Context, hub Name, id cradle.DeviceID, change func(present *CredentialRequest) (*CredentialRequest, error)) (*CredentialRequest, error)
}

const (
	credentialLife = time.Hour // of a request and its answer
	credentialRate = 20        // requests of a device in an hour
	pendingPause   = 10 * time.Second
	issueTimeout   = 30 * time.Second
)

// CredentialError is a refusal of a request for a certificate.
type CredentialError struct {
	Code       int // of iothub's
	Message    string
	RetryAfter time.Duration
	Request    *CredentialRequest // that it is about, or nil
}

func (e *CredentialError) Error() string { return fmt.Sprintf("%d: %s", e.Code, e.Message) }

// Unwrap gives it a kind.
func (e *CredentialError) Unwrap() error {
	kind := cradle.Forbidden
	switch e.Code / 1000 {
	case 400:
		kind = cradle.Invalid
	case 409, 412:
		kind = cradle.Conflict
	case 429, 503:
		kind = cradle.Busy
	}
	return &cradle.Error{Kind: kind, Detail: e.Message, RetryAfter: e.RetryAfter}
}

func refuseCredential(code int, format string, args ...any) *CredentialError {
	return &CredentialError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// setPolicy takes what a registry client sent; nil is nothing.
func (d *Device) setPolicy(name *string) error {
	if name == nil || *name == "" {
		return nil
	}
	d.Policy = *name
	_, _, err := d.policy()
	return err
}

// policy splits the device's policy.
func (d *Device) policy() (cradle.AccountID, string, error) {
	i := strings.LastIndexByte(d.Policy, '-')
	if i <= 0 || cradle.CheckID("account", d.Policy[:i]) != nil || cradle.CheckID("policy", d.Policy[i+1:]) != nil {
		return "", "", cradle.Errorf(cradle.Invalid, "credential policy %.80q is not <account>-<profile>", d.Policy)
	}
	return cradle.AccountID(d.Policy[:i]), d.Policy[i+1:], nil
}

// nextCredential decides on a request: it is new, or the present one again, which then goes on or is answered again.
func nextCredential(now time.Time, present *CredentialRequest, id string, csr []byte, replace string) (*CredentialRequest, error) {
	if present != nil && !now.Before(present.Expires) {
		hour := *present
		present = nil
		if now.Sub(hour.Begun) < time.Hour {
			present = &CredentialRequest{Begun: hour.Begun, Count: hour.Count}
		}
	}
	active := present != nil && present.State == CredentialActive
	switch {
	case present != nil && present.ID == id && string(present.CSR) == string(csr):
		return present, nil
	case present != nil && present.ID == id:
		return nil, refuseCredential(iothub.CredentialBadCSR, "request %s was sent before with another CSR: a new CSR has a new request id", id)
	case replace != "" && replace != iothub.AnyRequest && (!active || present.ID != replace):
		return nil, &CredentialError{Code: iothub.CredentialNothing, Message: "there is no active request " + replace + " to replace", Request: &CredentialRequest{ID: replace}}
	case active && replace == "":
		return nil, &CredentialError{Code: iothub.CredentialActive, Message: "request " + present.ID + " is active: wait for its end, or replace it", Request: present}
	}
	next := &CredentialRequest{ID: id, Correlation: rand.Text(), CSR: csr, State: CredentialActive, Asked: now, Expires: now.Add(credentialLife), Begun: now, Count: 1}
	if present != nil && now.Sub(present.Begun) < time.Hour {
		next.Begun, next.Count = present.Begun, present.Count+1
	}
	if next.Count > credentialRate {
		return nil, &CredentialError{Code: iothub.CredentialThrottled, Message: fmt.Sprintf("more than %d certificates in an hour", credentialRate), RetryAfter: next.Begun.Add(time.Hour).Sub(now)}
	}
	return next, nil
}

// checkCSR refuses what cannot lead to a certificate for the device.
func checkCSR(id cradle.DeviceID, der []byte) error {
	req, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return refuseCredential(iothub.CredentialBadCSR, "the CSR did not pass verification: %v", err)
	}
	if req.Subject.CommonName != string(id) {
		return refuseCredential(iothub.CredentialBadCSR, "the CSR's common name is %.70q, not the device id", req.Subject.CommonName)
	}
	return nil
}

// AskCredential puts a request for a certificate on record, or finds the one that the device sent before. Refusals
// are *CredentialError; another error means that the store does not answer.
func (s *Session) AskCredential(ctx context.Context, id string, q *iothub.CredentialRequest) (*CredentialRequest, error) {
	h := s.hub
	if q.ID != s.key.device || s.key.module != "" {
		return nil, refuseCredential(iothub.CredentialBadRequest, "id is %.100q, not the device that is connected", q.ID)
	}
	if err := checkCSR(q.ID, q.CSR); err != nil {
		return nil, err
	}
	if _, _, err := s.mayRenew(ctx); err != nil {
		return nil, err
	}
	now := h.now()
	r, err := h.store.ChangeCredentialRequest(ctx, s.key.hub, q.ID, func(present *CredentialRequest) (*CredentialRequest, error) {
		return nextCredential(now, present, id, q.CSR, q.Replace)
	})
	return r, h.credentialError("storing a request for a certificate", err)
}

func (h *Hub) credentialError(what string, err error) error {
	var refused *CredentialError
	if err == nil || errors.As(err, &refused) {
		return err
	}
	return h.storeError(what, err)
}

// proof is the certificate that the session began with, if it was the registry's: its account and SHA-256. (What a CA that the
// hub trusts writes into a certificate says nothing about an account.)
func (s *Session) proof() (account cradle.AccountID, sum [32]byte, byCertificate bool) {
	return s.grant.account, s.grant.sum, s.grant.slot != 0
}

// mayRenew returns the policy under which this very session may ask: it has shown a certificate of the policy's account, and
// nobody blocks it.
func (s *Session) mayRenew(ctx context.Context) (cradle.AccountID, string, error) {
	h := s.hub
	d, err := h.store.Device(ctx, s.key.hub, s.key.device)
	if err != nil {
		return "", "", h.storeError("reading a device", err)
	}
	if h.issuer == nil || d.Policy == "" {
		return "", "", refuseCredential(iothub.CredentialForbidden, "this device has no credential policy: its certificate is not renewed here")
	}
	account, policy, err := d.policy()
	of, sum, byCertificate := s.proof()
	switch {
	case err != nil:
		return "", "", refuseCredential(iothub.CredentialForbidden, "%v", err)
	case !byCertificate:
		return "", "", refuseCredential(iothub.CredentialForbidden, "a certificate is renewed over a connection that shows it, not one with a token")
	case of != account:
		return "", "", refuseCredential(iothub.CredentialForbidden, "the certificate of this connection is not of the policy's account")
	case d.Disabled:
		return "", "", refuseCredential(iothub.CredentialForbidden, "the device is disabled: %s", d.Reason)
	}
	if err := h.blocked(of, d.ID, sum); err != nil {
		if cradle.KindOf(err) == cradle.Busy {
			return "", "", &CredentialError{Code: iothub.CredentialBusy, Message: err.Error(), RetryAfter: pendingPause}
		}
		return "", "", refuseCredential(iothub.CredentialForbidden, "%v", err)
	}
	return account, policy, nil
}

// OpenCredential returns the session's request that has no answer yet, or whose answer was not sent; nil when there is none.
func (s *Session) OpenCredential(ctx context.Context) (*CredentialRequest, error) {
	r, err := s.hub.store.CredentialRequest(ctx, s.key.hub, s.key.device)
	if err != nil {
		return nil, s.hub.storeError("reading a request for a certificate", err)
	}
	if r == nil || r.Told || !s.hub.now().Before(r.Expires) {
		return nil, nil
	}
	return r, nil
}

// FinishCredential brings a request to its end: the certificate is issued and on record with the request, unless another one
// has replaced it; then it gets the free slot of the device's entry, whose first use promotes it. The device is to be told
// after that alone. It waits where somebody has to approve. If we stop before the
// end the request is active still, and the device that sends it again, or hears its answers again, has it taken up; the
// provider then answers with the same certificate. Errors: *CredentialError with a pause, and the request is as it was; ctx.
func (s *Session) FinishCredential(ctx context.Context, r *CredentialRequest) (*CredentialRequest, error) {
	for r.State == CredentialActive {
		done, err := s.issueCredential(ctx, r)
		if err == nil {
			r = done
			break
		}
		switch kind := cradle.KindOf(err); {
		case kind == cradle.Pending:
			pause := time.NewTimer(max(cradle.RetryAfter(err), pendingPause))
			select {
			case <-ctx.Done():
				pause.Stop()
				return nil, ctx.Err()
			case <-pause.C:
			}
			if !s.hub.now().Before(r.Expires) {
				return s.settle(ctx, r, func(n *CredentialRequest) {
					n.State, n.Code, n.Message = CredentialRefused, iothub.CredentialForbidden, "nobody approved it in time"
				})
			}
		case kind == cradle.Busy || kind == cradle.Internal:
			s.hub.log.Warn("no certificate is issued yet", "hub", s.key.hub, "device", s.key.device, "err", err)
			return nil, &CredentialError{Code: iothub.CredentialBusy, Message: "the credential provider does not answer", RetryAfter: max(cradle.RetryAfter(err), pendingPause), Request: r}
		default:
			s.hub.log.Warn("no certificate is issued", "hub", s.key.hub, "device", s.key.device, "err", err)
			code, detail := iothub.CredentialForbidden, err.Error()
			var refused *CredentialError
			if errors.As(err, &refused) {
				code, detail = refused.Code, refused.Message
			} else if d, hint := cradle.Public(err); hint != "" {
				detail = d + "; " + hint
			}
			return s.settle(ctx, r, func(n *CredentialRequest) { n.State, n.Code, n.Message = CredentialRefused, code, detail })
		}
	}
	if r.State == CredentialIssued && !r.Told { // perhaps we stopped here the last time
		chain := r.Certificates()
		if len(chain) == 0 {
			return nil, refuseCredential(iothub.CredentialServer, "the chain on record is damaged: send a new request")
		}
		if err := s.hub.nextSlot(context.WithoutCancel(ctx), s.key.hub, s.key.device, chain[0]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// issueCredential is one try.
func (s *Session) issueCredential(ctx context.Context, r *CredentialRequest) (*CredentialRequest, error) {
	account, policy, err := s.mayRenew(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issueTimeout)
	defer cancel()
	chain, err := s.hub.issuer.IssueByCSR(ctx, account, policy, s.key.device, r.CSR)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, cradle.Errorf(cradle.Internal, "the provider answered without a certificate")
	}
	return s.settle(ctx, r, func(n *CredentialRequest) {
		n.State, n.Chain = CredentialIssued, nil
		for _, der := range chain {
			n.Chain = append(n.Chain, der...)
		}
	})
}

// nextSlot puts a certificate into the second slot of an entry that knows its device by thumbprint: the first CONNECT
// with it promotes it, and until then the one before works.
func (h *Hub) nextSlot(ctx context.Context, hub Name, id cradle.DeviceID, der []byte) error {
	sum := sha256.Sum256(der)
	thumb := hex.EncodeToString(sum[:])
	for range casRetries {
		d, err := h.store.Device(ctx, hub, id)
		if err != nil {
			return h.storeError("reading a device", err)
		}
		if d.Auth.Type != iothub.SelfSigned || d.Primary == thumb || d.Secondary == thumb {
			return nil
		}
		was := d.ETag
		d.Secondary, d.ETag, d.Updated = thumb, rand.Text(), h.now()
		err = h.store.UpdateDevice(ctx, hub, d, was)
		if cradle.KindOf(err) == cradle.Conflict {
			continue
		}
		if err == nil {
			h.sessions.changed(key{hub: hub, device: id}, d)
			h.entryWritten(key{hub: hub, device: id})
			h.log.Info("certificate renewed", "hub", hub, "device", id, "thumbprint", thumb)
		}
		return err
	}
	return cradle.Errorf(cradle.Busy, "the registry entry of the device keeps changing")
}

// settle ends a request, unless another one has taken its place; then it is a refusal.
func (s *Session) settle(ctx context.Context, r *CredentialRequest, end func(*CredentialRequest)) (*CredentialRequest, error) {
	return s.change(ctx, r, func(n *CredentialRequest) bool {
		if n.State == CredentialActive {
			end(n)
			return true
		}
		return false
	})
}

// Told notes that the answer was sent.
func (s *Session) Told(ctx context.Context, r *CredentialRequest) error {
	_, err := s.change(ctx, r, func(n *CredentialRequest) bool {
		was := n.Told
		n.Told = true
		return !was
	})
	return err
}

func (s *Session) change(ctx context.Context, r *CredentialRequest, f func(*CredentialRequest) bool) (*CredentialRequest, error) {
	out, err := s.hub.store.ChangeCredentialRequest(context.WithoutCancel(ctx), s.key.hub, s.key.device, func(present *CredentialRequest) (*CredentialRequest, error) {
		if present == nil || present.ID != r.ID || present.Correlation != r.Correlation {
			return nil, refuseCredential(iothub.CredentialActive, "another request has replaced this one")
		}
		next := *present
		if !f(&next) {
			return present, nil
		}
		return &next, nil
	})
	return out, s.hub.credentialError("storing the answer to a request for a certificate", err)
}

// Certificates are the chain as it was issued, the leaf first; none when somebody changed the store.
func (r *CredentialRequest) Certificates() [][]byte {
	certs, err := x509.ParseCertificates(r.Chain)
	if err != nil {
		return nil
	}
	out := make([][]byte, len(certs))
	for i, c := range certs {
		out[i] = c.Raw
	}
	return out
}
