package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is the repository's, from this folder.
const root = "../.."

// block is a fenced piece of a page: its language, what follows that word, and its lines.
type block struct {
	lang, arg string
	lines     []string
}

func (b block) text() string { return strings.Join(b.lines, "\n") + "\n" }

// read returns a page of the repository.
func read(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks finds the fenced blocks of a page.
func blocks(text string) (out []block) {
	open := false
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\n")
		switch fence, ok := strings.CutPrefix(l, "```"); {
		case ok && !open:
			lang, arg, _ := strings.Cut(strings.TrimSpace(fence), " ")
			out, open = append(out, block{lang: lang, arg: arg}), true
		case ok:
			open = false
		case open:
			b := &out[len(out)-1]
			b.lines = append(b.lines, l)
		}
	}
	return out
}
