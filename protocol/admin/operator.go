package admin

import (
	"time"

	"github.com/cradle-iot/cradle"
)

// Role is what an operator may do; each but Line includes the rights of those before it.
type Role string

// The roles.
const (
	Line     Role = "oem-line" // see how orders and lots stand
	Auditor  Role = "auditor"  // see everything, change nothing
	Operator Role = "operator" // the day's work: orders, lots, devices, approvals
	Owner    Role = "owner"    // whatever decides who is trusted
)

// Roles lists the roles, least first.
var Roles = []Role{Line, Auditor, Operator, Owner}

// AddOperator makes a token for somebody.
type AddOperator struct {
	Name    string           `json:"name"`
	Role    Role             `json:"role"`
	Account cradle.AccountID `json:"account,omitempty"` // empty: the whole installation, or the account of the caller's token
	Expires *time.Time       `json:"expires_at,omitempty"`
}

// OperatorInfo describes an operator.
type OperatorInfo struct {
	Name     string           `json:"name"`
	Role     Role             `json:"role"`
	Account  cradle.AccountID `json:"account,omitempty"`
	Created  time.Time        `json:"created_at"`
	Expires  *time.Time       `json:"expires_at,omitempty"`
	LastUsed *time.Time       `json:"last_used_at,omitempty"` // to the minute
	Token    string           `json:"token,omitempty"`        // at creation alone
}
