package provider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// ApprovalState is where an enrolment that waits for an operator is.
type ApprovalState string

// The states of an approval.
const (
	Waiting  ApprovalState = "waiting"
	Approved ApprovalState = "approved"
	Denied   ApprovalState = "denied"
	Used     ApprovalState = "used" // a certificate was issued
)

// Approval is an enrolment that waits for an operator, or what became of it. It stands for one key, one set of names
// and one client: a client comes again on another connection, with another signature (RFC 7030 §4.2.3).
type Approval struct {
	ID      string
	Account cradle.AccountID
	Request string // digest of profile, client, names and key
	Profile cradle.Profile
	Device  cradle.DeviceID
	Client  string // what authenticated it: a certificate's digest or basic/USER
	Subject string // as the CSR has it
	SPKI    string // SHA-256 of the key, hexadecimal
	CSR     []byte // DER
	State   ApprovalState
	Reason  string
	Asked   time.Time
	Decided time.Time // zero if not
	Expires time.Time // then it is forgotten
}

// Approvals keeps what waits for an operator.
type Approvals interface {
	// AskApproval returns the approval of a.Request that has not expired at a.Asked; without one it stores a, which
	// is Busy when max of the account wait already. The leaf goes with a new one alone.
	AskApproval(ctx context.Context, a Approval, max int64, leaf ledger.Leaf) (Approval, error)
	Approval(ctx context.Context, id string) (Approval, error) // NotFound
	// ApprovalList returns an account's, oldest first; without a state all.
	ApprovalList(ctx context.Context, account cradle.AccountID, state ApprovalState) ([]Approval, error)
	// DecideApproval moves waiting to a.State with a.Reason, a.Decided and a.Expires; Conflict when it does not wait.
	DecideApproval(ctx context.Context, a Approval, leaf ledger.Leaf) error
	// ForgetApprovals deletes those that expired before t.
	ForgetApprovals(ctx context.Context, t time.Time) error
}

const (
	approvalLife  = 7 * 24 * time.Hour // of one that waits, and again after its decision
	maxApprovals  = 1000               // that wait, of an account
	approvalRetry = 30 * time.Second
)

// approve holds a request up until an operator has approved it: where the profile says so, and not for the
// renewal of a certificate by itself.
func (p *Provider) approve(ctx context.Context, r Request, d *decision, in *Intent) error {
	rules, err := p.profile(r.Account, r.Profile)
	if err != nil || !rules.Approval || rules.Kind.Birth() || in.AuthProfile == r.Profile {
		return err
	}
	now := p.now()
	spki := in.SPKI
	if d.made != nil { // another one each time
		spki = "server"
	}
	h := sha256.New()
	for _, s := range []string{string(r.Profile), in.AuthCert, string(d.dev.ID), string(d.csr.Request.RawSubject), spki} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	a := Approval{ID: newApprovalID(), Account: r.Account, Request: string(r.Account) + "/" + hex.EncodeToString(h.Sum(nil)), Profile: r.Profile, Device: d.dev.ID,
		Client: in.AuthCert, Subject: fmt.Sprintf("%.200s", d.csr.Request.Subject), SPKI: in.SPKI, CSR: r.CSR, State: Waiting, Asked: now, Expires: now.Add(approvalLife)}
	leaf, err := p.leaf(string(r.Account), ledger.KindApproval, approvalBody(&a))
	if err != nil {
		return err
	}
	if a, err = p.store.AskApproval(ctx, a, maxApprovals, leaf); err != nil {
		return err
	}
	switch a.State {
	case Waiting:
		return cradle.Errorf(cradle.Pending, "enrolment %s of %s waits for an operator's approval", a.ID, a.Device).
			WithHint("send the same request again; the operator decides with: cradle approval approve %s", a.ID).After(approvalRetry)
	case Denied:
		return cradle.Errorf(cradle.Forbidden, "an operator denied enrolment %s of %s: %s", a.ID, a.Device, a.Reason)
	}
	in.Approval = a.ID
	return nil
}

// newApprovalID is short: people type it.
func newApprovalID() string { return hexDigest([]byte(newID()))[:12] }

func approvalBody(a *Approval) map[string]any {
	return map[string]any{"approval": a.ID, "state": a.State, "device": a.Device, "profile": a.Profile, "authenticated_by": a.Client, "spki": a.SPKI, "reason": a.Reason,
		"settings": settings(a.Setting())}
}

// Approval returns an approval.
func (p *Provider) Approval(ctx context.Context, id string) (Approval, error) {
	return p.store.Approval(ctx, id)
}

// Approvals returns an account's approvals, oldest first; without a state all.
func (p *Provider) Approvals(ctx context.Context, account cradle.AccountID, state ApprovalState) ([]Approval, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	switch state {
	case "", Waiting, Approved, Denied, Used:
	default:
		return nil, cradle.Errorf(cradle.Invalid, "no such state %q", state).WithHint("use waiting, approved, denied or used")
	}
	return p.store.ApprovalList(ctx, account, state)
}

// Decide approves or denies an enrolment that waits. What is approved is one certificate, for that key, those names and that client.
func (p *Provider) Decide(ctx context.Context, id string, approved bool, reason string) (Approval, error) {
	a, err := p.store.Approval(ctx, id)
	if err != nil {
		return a, err
	}
	if len(reason) > 200 {
		return a, cradle.Errorf(cradle.Invalid, "the reason has %d bytes; at most 200", len(reason))
	}
	if !approved && reason == "" {
		return a, cradle.Errorf(cradle.Invalid, "a denial needs a reason: the client is told").WithHint("--reason TEXT")
	}
	a.State, a.Reason, a.Decided = Denied, reason, p.now()
	if approved {
		a.State = Approved
	}
	a.Expires = a.Decided.Add(approvalLife)
	leaf, err := p.leafBy(ctx, string(a.Account), ledger.KindApproval, approvalBody(&a))
	if err != nil {
		return a, err
	}
	return a, p.store.DecideApproval(ctx, a, leaf)
}
