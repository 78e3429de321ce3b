package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What can be said without a provider: the contract of outputs and exit statuses, and refusals of
// bad input. The verbs at work are in the tests of package oem and in the whole-system tests.
func TestVerbs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oem")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("this is no order"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		status int
		stderr string // contained in the first line
	}{
		{"init --dir DIR --json", 0, ""},
		{"init --dir DIR --json", 0, ""}, // keeps the keys
		{"order show ord-1 --dir DIR", 1, "order ord-1 was not accepted in this folder"},
		{"order show ord-1 --dir DIR/none", 1, "is not an OEM's folder"},
		{"order accept TEXT --dir DIR", 1, "not a JWS"},
		{"order accept TEXT.none --dir DIR", 2, "no such file"},
		{"order accept TEXT --dir DIR --account-key TEXT", 1, "PUBLIC KEY"},
		{"order accept --dir DIR", 2, `expected "<file>"`},
		{"personalise --dir DIR --order ord-1 --serial S1 --tpm TEXT --unit DIR/u", 1, "order ord-1 was not accepted"},
		{"personalise --dir DIR --order ../x --serial S1 --tpm TEXT --unit DIR/u", 1, `order "../x"`},
		{"personalise --dir DIR", 2, "missing flags"},
		{"lot close --dir DIR --order ord-1 --out DIR/lot", 1, "order ord-1 was not accepted"},
		{"lot close --dir DIR --order ord-1", 2, "missing flags: --out"},
		{"lot open", 2, "unexpected argument open"},
	} {
		var args []string
		for _, a := range strings.Fields(c.args) {
			args = append(args, strings.NewReplacer("DIR", dir, "TEXT", text).Replace(a))
		}
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), args, &stdout, &stderr)
		first, rest, _ := strings.Cut(stderr.String(), "\n")
		if status != c.status || !strings.Contains(first, c.stderr) {
			t.Errorf("%s: %d %q, want %d %q", c.args, status, stderr.String(), c.status, c.stderr)
		}
		if status == 0 {
			var v map[string]any
			if err := json.Unmarshal(stdout.Bytes(), &v); err != nil || stderr.Len() > 0 {
				t.Errorf("%s: %q %q: %v", c.args, stdout.String(), stderr.String(), err)
			}
			continue
		}
		if stdout.Len() > 0 || !strings.HasPrefix(first, "cradle-oem: ") || rest != "" && (!strings.HasPrefix(rest, "hint: ") || strings.Count(rest, "\n") != 1) {
			t.Errorf("%s: stdout %q, stderr %q", c.args, stdout.String(), stderr.String())
		}
	}
}
