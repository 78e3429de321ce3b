package docs_test

import "testing"

// TestAzureCompatibility: each row of docs/azure-compatibility.md has a state and names tests, and each of them exists.
func TestAzureCompatibility(t *testing.T) {
	if rows := tested(t, read(t, "docs/azure-compatibility.md"), []string{"served", "different", "refused"}); rows < 40 {
		t.Errorf("%d rows", rows)
	}
}
