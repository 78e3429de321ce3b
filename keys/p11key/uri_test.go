package p11key_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/keys/p11key"
)

func TestURI(t *testing.T) {
	u, err := p11key.ParseURI("pkcs11:token=My%20Token;object=acme%3bCA;id=%01%ff;type=private?module-path=/usr/lib/x.so&pin-source=file:/run/pin")
	want := p11key.URI{Token: "My Token", Object: "acme;CA", ID: []byte{1, 0xff}, Module: "/usr/lib/x.so", PIN: "/run/pin"}
	if err != nil || !reflect.DeepEqual(u, want) {
		t.Fatalf("got %+v, %v", u, err)
	}
	if s := u.String(); s != "pkcs11:token=My%20Token;object=acme%3BCA;id=%01%FF" {
		t.Errorf("written as %s", s)
	}
	for uri, part := range map[string]string{
		"file:x":                             "not a pkcs11",
		"pkcs11:token=a;token=b":             "twice",
		"pkcs11:slot-id=1":                   "unknown",
		"pkcs11:token":                       "empty",
		"pkcs11:token=%zz":                   "token",
		"pkcs11:token=a?pin-value=123456":    "would stand in argument lists",
		"pkcs11:token=a;pin-value=123456":    "would stand in argument lists",
		"pkcs11:token=a?module-name=softhsm": "unknown",
	} {
		if _, err := p11key.ParseURI(uri); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, want %q", uri, err, part)
		}
	}
}

// Written URIs are read back as they were.
func FuzzURI(f *testing.F) {
	f.Add("a b", "12", "acme;CA", []byte{0, 1, 0xff})
	f.Fuzz(func(t *testing.T, token, serial, object string, id []byte) {
		u := p11key.URI{Token: token, Serial: serial, Object: object, ID: id}
		got, err := p11key.ParseURI(u.String())
		if err != nil {
			t.Fatal(err)
		}
		if got.Token != token || got.Serial != serial || got.Object != object || string(got.ID) != string(id) {
			t.Fatalf("%s is read as %+v", u, got)
		}
	})
}

func TestPINFile(t *testing.T) {
	loose := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(loose, []byte("1234\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, part := range map[string]string{loose: "may be read by others", empty: "is empty", "/nowhere/pin": "no such file", "": "no PIN"} {
		if _, err := p11key.ReadPIN(file); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want %q", file, err, part)
		}
	}
	dir := t.TempDir() // systemd's credentials are its own to protect
	if err := os.WriteFile(filepath.Join(dir, p11key.Credential), []byte("4321\n"), 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if pin, err := p11key.ReadPIN(""); pin != "4321" || err != nil {
		t.Errorf("the credential is read as %q, %v", pin, err)
	}
}
