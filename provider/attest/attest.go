// Package attest decides whether evidence proves what it claims: that an endorsement key belongs to a
// genuine TPM of a trusted maker, that an attestation key is one that signs only what its TPM made,
// that a certified key lives in that TPM, and that all of it was said now, to this account, by this
// client. It is pure: evidence, anchors and the time go in; a verdict with reasons comes out. It reads no
// store, fetches nothing that a certificate points to, and keeps nothing but which signatures of
// intermediates it has already verified.
//
// Two moments use it. At the nonce: AnchorSet.VerifyEK, VerifyAttestationKey, Activation. At the
// enrolment: VerifyCSR with the ChallengeState that the provider sealed into the challenge.
//
// It trusts the anchors and their tags (maker, tier), which an operator imported, and the state that the
// provider opened. Everything else comes from the device and proves nothing by itself. Each refusal has
// a Code of its own; each code is one entry in a list of checks, and the test removes them one by one to see
// that exactly its attack gets through. What a TPM cannot prove is not decided here: a relay to a genuine
// TPM elsewhere, a virtual TPM's cloned state, the unit's serial number.
//
// Sources: TCG "TPM 2.0 Keys for Device Identity and Attestation" v1.10, TCG EK Credential Profile v2.5,
// TPM 2.0 Library Part 1 §16 (names) and §24 (credential protection), Part 2 §10.12 (TPMS_ATTEST).
package attest

import (
	"strings"

	"github.com/cradle-iot/cradle"
)

// Reason is one ground for refusing, safe to show to the device.
type Reason struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
}

func (r Reason) String() string { return string(r.Code) + ": " + r.Detail }

// Reasons are all the grounds that were found; none means accepted. Costly checks (signatures) are
// left out when a cheaper one has already refused.
type Reasons []Reason

// OK reports that nothing was found against it.
func (r Reasons) OK() bool { return len(r) == 0 }

// Has reports whether code is among the reasons.
func (r Reasons) Has(code Code) bool {
	for _, x := range r {
		if x.Code == code {
			return true
		}
	}
	return false
}

// Err returns nil, or the reasons as a cradle.Forbidden error with the hint of the first.
func (r Reasons) Err() error { return r.Refuse(cradle.Forbidden, "evidence") }

// Refuse returns nil, or the reasons as an error of that kind about what was refused.
func (r Reasons) Refuse(kind cradle.Kind, what string) error {
	if r.OK() {
		return nil
	}
	texts := make([]string, len(r))
	for i, x := range r {
		texts[i] = x.String()
	}
	err := cradle.Errorf(kind, "%s refused: %s", what, strings.Join(texts, "; "))
	if h := hints[r[0].Code]; h != "" {
		err = err.WithHint("%s", h)
	}
	return err
}

func (r *Reasons) add(code Code, detail string) { *r = append(*r, Reason{code, detail}) }

// check is one named ground. refuse returns what is wrong with s, or "".
type check[S any] struct {
	code   Code
	refuse func(s S) string
}

func run[S any](r *Reasons, checks []check[S], s S) {
	for _, c := range checks {
		if detail := c.refuse(s); detail != "" {
			r.add(c.code, detail)
		}
	}
}
