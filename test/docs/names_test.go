package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/order"
)

// pages lists the repository's Markdown files, relative to its root.
func pages(t *testing.T) (out []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/decisions/*.md", "docs/operating/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			rel, err := filepath.Rel(root, f)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, rel)
		}
	}
	if len(out) < 10 {
		t.Fatalf("found %v only", out)
	}
	return out
}

var (
	link   = regexp.MustCompile(`\]\(([^)#:]+)\)`) // within the repository
	span   = regexp.MustCompile("`([^`\n]+)`")
	source = regexp.MustCompile(`^(cmd|device|docs|hub|internal|keys|oem|protocol|provider|provisioning|scripts|test)/[\w./-]*$`)
	inCode = regexp.MustCompile(`^(?:(\w+)\.)?(\w+)$`)
)

// TestLinks: what a page links to is there.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
}

// TestNames: files, folders and identifiers that a page names in code spans are in the code. An identifier is
// looked for by its last part, and only if it is qualified, as order.Sign, or looks like one of Go's, as writeFolder.
func TestNames(t *testing.T) {
	code := declared(t)
	for _, page := range pages(t) {
		text := read(t, page)
		for _, b := range blocks(text) { // commands are for other tests
			text = strings.ReplaceAll(text, b.text(), "")
		}
		for _, m := range span.FindAllStringSubmatch(text, -1) {
			name := m[1]
			if source.MatchString(name) {
				if _, err := os.Stat(filepath.Join(root, name)); err != nil {
					t.Errorf("%s names %s: %v", page, name, err)
				}
				continue
			}
			if id := inCode.FindStringSubmatch(name); id != nil && looksDeclared(id[1], id[2]) && !code[id[2]] {
				t.Errorf("%s names %s, which is declared nowhere", page, name)
			}
		}
	}
}

// looksDeclared tells identifiers of Go from other words in code spans (file names, labels, flags).
func looksDeclared(qualifier, name string) bool {
	mixed := regexp.MustCompile(`^[a-z]+[A-Z]\w*$|^[A-Z]+[a-z]+[A-Z]\w*$`).MatchString(name)
	exported := name[0] >= 'A' && name[0] <= 'Z'
	switch {
	case name == "reqInfo" || name == "respInfo": // members of a draft's JSON
		return false
	case qualifier == "":
		return mixed
	case strings.ToUpper(name) == name, qualifier == "x509", qualifier == "asn1":
		return false
	}
	return exported || mixed || qualifier[0] >= 'A' && qualifier[0] <= 'Z'
}

// declared finds the names of functions, methods, types, fields, constants, variables and members of JSON, roughly, and
// the words of the scripts that call Microsoft's SDKs, whose names the pages use.
func declared(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	member, word := regexp.MustCompile("`json:\"(\\w+)"), regexp.MustCompile(`\w+`)
	decl := regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?(\w+)|^(?:type|var|const) (\w+)|^\t(\w+)(?:, \w+)* +[\w\[\]*.=]`)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(p) != ".go" && filepath.Ext(p) != ".js" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if filepath.Ext(p) == ".js" {
			for _, w := range word.FindAllString(string(b), -1) {
				out[w] = true
			}
			return nil
		}
		for _, m := range member.FindAllStringSubmatch(string(b), -1) {
			out[m[1]] = true
		}
		for _, m := range decl.FindAllStringSubmatch(string(b), -1) {
			out[m[1]+m[2]+m[3]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOrderFile: the order files on the pages are orders.
func TestOrderFile(t *testing.T) {
	n := 0
	for _, page := range pages(t) {
		for _, b := range blocks(read(t, page)) {
			if b.lang != "toml" || page == "docs/profiles.md" { // whose examples provider/ca reads
				continue
			}
			n++
			o, err := order.ParseTOML([]byte(b.text()))
			if err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			o.Account, o.OEM, o.IDScope = "acme", "oakline", "0ne00000000"
			o.ProviderURL, o.ProvisioningEndpoint = "https://iot.example.com", "https://iot.example.com"
			o.Complete(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC))
			// Anchors are the installation's; without them nothing else may be wrong.
			if err := o.Check(); err == nil || !strings.Contains(err.Error(), "anchors") {
				t.Errorf("%s: got %v, want only the anchors to be missing", page, err)
			}
		}
	}
	if n == 0 {
		t.Error("no page shows an order file")
	}
}
