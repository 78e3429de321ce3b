package query_test

import (
	"os"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/hub/query"
)

// TestPage holds docs/operating/hub.md to the code: what it says is served is, what it says is refused is refused with
// those words, and it names everything that is there.
func TestPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/operating/hub.md")
	if err != nil {
		t.Fatal(err)
	}
	served, refused := "", ""
	for i, part := range strings.Split(string(b), "```") {
		head, body, _ := strings.Cut(part, "\n")
		switch {
		case i%2 == 0:
		case head == "query":
			served += body
		case head == "query refused":
			refused += body
		}
	}
	n := 0
	for l := range strings.Lines(served) {
		n++
		if _, err := query.Parse(strings.TrimSpace(l)); err != nil {
			t.Errorf("%s%v", l, err)
		}
	}
	for l := range strings.Lines(refused) {
		n++
		text, want, _ := strings.Cut(strings.TrimSpace(l), " | ")
		if _, err := query.Parse(text); err == nil || want == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	if n < 30 {
		t.Errorf("the page has %d queries", n)
	}
	for _, name := range query.Functions {
		if !strings.Contains(strings.ToUpper(served), name+"(") {
			t.Errorf("the page does not show %s", name)
		}
	}
	for _, name := range query.Unserved {
		if !strings.Contains(refused, name) {
			t.Errorf("the page does not say that %s is refused", name)
		}
	}
}
