package system_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

const apartStatus = "http://status.example.com"

// signer is `cradle serve --role signer`, a process of its own.
type signer struct {
	t    *testing.T
	data string
	args []string
	bin  string
	*world.Process
}

func newSigner(t *testing.T, db string) (s *signer, url string) {
	t.Helper()
	addr := testenv.Address(t)
	data := filepath.Join(t.TempDir(), "signer")
	s = &signer{t: t, data: data, bin: world.Build(t, false),
		args: []string{"serve", "--json", "--role", "signer", "--data", data, "--db", db, "--listen", addr, "--status-url", apartStatus, "--front", "est-1"}}
	s.start()
	return s, "https://" + addr
}

func (s *signer) start() {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "cradle"), s.args...)
	r, out, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = out
	s.Process = world.StartProcess(s.t, cmd, s.data+".log")
	out.Close()
	var e struct{ Event string }
	if err := json.NewDecoder(r).Decode(&e); err != nil || e.Event != "ready" {
		s.t.Fatalf("the signer says %+v, %v:\n%s", e, err, s.Log())
	}
}

// TestSignerApart: devices with a TPM are born, onboard, renew and are revoked through a front end that has no issuing key,
// while the signer is a process of its own; it may die at any time.
func TestSignerApart(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	db := testenv.Postgres(t)
	s, url := newSigner(t, db)
	front := filepath.Join(t.TempDir(), "front")
	if err := os.Mkdir(front, 0o700); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(s.data, "key-encryption-key"), filepath.Join(front, "key-encryption-key"))
	credential := filepath.Join(front, "est-1.credential")
	if err := os.Rename(filepath.Join(s.data, "fronts", "est-1.credential"), credential); err != nil {
		t.Fatal(err)
	}
	w := world.New(t, world.Options{DB: db, Data: front, RenewalFraction: 0.1,
		Serve: []string{"--status-url", apartStatus, "--signer", url, "--signer-credential", credential}})
	signerContext := filepath.Join(s.data, "context.json")

	// What needs an issuing key is asked of the signer.
	if r := w.Cradle("account", "create", world.Account); r.Code != 1 || !strings.Contains(r.Stderr, "signer") {
		t.Errorf("an account made at the front end: exit %d, %s", r.Code, r.Stderr)
	}
	account := w.Path("account")
	w.Must("cradle", "account", "create", world.Account, "--out", account, "--operational-validity", "1m", "--context", signerContext)
	w.Must("cradle-oem", "init", "--dir", w.Path("oem"))
	w.Must("cradle", "oem", "add", world.OEM, "--key", w.Path("oem", "oem.pub"), "--context", signerContext)
	w.NewMaker()
	w.MustCradle("tpm-maker", "import", w.Path("tpm-maker.pem"), "--maker", world.Maker, "--tier", string(cradle.Simulator))
	w.MustCradle("order", "create", "--account", world.Account, "--oem", world.OEM, "--file", w.Write("order.toml", w.OrderFile(world.Order, "sn-")),
		"--out", w.Path("order.jws"), "--key", filepath.Join(account, "order-key.pem"))
	w.Must("cradle-oem", "order", "accept", w.Path("order.jws"), "--dir", w.Path("oem"))
	w.MustCradle("attestation", "register", "--account", world.Account)

	units := w.Make(3)
	agents := map[*world.Unit]*world.Process{}
	for _, u := range units {
		agents[u] = w.Agent([]*world.Unit{u})
	}
	w.AwaitConnected(time.Minute, units...)

	healthy := func() bool {
		for _, s := range world.Decode[admin.Status](t, w.MustCradle("status")).Services {
			if s.Service == "signer" {
				return s.Healthy
			}
		}
		t.Fatal("the front end's status does not speak of the signer")
		return false
	}
	if !healthy() {
		t.Error("the front end's status has a running signer as away")
	}
	// Without the signer nothing is issued; what runs goes on, and devices renew when it is back.
	s.Kill()
	if healthy() {
		t.Error("the front end's status has a dead signer as healthy")
	}
	count := func(u *world.Unit) int {
		return len(world.Decode[admin.Device](t, w.MustCradle("device", "show", string(u.ID), "--account", world.Account)).Credentials)
	}
	before := map[*world.Unit]int{}
	for _, u := range units {
		before[u] = count(u)
	}
	w.Wait("a device to be refused for want of the signer", time.Minute, func() (bool, string) {
		return strings.Contains(w.Server().Log(), "the signer"), ""
	})
	for _, u := range units {
		if n := count(u); n != before[u] {
			t.Errorf("%s has %d certificates, %d when the signer died", u.ID, n, before[u])
		}
	}
	s.start()
	w.Wait("a renewal of every device", 2*time.Minute, func() (bool, string) {
		for _, u := range units {
			if count(u) <= before[u] {
				return false, string(u.ID) + " has not renewed: " + world.Problem(w.Status(u))
			}
		}
		return true, ""
	})
	victim := units[0]
	w.MustCradle("device", "revoke", string(victim.ID), "--reason", "stolen")
	agents[victim].Kill()
	refused(w, victim)
	w.AwaitTelemetry(5, units[1:]...)
	for _, u := range units[1:] {
		agents[u].Stop()
	}
	w.GapFree(w.Events(), 5, units[1:]...)
	w.Check()
}
