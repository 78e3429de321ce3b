package docs_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAzureCompatibility: each row of docs/azure-compatibility.md has a state and names tests, and each of them exists.
func TestAzureCompatibility(t *testing.T) {
	page := read(t, "docs/azure-compatibility.md")
	folder := regexp.MustCompile("^`([a-z0-9/]+)` ((?:Test|Fuzz)[A-Za-z0-9_]+(?:, (?:Test|Fuzz)[A-Za-z0-9_]+)*)$")
	code := map[string]string{}
	rows := 0
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| operation ") || strings.HasPrefix(line, "| --- ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 {
			t.Errorf("%d cells in %q", len(cells), line)
			continue
		}
		if state := strings.TrimSpace(cells[1]); !slices.Contains([]string{"served", "different", "refused"}, state) {
			t.Errorf("state %q of %q", state, line)
		}
		for part := range strings.SplitSeq(strings.TrimSpace(cells[2]), "; ") {
			m := folder.FindStringSubmatch(part)
			if m == nil {
				t.Errorf("no tests by folder in %q of %q", part, line)
				continue
			}
			if _, ok := code[m[1]]; !ok {
				code[m[1]] = testsOf(t, m[1])
			}
			for name := range strings.SplitSeq(m[2], ", ") { // a function, or a method of a suite
				if !regexp.MustCompile(`\nfunc (?:\(\w+ \w+\) )?` + name + `\(`).MatchString(code[m[1]]) {
					t.Errorf("folder %s has no %s", m[1], name)
				}
			}
		}
	}
	if rows < 40 {
		t.Errorf("%d rows", rows)
	}
}
