package adminserver

import (
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
)

// right is what a route asks of its caller's role.
type right int

const (
	anyone right = iota // no token: what is served is signed, or its request is
	know                // that the installation is there and healthy
	follow              // how orders and lots stand: all that an OEM's line needs
	view                // everything of the account, and its log
	work                // the day's work: orders, lots, devices' states, approvals
	own                 // what decides who is trusted: accounts, OEMs, TPM makers, operators, keys
)

// rights is the whole table of who may do what.
var rights = map[admin.Role][]right{
	admin.Line:     {know, follow},
	admin.Auditor:  {know, follow, view},
	admin.Operator: {know, follow, view, work},
	admin.Owner:    {know, follow, view, work, own},
}

// scope is where a route's account comes from.
type scope int

const (
	everywhere   scope = iota // the route belongs to no account
	installation              // the route is the installation's: no token of one account may use it
	named                     // the account is {account} in the path, or ?account=
	found                     // the handler finds the account of a thing and asks call.may
)

// caller is who asks. An empty account stands for the whole installation.
type caller struct {
	name    string // empty: who holds the token that the installation or the account was made with
	role    admin.Role
	account cradle.AccountID
}

// actor is the name under which the log records what the caller does.
func (c caller) actor() string {
	switch {
	case c.name == "" && c.account == "":
		return "operator"
	case c.name == "":
		return "account " + string(c.account)
	case c.account == "":
		return c.name
	}
	return string(c.account) + "/" + c.name
}

// authorize decides whether c may use a route that asks for need, and, for the scope named, does so on
// account. It is the only place that does, beside may, which handlers of the scope found ask.
func authorize(c caller, need right, sc scope, account cradle.AccountID) error {
	if sc == installation && c.account != "" {
		return cradle.Errorf(cradle.Forbidden, "this is for the installation's operator, not for account %s", c.account).
			WithHint("use the context.json that serve wrote to its data folder")
	}
	if sc == named {
		if err := c.may(account); err != nil {
			return err
		}
	}
	if !slices.Contains(rights[c.role], need) {
		return cradle.Errorf(cradle.Forbidden, "the role %s may not do this", c.role).WithHint("ask an owner: cradle operator add")
	}
	return nil
}

// may refuses an account's token for another account, with the answer for an account that does not
// exist: no call of one account can see another.
func (c caller) may(a cradle.AccountID) error {
	if c.account == "" || c.account == a {
		return nil
	}
	return cradle.Errorf(cradle.NotFound, "no account %q", a).WithHint("cradle account create %s", a)
}
