package provisioning

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// What happens when a custom rule fails (CustomAllocation.Fallback).
const (
	FallbackWait   = "wait"   // the device waits ("assigning", or 503 for an expression) until the rule works
	FallbackHashed = "hashed" // it is allocated as if the policy were hashed
)

// answer is what an expression said about a device. It is got outside of the transaction that uses it, and is good
// only for what it was asked.
type answer struct {
	cel, present string
	names        []string
	err          error
}

// unanswered is what the step of a register call ends with when it needs an answer.
type unanswered struct {
	cel     string
	present string
	facts   allocate.Facts
}

func (*unanswered) Error() string { return "internal error: an allocation rule was not asked" }

// target is place, or says that a webhook must be asked; then hub is where the device is now.
func (a *admission) target(by Enrolled, r *Registration) (hub string, asks bool, err error) {
	if t := by.Terms(); t.asksWebhook() && !stays(a.hubs, t, r.Hub) {
		return r.Hub, true, nil
	}
	hub, err = a.place(by, r)
	return hub, false, err
}

// place names the hub of a device that registers, under what is enrolled now.
func (a *admission) place(by Enrolled, r *Registration) (string, error) {
	t := by.Terms()
	if stays(a.hubs, t, r.Hub) {
		return r.Hub, nil
	}
	d := allocate.Device{ID: string(r.ID), Region: deviceRegion(t, a.ask.Payload), Hub: r.Hub}
	if t.Allocation != Custom || t.Custom == nil {
		return named(by)(allocate.Decide(t.rule(), a.hubs, d, nil))
	}
	if a.answer == nil || a.answer.cel != t.Custom.CEL || a.answer.present != r.Hub {
		return "", &unanswered{t.Custom.CEL, r.Hub, a.facts(by, t, r, d)}
	}
	hub, err := "", a.answer.err
	if err == nil {
		hub, err = allocate.Decide(t.rule(), a.hubs, d, a.answer.names)
	}
	if err != nil && t.Custom.Fallback == FallbackHashed {
		rule := t.rule()
		rule.Policy = Hashed
		hub, err = allocate.Decide(rule, a.hubs, d, nil)
	}
	if err != nil { // nothing that the device could mend
		err = &cradle.Error{Kind: cradle.Busy, Detail: err.Error(), Err: err, Hint: "the operator must look at the allocation rule"}
	}
	return named(by)(hub, err)
}

// named adds to an error which enrolment it is about.
func named(by Enrolled) func(string, error) (string, error) {
	return func(hub string, err error) (string, error) {
		var e *cradle.Error
		if errors.As(err, &e) {
			c := *e
			c.Detail += " (" + by.Name() + ")"
			err = &c
		}
		return hub, err
	}
}

// facts for an expression: what was proved of the device, and, marked as such, what it says itself.
func (a *admission) facts(by Enrolled, t *Terms, r *Registration, d allocate.Device) allocate.Facts {
	c := a.by
	f := allocate.Facts{RegistrationID: string(r.ID), Account: string(c.Account), Attestation: c.Kind.Type(), Order: string(c.Facts.Order), Lot: string(c.Facts.Lot),
		Tier: string(c.Facts.Tier), TPMMaker: string(c.Facts.Maker)}
	if len(c.shown.Chain) > 0 {
		// The word of the CA that the operator enrolled, by policy OIDs (DESIGN §2).
		policies := c.shown.Chain[0].Policies
		for _, tier := range cradle.Tiers {
			if slices.ContainsFunc(policies, cradle.TierPolicy(tier).Equal) {
				f.Tier = string(tier)
			}
		}
		f.Proved = slices.ContainsFunc(policies, cradle.PolicyKeyProved.Equal)
	}
	if c.ek != nil {
		f.EKType, f.Proved = c.ek.Type(), true // its hub key was made for this TPM alone
	}
	f.Region, f.CurrentHub, f.Enrolment = d.Region, r.Hub, c.Group
	if by.Individual != nil {
		f.Enrolment = string(by.Individual.ID)
	}
	for _, h := range allocate.Candidates(t.rule(), a.hubs, d) {
		f.Hubs = append(f.Hubs, h.Name)
	}
	if len(a.ask.Payload) > 0 {
		_ = json.Unmarshal(a.ask.Payload, &f.Payload) // what is no JSON is no payload
	}
	return f
}

// deviceRegion is the enrolment's, or the device's own word where the enrolment takes it.
func deviceRegion(t *Terms, payload json.RawMessage) string {
	if t.RegionHint && len(payload) > 0 {
		var hint struct {
			Region string `json:"region"`
		}
		if json.Unmarshal(payload, &hint) == nil && region.MatchString(hint.Region) {
			return hint.Region
		}
	}
	return t.Region
}

// expressions keeps compiled expressions by their source.
type expressions struct {
	mu sync.Mutex
	m  map[string]*allocate.Expression
}

// maxExpressions bounds what is kept; there are seldom more than a handful.
const maxExpressions = 1000

func (x *expressions) get(source string) (*allocate.Expression, error) {
	x.mu.Lock()
	e := x.m[source]
	x.mu.Unlock()
	if e != nil {
		return e, nil
	}
	e, err := allocate.Compile(source)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.m == nil || len(x.m) >= maxExpressions {
		x.m = map[string]*allocate.Expression{}
	}
	x.m[source] = e
	return e, nil
}

// ask evaluates an expression, outside of any transaction.
func (s *Service) ask(ctx context.Context, u *unanswered) *answer {
	a := &answer{cel: u.cel, present: u.present}
	e, err := s.expressions.get(u.cel)
	if err == nil {
		a.names, err = e.Evaluate(ctx, u.facts)
	}
	a.err = err
	if err != nil {
		s.log.Warn("allocation expression fails", "registration", u.facts.RegistrationID, "enrolment", u.facts.Enrolment, "err", err)
	}
	return a
}
