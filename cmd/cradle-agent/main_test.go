package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
)

func TestUsage(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--help", "Example:"}, {"help", "Exit status:"}, {"run --help", "--config FILE"}, {"status -h", "JSON object"}, {"--version", "cradle-agent "},
	} {
		var out bytes.Buffer
		if err := run(context.Background(), strings.Fields(c.args), &out, &out); err != nil || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: %v, %q", c.args, err, out.String())
		}
	}
	for _, args := range []string{"", "fly", "run", "run --colour", "status --config a --config b", "run --config a b"} {
		if err := run(context.Background(), strings.Fields(args), new(bytes.Buffer), new(bytes.Buffer)); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// Settings that are wrong name their file, and what helps.
func TestWrongSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.toml")
	for _, text := range []string{"", "tpm = 5", "colour = \"red\"", "account = \"../x\""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, verb := range []string{"run", "status"} {
			err := run(t.Context(), []string{verb, "--config", file}, new(bytes.Buffer), new(bytes.Buffer))
			if _, hint := cradle.Public(err); cradle.KindOf(err) != cradle.Invalid || hint == "" || !strings.Contains(err.Error(), file) {
				t.Errorf("%s with %q: %v, hint %q", verb, text, err, hint)
			}
		}
	}
}
