package docs_test

import (
	"crypto/x509"
	"regexp"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
)

// TestOIDs holds the table of docs/oids.md against oid.go, both ways.
func TestOIDs(t *testing.T) {
	code := map[string]x509.OID{
		"DiscreteTPM":        cradle.TierPolicy(cradle.DiscreteTPM),
		"FirmwareTPM":        cradle.TierPolicy(cradle.FirmwareTPM),
		"VirtualTPM":         cradle.TierPolicy(cradle.VirtualTPM),
		"Simulator":          cradle.TierPolicy(cradle.Simulator),
		"SoftwareKey":        cradle.TierPolicy(cradle.SoftwareKey),
		"PolicyKeyProved":    cradle.PolicyKeyProved,
		"PolicyKeyNotProved": cradle.PolicyKeyNotProved,
		"PolicyKeyActivated": cradle.PolicyKeyActivated,
		"OIDActivation":      cradle.OIDActivation,
	}
	page := read(t, "docs/oids.md")
	if !strings.Contains(page, "\n    "+cradle.Arc+"\n") {
		t.Errorf("the page does not name the arc %s", cradle.Arc)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| (\\.[0-9.]+) \\| `(\\w+)` \\|").FindAllStringSubmatch(page, -1) {
		oid, ok := code[m[2]]
		if !ok {
			t.Errorf("the page names %s, which the test does not know", m[2])
		} else if oid.String() != cradle.Arc+m[1] {
			t.Errorf("%s is %s in the code, %s%s on the page", m[2], oid, cradle.Arc, m[1])
		}
		delete(code, m[2])
	}
	for name := range code {
		t.Errorf("the page lacks %s", name)
	}
	// What oid.go makes is what the test knows: a new identifier fails here until it is in both.
	if n := len(regexp.MustCompile(`\boid\("`).FindAllString(read(t, "oid.go"), -1)); n != 9 {
		t.Errorf("oid.go makes %d identifiers, this test knows 9", n)
	}
}
