package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/cli"
)

func TestSecretFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, warned := range map[fs.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o644: true} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		b, err := secretFile(&cli.Out{Err: &text}, file)
		if err != nil || string(b) != "s3cret" || strings.Contains(text.String(), "chmod 600 "+file) != warned || strings.Contains(text.String(), "s3cret") {
			t.Errorf("mode %#o: %q %v, said %q", mode, b, err, text.String())
		}
	}
	if _, err := secretFile(&cli.Out{}, file+"x"); err == nil {
		t.Error("a file that is not there")
	}
}
