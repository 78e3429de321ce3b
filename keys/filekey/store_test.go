package filekey_test

import (
	"path/filepath"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/keystore"
)

func TestStore(t *testing.T) {
	v, err := filekey.CreateVault(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	s := keystore.Stores{filekey.Store{Vault: v}}
	k, ref, err := s.Generate(t.Context(), "acme CA", keystore.P384)
	if err != nil {
		t.Fatal(err)
	}
	if got := keystore.AlgorithmOf(k.Public()); got != keystore.P384 {
		t.Errorf("made a key of kind %q", got)
	}
	if _, err := s.Open(t.Context(), ref, k.Public()); err != nil {
		t.Error(err)
	}
	other, ref2, err := s.Generate(t.Context(), "acme CA", keystore.P256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), ref, other.Public()); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("the key of another certificate: %v", err)
	}
	if _, err := s.Open(t.Context(), keystore.Key{Ref: ref.Ref, Sealed: ref2.Sealed}, other.Public()); err == nil {
		t.Error("a sealed key opened under the reference of another")
	}
	if _, err := s.Open(t.Context(), keystore.Key{Ref: "pkcs11:token=x"}, other.Public()); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("a store that is not configured: %v", err)
	}
}
