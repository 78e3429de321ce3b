package tpmkey_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/keys/tpmkey"
)

// bus is an interposer between us and a TPM: it hears all, and may change responses.
type bus struct {
	path string

	mu     sync.Mutex
	heard  []byte
	change func(cc tpm2.TPMCC, response []byte)
}

func newBus(t *testing.T, soft *swtpm.TPM) *bus {
	t.Helper()
	b := &bus{path: filepath.Join(t.TempDir(), "bus")}
	l, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			b.serve(client, soft.Socket())
		}
	}()
	return b
}

func (b *bus) serve(client net.Conn, socket string) {
	defer client.Close()
	tpm, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer tpm.Close()
	for {
		command, err := message(client)
		if err != nil {
			return
		}
		tpm.Write(command)
		response, err := message(tpm)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.heard = append(append(b.heard, command...), response...)
		if b.change != nil {
			b.change(tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])), response)
		}
		b.mu.Unlock()
		client.Write(response)
	}
}

func message(r io.Reader) ([]byte, error) {
	header := make([]byte, 10)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	rest := make([]byte, binary.BigEndian.Uint32(header[2:])-10)
	_, err := io.ReadFull(r, rest)
	return append(header, rest...), err
}

// Whoever listens on the bus does not learn an activated secret, for every kind of endorsement key.
func TestBusHearsNoSecret(t *testing.T) {
	for _, kind := range ekTypes {
		soft, _ := newTPM(t, tpmmaker.Options{EKType: kind})
		b := newBus(t, soft)
		tpm := must[*tpmkey.TPM](t)(tpmkey.Open(t.Context(), b.path))
		iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
		secret := []byte("a secret of thirty-two bytes !!!")
		blob, encrypted := makeCredential(t, must[tpmkey.EKInfo](t)(tpm.EKCertificate(t.Context())), iak.Public(), secret)
		if got := must[[]byte](t)(tpm.Activate(t.Context(), blob, encrypted)); !bytes.Equal(got, secret) {
			t.Errorf("%s: activated %x", kind, got)
		}
		key := must[[]byte](t)(tpm.CreateKey(t.Context()))
		must[*tpmkey.Key](t)(tpm.LoadKey(t.Context(), key))
		tpm.Close()
		b.mu.Lock()
		if len(b.heard) < 1000 {
			t.Errorf("%s: the bus heard %d bytes: the test proves nothing", kind, len(b.heard))
		}
		for what, plain := range map[string][]byte{"secret": secret, "credential": blob[2:], "private part of a key": key[len(key)-64:]} {
			if bytes.Contains(b.heard, plain) {
				t.Errorf("%s: the bus heard the %s", kind, what)
			}
		}
		b.mu.Unlock()
	}
}

// Whoever changes what the TPM says is found out, at each command whose answer matters.
func TestBusChangesAreFoundOut(t *testing.T) {
	soft, _ := newTPM(t, tpmmaker.Options{})
	b := newBus(t, soft)
	tpm := must[*tpmkey.TPM](t)(tpmkey.Open(t.Context(), b.path))
	t.Cleanup(func() { tpm.Close() })
	ek := must[tpmkey.EKInfo](t)(tpm.EKCertificate(t.Context()))
	iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
	idevid := must[*tpmkey.Key](t)(tpm.EnsureIDevID(t.Context()))
	blob := must[[]byte](t)(tpm.CreateKey(t.Context()))
	credential, encrypted := makeCredential(t, ek, iak.Public(), make([]byte, 32))
	digest := make([]byte, 32)
	for cc, op := range map[tpm2.TPMCC]func() error{
		tpm2.TPMCCSign: func() error { _, err := idevid.SignDigest(t.Context(), digest, sha256Opts); return err },
		tpm2.TPMCCCertify: func() error {
			_, err := tpm.Certify(t.Context(), idevid, digest)
			return err
		},
		tpm2.TPMCCActivateCredential: func() error {
			_, err := tpm.Activate(t.Context(), credential, encrypted)
			return err
		},
		tpm2.TPMCCCreate:        func() error { _, err := tpm.CreateKey(t.Context()); return err },
		tpm2.TPMCCLoad:          func() error { _, err := tpm.LoadKey(t.Context(), blob); return err },
		tpm2.TPMCCCreatePrimary: func() error { _, err := tpm.EnsureLDevID(t.Context()); return err },
	} {
		changed := false
		b.mu.Lock()
		b.change = func(got tpm2.TPMCC, response []byte) {
			if got == cc && binary.BigEndian.Uint32(response[6:]) == 0 && !changed {
				response[len(response)/2] ^= 1 // inside the parameters
				changed = true
			}
		}
		b.mu.Unlock()
		err := op()
		b.mu.Lock()
		b.change = nil
		b.mu.Unlock()
		if !changed {
			t.Errorf("%v was not sent: the test proves nothing", cc)
		}
		if err == nil {
			t.Errorf("a changed answer to %v was believed", cc)
		}
	}
	signs(t, idevid) // and all is well again
}

// TPMs as swtpm_setup makes them: another implementation of the EK profile, templates and all.
func TestForeignMaker(t *testing.T) {
	testenv.Require(t, "swtpm", "swtpm_setup", "swtpm_localca", "certtool")
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	localca := filepath.Join(dir, "localca.conf")
	setup := filepath.Join(dir, "setup.conf")
	for name, text := range map[string]string{
		localca:                       "statedir = " + dir + "\nsigningkey = " + dir + "/key.pem\nissuercert = " + dir + "/ca.pem\ncertserial = " + dir + "/serial\n",
		filepath.Join(dir, "options"): "--platform-manufacturer X\n--platform-version 1\n--platform-model Y\n",
		setup: "create_certs_tool= /usr/bin/swtpm_localca\ncreate_certs_tool_config = " + localca +
			"\ncreate_certs_tool_options = " + filepath.Join(dir, "options") + "\nactive_pcr_banks = sha256\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--tpm2", "--tpmstate", "dir://" + state, "--create-ek-cert", "--lock-nvram", "--config", setup, "--overwrite"}
	if os.Getuid() == 0 {
		args = append(args, "--runas", "root")
	}
	if out, err := exec.CommandContext(t.Context(), "swtpm_setup", args...).CombinedOutput(); err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	soft, err := swtpm.Start(t.Context(), state, swtpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { soft.Stop() })
	tpm := open(t, soft)
	iak := must[*tpmkey.AttestationKey](t)(tpm.EnsureIAK(t.Context()))
	for _, kind := range []string{"p384", "rsa2048"} {
		checkActivate(t, tpm, must[tpmkey.EKInfo](t)(tpm.UseEK(t.Context(), kind)), iak)
	}
}
