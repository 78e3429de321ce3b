package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Token is a PKCS#11 token of a test: SoftHSM, with its objects in a folder of the test's.
type Token struct {
	Module  string // path of the PKCS#11 module
	Conf    string // what SOFTHSM2_CONF must be, in this process and in others
	Folder  string // of the token's objects
	Label   string
	PINFile string
}

// SoftHSM makes a token and sets SOFTHSM2_CONF for the rest of the test.
func SoftHSM(t testing.TB, label string) *Token {
	t.Helper()
	Require(t, "softhsm2-util")
	dir := t.TempDir()
	k := &Token{Conf: filepath.Join(dir, "softhsm2.conf"), Folder: filepath.Join(dir, "tokens"), Label: label, PINFile: filepath.Join(dir, "pin")}
	for _, m := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(m); err == nil {
			k.Module = m
			break
		}
	}
	if k.Module == "" {
		t.Fatal("softhsm2-util is there, but its module libsofthsm2.so is not")
	}
	for file, text := range map[string]string{k.Conf: "directories.tokendir = " + k.Folder + "\nlog.level = ERROR\n", k.PINFile: "secret-pin-1\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(k.Folder, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", k.Conf)
	c := exec.Command("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-pin-1", "--pin", "secret-pin-1")
	c.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.Conf)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	return k
}

// URI names the token for --keys.
func (k *Token) URI() string { return "pkcs11:token=" + k.Label + "?module-path=" + k.Module }

// Unplug takes the token's objects away until the returned function is called. The module finds out when a key is used.
func (k *Token) Unplug(t testing.TB) (plug func()) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	away := k.Folder + ".away"
	must(os.Rename(k.Folder, away))
	must(os.Mkdir(k.Folder, 0o700))
	return func() {
		must(os.Remove(k.Folder))
		must(os.Rename(away, k.Folder))
	}
}
