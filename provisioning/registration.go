package provisioning

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// RegistrationID names a device within an ID scope: canonical lower case. It becomes the device id at
// the hub.
type RegistrationID string

// ParseRegistrationID lowers the case and checks Azure's rule: 1 to 128 of letters, digits and - . _ :,
// the last a letter, a digit or a dash.
func ParseRegistrationID(s string) (RegistrationID, error) {
	id := strings.ToLower(s)
	ok := id != "" && len(id) <= 128
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
		ok = alnum || i < len(id)-1 && (c == '.' || c == '_' || c == ':')
	}
	if !ok {
		return "", cradle.Errorf(cradle.Invalid, "registration id %.140q: use 1 to 128 letters, digits and inner '-', '.', '_', ':'", s)
	}
	return RegistrationID(id), nil
}

// Status is where a registration is. The moves:
//
//	unassigned -> assigning   a device registers
//	assigning  -> assigned    the hub has been told
//	assigning  -> failed      the hub, or the two-slot rule, refuses for good; registering again starts anew
//	assigned   -> assigning   the device registers again
//	any        -> disabled    the status feed blocks the device
//	disabled   -> assigning, assigned    a suspended device is released
type Status string

// The statuses.
const (
	Unassigned Status = "unassigned"
	Assigning  Status = "assigning"
	Assigned   Status = "assigned"
	Failed     Status = "failed"
	Disabled   Status = "disabled"
)

// Substatuses of an assigned registration.
const (
	InitialAssignment = "initialAssignment"
	DataMigrated      = "deviceDataMigrated"
	DataReset         = "deviceDataReset"
	Reprovisioned     = "reprovisionedToInitialAssignment"
)

// Thumbprint is the SHA-256 of a certificate's DER.
type Thumbprint [32]byte

func (t Thumbprint) String() string { return strings.ToUpper(hex.EncodeToString(t[:])) }

// Registration is one device's record.
type Registration struct {
	ID        RegistrationID
	Group     string           // the group that admitted it last; empty: its individual enrolment
	Kind      AttestationKind  // by which it proved itself last
	Account   cradle.AccountID // the organisation of the group's signing certificate; may be empty
	Device    cradle.DeviceID  // at the hub; empty: the registration id
	Hub       string           // name of the assigned hub
	Status    Status
	Substatus string
	Blocked   cradle.DeviceState // what the feed said, while it blocks; else empty

	Operation     string // of the newest register call
	PrevOperation string // the one before: two callers may register one device at once

	Thumbprint Thumbprint // of the certificate registered last
	NotBefore  time.Time  // of that certificate
	Newest     time.Time  // the latest NotBefore ever registered
	Delivered  bool       // the hub has been told at least once
	Move                  // what is still to be done at hubs

	Keys            // of a device without certificate
	Issuance        // the certificate that it asked for with its newest register call
	Payload  string // JSON that the device sent with its newest register call; empty: none
	Facts    string // JSON object of what its attestation proved, for allocation rules; empty: none

	ErrorCode    int
	ErrorMessage string

	Version int64 // grows with every change
	Created time.Time
	Updated time.Time
}

// DeviceID at the hub.
func (r *Registration) DeviceID() cradle.DeviceID {
	if r.Device != "" {
		return r.Device
	}
	return cradle.DeviceID(r.ID)
}

// ETag of the record.
func (r *Registration) ETag() string { return "v" + strconv.FormatInt(r.Version, 10) }

// newOperation makes an operation id as the real service's look: a kind, 8 bytes, a UUID.
func newOperation() string {
	var b [24]byte
	rand.Read(b[:])
	h := hex.EncodeToString(b[:])
	return "5." + h[:16] + "." + h[16:24] + "-" + h[24:28] + "-4" + h[29:32] + "-a" + h[33:36] + "-" + h[36:48]
}

// admission is what a proven device asks for.
type admission struct {
	by        *Caller
	operation string
	ask       Ask
	now       time.Time
	hubs      []allocate.Hub
	issues    bool    // this service can have certificates issued
	answer    *answer // of the rule that was asked; nil: none was
}

// errReconsider says that what admitted a device is not what is enrolled now: who it is must be decided anew.
var errReconsider = errors.New("the enrolment has changed")

// register is the step of a register call. What authenticated the device may have come from a cache: it counts only
// if the enrolment is still the same in this transaction.
func (a *admission) register(cur *Registration, by Enrolled) (Outcome, error) {
	c := a.by
	if !c.current(by) {
		return Outcome{}, errReconsider
	}
	if cur == nil {
		cur = &Registration{ID: c.ID, Status: Unassigned, Account: c.Account, Group: c.Group, Created: a.now}
	}
	account := c.Account
	if by.Individual == nil && (cur.Account != account || account == "" && cur.Group != c.Group) {
		return Outcome{}, cradle.Errorf(cradle.Conflict, "registration id %q already belongs to a device of another owner (enrolment group %q)", c.ID, cur.Group).
			WithHint("give this device another name, or delete the registration if the other device is gone")
	}
	if account == "" { // an individual enrolment of no account does not take the device out of its owner's feed
		account = cur.Account
	}
	if cur.Blocked != "" {
		return Outcome{}, refuseBlocked(c.ID, cur.Blocked)
	}
	token := tokenHash(c.shown.Token)
	if token != "" && c.ek != nil && token == cur.Token && cur.Operation != "" {
		return Outcome{}, nil // its answer was lost: a challenge is good for one registration
	}
	if c.Waits != "" && cur.Hub != "" {
		return Outcome{}, cradle.Errorf(cradle.Unauthorized, "device %q is not accepted any more: %s", c.ID, c.Waits)
	}
	wish, err := a.issuance(by, account, cur.Issuance)
	if err != nil {
		return Outcome{}, err
	}
	var hub string
	var asks bool
	if c.Waits == "" {
		if hub, asks, err = a.target(by, cur); err != nil {
			return Outcome{}, err
		}
	}
	if token == "" && asks == cur.Asks && cur.Status == Assigning && cur.Thumbprint == c.Thumbprint && cur.Group == c.Group && cur.Hub == hub && sameWish(cur.Issuance, wish) {
		return Outcome{}, nil // the same device asks twice at once: it joins the operation under way
	}
	next := *cur
	next.Account, next.Group, next.Kind, next.Device = account, c.Group, c.Kind, ""
	if by.Individual != nil {
		next.Device = by.Individual.Device
	}
	next.Issuance = wish
	next.Payload, next.Facts = string(a.ask.Payload), c.Facts.String()
	next.Status, next.ErrorCode, next.ErrorMessage = Assigning, 0, ""
	next.PrevOperation, next.Operation = cur.Operation, a.operation
	if err := next.setKeys(cur, c); err != nil {
		return Outcome{}, err
	}
	next.Token, next.PrevToken = token, cur.Token
	next.Thumbprint, next.NotBefore = c.Thumbprint, c.notBefore.UTC()
	if next.NotBefore.After(next.Newest) {
		next.Newest = next.NotBefore
	}
	next.touch(a.now)
	if c.Waits != "" {
		return Outcome{Registration: &next}, nil
	}
	return Outcome{Registration: &next, Deliver: next.send(hub, asks, by.Terms(), a.hubs)}, nil
}

// setKeys gives the registration the keys that its hub entry needs. A TPM keeps the key that it has already taken in.
func (r *Registration) setKeys(cur *Registration, c *Caller) error {
	r.Keys = c.keys
	if c.ek == nil {
		return nil
	}
	if cur.Thumbprint == c.Thumbprint && cur.Keys.TPM != "" {
		r.Primary, r.Secondary = cur.Primary, cur.Secondary
	} else {
		r.Primary, r.Secondary = Secret(sas.NewKey()), Secret(sas.NewKey())
	}
	blob, err := tpmblob.Make(c.ek, c.srk, []byte(r.Primary))
	if err != nil {
		return unproved(cradle.Errorf(cradle.Invalid, "TPM keys: %v", err))
	}
	r.Keys.TPM = Secret(blob)
	return nil
}

// approve is the step by which a poll lets a registration go on that waited for approval.
func (a *admission) approve(cur *Registration, by Enrolled) (Outcome, error) {
	c := a.by
	if !c.current(by) {
		return Outcome{}, errReconsider
	}
	if cur == nil || !cur.Waits() {
		return Outcome{}, nil
	}
	hub, asks, err := a.target(by, cur)
	if err != nil {
		return Outcome{}, err
	}
	next := *cur
	deliver := next.send(hub, asks, by.Terms(), a.hubs)
	next.touch(a.now)
	return Outcome{Registration: &next, Deliver: deliver}, nil
}

// Waits reports whether the registration waits for an approval: it has no hub yet, and nobody is asked for one.
func (r *Registration) Waits() bool { return r.Status == Assigning && r.Hub == "" && !r.Asks }

// Name of the device at the credential provider, by which a status feed knows it.
func (r *Registration) Name() cradle.DeviceID { return cradle.DeviceID(r.ID) }

// touch marks a change.
func (r *Registration) touch(now time.Time) {
	r.Version++
	r.Updated = now
}

// delivered is what becomes of a registration when its hub has been told; refused says that the hub, or
// a rule, refuses for good. Now that it stands there, the hub that it has left is told too.
func delivered(now time.Time, refused error) Settled {
	return func(r Registration) (Registration, []string) {
		var next []string
		if r.Asks { // it is not decided that this is its hub
			return r, nil
		}
		r.touch(now)
		if refused != nil {
			if r.Blocked == "" {
				r.Status, r.ErrorCode = Failed, 400000
			}
			detail, hint := cradle.Public(refused)
			if r.ErrorMessage = detail; hint != "" {
				r.ErrorMessage += "; " + hint
			}
			return r, nil
		}
		if r.Blocked != "" {
			r.ErrorMessage = ""
		}
		if r.Blocked == "" && r.Status == Assigning {
			r.Status, r.Substatus = Assigned, r.substatus()
			if r.From != "" {
				next = append(next, r.From)
			}
			r.Delivered, r.Move = true, r.done()
		}
		return r, next
	}
}

// block is the step by which the feed's word reaches a registration: a blocked state disables it,
// every other one releases it if it was only suspended.
func block(state cradle.DeviceState, now time.Time) Step {
	return func(cur *Registration, _ Enrolled) (Outcome, error) {
		if cur == nil {
			return Outcome{}, nil
		}
		next := *cur
		switch {
		case state.Blocked() && (cur.Blocked == state || cur.Blocked == cradle.Revoked || cur.Blocked == cradle.Retired):
			return Outcome{}, nil // known, or final already
		case state.Blocked():
			next.Blocked, next.Status = state, Disabled
		case cur.Blocked != cradle.Suspended:
			return Outcome{}, nil // not blocked, or for good
		default:
			next.Blocked, next.Status, next.Asks = "", Unassigned, false
			switch {
			case cur.Delivered:
				next.Status = Assigned
			case cur.Hub != "":
				next.Status = Assigning
			}
		}
		next.touch(now)
		out := Outcome{Registration: &next}
		for _, hub := range []string{next.Hub, next.From} { // until it has moved it may still be connected there
			if hub != "" {
				out.Deliver = append(out.Deliver, hub)
			}
		}
		return out, nil
	}
}

func refuseBlocked(id RegistrationID, state cradle.DeviceState) error {
	e := cradle.Errorf(cradle.Unauthorized, "device %q is %s", id, state)
	if state == cradle.Suspended {
		return e.WithHint("its owner can release it")
	}
	return e.WithHint("this is final; the device needs a new identity from its owner")
}
