package adminserver

import (
	"encoding/pem"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

func (s *Server) approvalRoutes() {
	type query struct {
		Account cradle.AccountID       `query:"account" doc:"Whose."`
		State   provider.ApprovalState `query:"state" doc:"waiting, approved, denied or used."`
	}
	handle(s, op{pattern: "GET /approvals", does: "Enrolments that wait for an operator, or did, oldest first.", need: view, scope: named},
		func(c *call, in query) ([]admin.Approval, error) {
			rows, err := s.Provider.Approvals(c.ctx(), in.Account, in.State)
			return messages(rows, approvalMessage), err
		})
	handle(s, op{pattern: "POST /approvals/{id}/approve", does: "Let an enrolment that waits have its certificate.", need: work, scope: found},
		func(c *call, in admin.Decide) (admin.Approval, error) { return s.decide(c, true, in.Reason) })
	handle(s, op{pattern: "POST /approvals/{id}/deny", does: "Refuse an enrolment that waits; the client is told the reason.", need: work, scope: found},
		func(c *call, in admin.Decide) (admin.Approval, error) { return s.decide(c, false, in.Reason) })
}

func (s *Server) decide(c *call, approved bool, reason string) (m admin.Approval, err error) {
	id := c.path("id")
	a, err := s.Provider.Approval(c.ctx(), id)
	if err == nil && c.may(a.Account) != nil {
		err = cradle.Errorf(cradle.NotFound, "no approval %q", id)
	}
	if err != nil {
		return m, err
	}
	a, err = s.Provider.Decide(c.ctx(), id, approved, reason)
	return approvalMessage(a), err
}

func approvalMessage(a provider.Approval) admin.Approval {
	m := admin.Approval{ID: a.ID, Account: a.Account, Profile: a.Profile, Device: a.Device, Client: a.Client, Subject: a.Subject, SPKI: a.SPKI, State: string(a.State),
		Reason: a.Reason, Asked: a.Asked, Expires: a.Expires, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: a.CSR}))}
	if !a.Decided.IsZero() {
		m.Decided = &a.Decided
	}
	return m
}
