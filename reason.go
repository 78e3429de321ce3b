package cradle

import (
	"fmt"
	"strings"
)

// Reason is why a certificate was revoked (CRLReason, RFC 5280 §5.3.1).
type Reason int

// The reasons that are given here. removeFromCRL (8) is of delta CRLs, which there are none of.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Replaced             Reason = 4 // "superseded"
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6 // the only one that can be released
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

var reasonNames = map[Reason]string{Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Replaced: "superseded", CessationOfOperation: "cessationOfOperation",
	CertificateHold: "certificateHold", PrivilegeWithdrawn: "privilegeWithdrawn", AACompromise: "aACompromise"}

// String is the reason's name in RFC 5280.
func (r Reason) String() string {
	if n, ok := reasonNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reason %d", int(r))
}

// ParseReason finds a reason by its name in RFC 5280; upper and lower case are alike.
func ParseReason(name string) (Reason, error) {
	for r, n := range reasonNames {
		if strings.EqualFold(n, name) {
			return r, nil
		}
	}
	return 0, Errorf(Invalid, "no such revocation reason %q", name).
		WithHint("use keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn, unspecified, or certificateHold, which alone can be released")
}
