package operating_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
)

const root = "../.."

// block is a fenced piece of a page: what a reader types. With a name it goes on running in a terminal of that name.
type block struct{ name, text string }

func blocks(t *testing.T, page string) (out []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	open := false
	for l := range strings.Lines(string(text)) {
		switch name, shell := strings.CutPrefix(l, "```sh"); {
		case shell:
			out, open = append(out, block{name: strings.TrimSpace(name)}), true
		case strings.HasPrefix(l, "```"):
			open = false
		case open:
			out[len(out)-1].text += l
		}
	}
	return out
}

// terminal runs a program that goes on until the test ends, and waits until it is ready.
func terminal(t *testing.T, dir, text string) {
	t.Helper()
	o, done := new(testenv.Buffer), make(chan struct{})
	cmd := exec.Command("bash", "-c", "exec "+strings.TrimSpace(text))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, o, o
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
	})
	for range 600 {
		if strings.Contains(o.String(), "ready https://") {
			return
		}
		select {
		case <-done:
			t.Fatalf("%s\nended:\n%s", text, o)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("%s\nis not ready:\n%s", text, o)
}

// TestKeysPage does what docs/operating/keys.md says, with SoftHSM and PostgreSQL.
func TestKeysPage(t *testing.T) {
	testenv.Long(t)
	testenv.Require(t, "openssl", "softhsm2-util")
	work := t.TempDir()
	hsm := testenv.SoftHSM(t, "another") // sets SOFTHSM2_CONF; the page makes a token of its own
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(work, "bin")+"/", "./cmd/cradle", "./cmd/cradle-oem")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	here := strings.NewReplacer("127.0.0.1:8443", testenv.Address(t), "127.0.0.1:8444", testenv.Address(t), "127.0.0.1:9443", testenv.Address(t),
		"postgres://cradle@db.example.com/cradle", fmt.Sprintf("%q", testenv.Postgres(t)), "/usr/lib/softhsm/libsofthsm2.so", hsm.Module)
	outputs := map[string]string{}
	for _, b := range blocks(t, filepath.Join(root, "docs", "operating", "keys.md")) {
		text := here.Replace(b.text)
		if b.name != "" {
			terminal(t, work, text)
			continue
		}
		cmd := exec.Command("bash", "-eu", "-c", text)
		cmd.Dir = work
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", text, err, out)
		}
		outputs[b.text] = string(out)
	}
	for command, want := range map[string]string{
		"--ca-key ec-p384":   "acme production operational CA ec-p384 pkcs11",
		"--root external":    "waiting",
		"ca cross":           "move.pem: OK",
		"ca csr acme --ca r": "production-operational.pem: OK",
		"ca roll acme":       "acme evaluation root G2",
		"order accept":       "acme evaluation onboarding CA G2",
	} {
		found := false
		for text, out := range outputs {
			if strings.Contains(text, command) {
				found = found || strings.Contains(strings.Join(strings.Fields(out), " "), want)
			}
		}
		if !found {
			t.Errorf("the block with %q printed no %q", command, want)
		}
	}
	// The signer's keys are opened by its own key-encryption key alone.
	if _, err := os.Stat(filepath.Join(work, "front", "issuing-key-encryption-key")); err == nil {
		t.Error("the front end has a key-encryption key of issuing keys")
	}
}

// A build without cgo says what is missing.
func TestBuiltWithoutPKCS11(t *testing.T) {
	testenv.Long(t)
	work := t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(work, "cradle"), "./cmd/cradle")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	out, err := exec.Command(filepath.Join(work, "cradle"), "serve", "--data", filepath.Join(work, "data"), "--listen", "127.0.0.1:0", "--keys", "pkcs11:token=x?module-path=/x.so").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "built without PKCS#11") || !strings.Contains(string(out), "make build PKCS11=1") {
		t.Errorf("got %v\n%s", err, out)
	}
}
