package filekey_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle/keys/filekey"
)

func TestVault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kek")
	v, err := filekey.OpenVault(file, false)
	if err != nil {
		t.Fatal(err)
	}
	sealed := v.Seal("a", []byte("secret"))
	again, err := filekey.OpenVault(file, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Open("a", sealed); err != nil || !bytes.Equal(got, []byte("secret")) {
		t.Fatalf("Open = %q, %v", got, err)
	}
	if _, err := again.Open("b", sealed); err == nil {
		t.Error("a value sealed under another name opened")
	}
	other, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open("a", sealed); err == nil {
		t.Error("a value sealed by another vault opened")
	}
	if _, err := filekey.CreateVault(file); err == nil {
		t.Error("CreateVault overwrote a key")
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := filekey.LoadVault(file); err == nil {
		t.Error("a key that others may read was loaded")
	}
}

func TestKey(t *testing.T) {
	v, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	k, sealed, err := v.NewKey("ca/1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Key("ca/1", sealed)
	if err != nil {
		t.Fatal(err)
	}
	if !k.PublicKey.Equal(got.Public()) {
		t.Error("another key came back")
	}
}
