package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestESTConformance: each row of docs/est-conformance.md names tests, and each of them exists.
func TestESTConformance(t *testing.T) {
	page := read(t, "docs/est-conformance.md")
	page, _, ok := strings.Cut(page, "## Choices")
	if !ok {
		t.Fatal("the page has no choices")
	}
	if rows := tested(t, page, nil); rows < 50 {
		t.Errorf("%d rows", rows)
	}
}

// tested checks a page's tables: their third column names tests, by folder, and each of them exists, as a function or as a
// method of a suite. The second column is one of states, where there are any. It returns how many rows there are.
func tested(t *testing.T, page string, states []string) (rows int) {
	t.Helper()
	folder := regexp.MustCompile("^`([a-z0-9/]+)` ((?:Test|Fuzz)[A-Za-z0-9_]+(?:, (?:Test|Fuzz)[A-Za-z0-9_]+)*)$")
	code := map[string]string{}
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| operation ") || strings.HasPrefix(line, "| requirement ") || strings.HasPrefix(line, "| --- ") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 {
			t.Errorf("%d cells in %q", len(cells), line)
			continue
		}
		if state := strings.TrimSpace(cells[1]); states != nil && !slices.Contains(states, state) {
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
			for name := range strings.SplitSeq(m[2], ", ") {
				if !regexp.MustCompile(`\nfunc (?:\(\w+ \w+\) )?` + name + `\(`).MatchString(code[m[1]]) {
					t.Errorf("folder %s has no %s", m[1], name)
				}
			}
		}
	}
	return rows
}

// testsOf is the text of a folder's tests.
func testsOf(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("folder %s has no tests", dir)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
