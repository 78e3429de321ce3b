package adminserver

import (
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

func (s *Server) operatorRoutes() {
	handle(s, op{pattern: "POST /operators", does: "Make a token for somebody.", need: own, scope: found}, s.addOperator)
	handle(s, op{pattern: "GET /operators", does: "The operators of the installation, or of one account.", need: view, scope: found}, s.operators)
	handle(s, op{pattern: "DELETE /operators/{name}", does: "End somebody's token.", need: own, scope: found}, s.removeOperator)
}

// operatorsAccount is whose operators a call is about: without an account those of the caller's token.
func operatorsAccount(c *call, account cradle.AccountID) (cradle.AccountID, error) {
	if account == "" {
		account = c.caller.account
	}
	return account, c.may(account)
}

func (s *Server) addOperator(c *call, in admin.AddOperator) (out admin.OperatorInfo, err error) {
	o := provider.Operator{Name: in.Name, Role: in.Role}
	if in.Expires != nil {
		o.Expires = *in.Expires
	}
	if o.Account, err = operatorsAccount(c, in.Account); err != nil {
		return out, err
	}
	token, o, err := s.Provider.AddOperator(c.ctx(), o)
	if err != nil {
		return out, err
	}
	out = operatorMessage(o)
	out.Token = token
	return out, nil
}

func operatorMessage(o provider.Operator) admin.OperatorInfo {
	optional := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	return admin.OperatorInfo{Name: o.Name, Role: o.Role, Account: o.Account, Created: o.Created, Expires: optional(o.Expires), LastUsed: optional(o.LastUsed)}
}

func (s *Server) operators(c *call, in ofAccount) ([]admin.OperatorInfo, error) {
	account, err := operatorsAccount(c, in.Account)
	if err != nil {
		return nil, err
	}
	list, err := s.Provider.OperatorList(c.ctx())
	if err != nil {
		return nil, err
	}
	out := []admin.OperatorInfo{}
	for _, o := range list {
		if account == "" || o.Account == account {
			out = append(out, operatorMessage(o))
		}
	}
	return out, nil
}

func (s *Server) removeOperator(c *call, in ofAccount) (none, error) {
	account, err := operatorsAccount(c, in.Account)
	if err != nil {
		return none{}, err
	}
	return none{}, s.Provider.RemoveOperator(c.ctx(), account, c.path("name"))
}
