package main

import (
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// TestHoldsUnits: a group of another kind, or of another account, is not made one of this account's units.
func TestHoldsUnits(t *testing.T) {
	for name, c := range map[string]struct {
		a  dps.Attestation
		ok bool
	}{
		"its own":         {dps.Attestation{Type: "tpm", TPMUnits: &dps.TPMUnits{Account: "acme", Order: "order-1"}}, true},
		"another account": {dps.Attestation{Type: "tpm", TPMUnits: &dps.TPMUnits{Account: "other", Order: "order-1"}}, false},
		"symmetric key":   {dps.Attestation{Type: "symmetricKey"}, false},
		"CA":              {dps.Attestation{Type: "x509", X509: &dps.X509Attestation{}}, false},
		"nothing known":   {dps.Attestation{}, false},
	} {
		if err := holdsUnits(&dps.EnrollmentGroup{EnrollmentGroupID: "g", Attestation: c.a}, "acme"); (err == nil) != c.ok || err != nil && cradle.KindOf(err) != cradle.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEnrollmentCreateKeyOut: nothing is enrolled when there is no place for the key.
func TestEnrollmentCreateKeyOut(t *testing.T) {
	c := EnrollmentCreateCmd{ID: "dev-1", KeyOut: t.TempDir() + "/none/dev-1.key"}
	if err := c.Run(t.Context(), &cli.Out{}); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), "no folder") {
		t.Errorf("got %v", err)
	}
}
