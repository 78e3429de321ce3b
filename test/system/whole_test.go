package system_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/test/world"
)

// TestWholeSystem tells the story on both stores: one agent process per device, from the line to
// telemetry, a renewal, a revocation, and what openssl and tpm2-tools make of the outcome.
func TestWholeSystem(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	testenv.Require(t, "openssl", "tpm2_readpublic", "tpm2_nvread")
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		wholeSystem(t, world.Options{})
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		wholeSystem(t, world.Options{DB: testenv.Postgres(t)})
	})
}

// TestWholeSystemRace is the same with binaries that have the race detector in them.
func TestWholeSystemRace(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	testenv.Require(t, "openssl", "tpm2_readpublic", "tpm2_nvread", "gcc")
	wholeSystem(t, world.Options{Race: true})
}

func wholeSystem(t *testing.T, o world.Options) {
	o.OperationalValidity, o.RenewalFraction = time.Minute, 0.1
	w := world.New(t, o)
	w.Acts()
	units := w.Make(5)
	agents := map[*world.Unit]*world.Process{}
	for _, u := range units {
		agents[u] = w.Agent([]*world.Unit{u})
	}
	w.AwaitConnected(time.Minute, units...)
	w.Check()
	chains(w, units[0])

	a := w.Admin()
	w.Wait("a renewal of every device", 2*time.Minute, func() (bool, string) {
		for _, u := range units {
			if n := renewals(w.Credentials(a, u)); n == 0 {
				return false, string(u.ID) + " has not renewed: " + world.Problem(w.Status(u))
			}
		}
		return true, ""
	})

	victim, others := units[2], append(append([]*world.Unit{}, units[:2]...), units[3:]...)
	began := time.Now()
	ch := world.Decode[admin.Changed](t, w.MustCradle("device", "revoke", string(victim.ID), "--reason", "stolen"))
	if ch.State != cradle.Revoked || ch.EST.IsZero() || ch.Provisioning == nil || ch.Hub == nil {
		t.Errorf("revoke printed %+v", ch)
	}
	w.Wait("the hub to drop the revoked device", time.Minute, func() (bool, string) {
		s := w.Status(victim).Stage
		return s != device.StageConnected, string(s)
	})
	agents[victim].Kill()
	refused(w, victim)
	t.Logf("EST, provisioning and hub refused the device %v after the command", time.Since(began))
	// Once more as the agent sees it.
	agents[victim] = w.Agent([]*world.Unit{victim})
	w.Wait("the revoked device to see that it is refused", time.Minute, func() (bool, string) {
		r := w.Status(victim)
		return r.Stage == device.StageRefused && r.LastError != nil, world.Problem(r)
	})

	before := w.Events()
	w.Wait("the others to go on", time.Minute, func() (bool, string) {
		events := w.Events()
		for _, u := range others {
			if len(world.Sequences(events, u.ID)) < len(world.Sequences(before, u.ID))+5 {
				return false, string(u.ID) + " does not: " + world.Problem(w.Status(u))
			}
		}
		return true, ""
	})
	w.AwaitConnected(time.Minute, others...)
	for u, p := range agents {
		if code := p.Stop(); code != 0 {
			t.Errorf("the agent of %s ended with %d: %s", u.ID, code, p.Log())
		}
	}
	w.GapFree(w.Events(), 5, others...)
	w.Check()
	for _, u := range units {
		n := w.Count(a, u)
		if n[cradle.IDevID] != 1 || n[cradle.IAK] != 1 || n[cradle.LDevID] != 1 {
			t.Errorf("%s has %v certificates", u.ID, n)
		}
	}
	inTPM(w, units[0])
	if code := w.Server().Stop(); code != 0 {
		t.Errorf("cradle serve ended with %d", code)
	}
	if log := w.Server().Log(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
		t.Errorf("the server's log:\n%s", log)
	}
}

func renewals(credentials []admin.Credential) (n int) {
	for _, c := range credentials {
		if c.Profile == cradle.Operational && c.Slot == "superseded" {
			n++
		}
	}
	return n
}

// refused: a revoked device gets nothing any more, with none of its credentials.
func refused(w *world.World, u *world.Unit) {
	w.T.Helper()
	ctx := w.T.Context()
	c := w.Client(u)
	defer c.Close()
	active := c.Certificate(c.Active())
	for name, err := range map[string]error{
		"provisioning": c.Register(ctx, active),
		"hub":          c.Connect(ctx, active),
	} {
		if err == nil {
			w.T.Errorf("%s accepts the revoked device %s", name, u.ID)
		}
	}
	for _, x := range []struct {
		profile cradle.Profile
		auth    device.Authenticator
	}{{cradle.Operational, c.Active()}, {cradle.Operational, device.ByLDevID}, {cradle.LDevID, device.ByIDevID}, {cradle.Operational, device.ByIDevID}} {
		if _, err := c.Enrol(ctx, x.profile, c.Certificate(x.auth)); cradle.KindOf(err) != cradle.Forbidden || !strings.Contains(err.Error(), "revoked") {
			w.T.Errorf("EST answers the revoked device %s, %s by %s: %v", u.ID, x.profile, x.auth, err)
		}
	}
}

// chains: openssl accepts every chain of a device against the account's evaluation root alone, with
// policies too, and nothing against the production root.
func chains(w *world.World, u *world.Unit) {
	w.T.Helper()
	d := world.Decode[admin.Device](w.T, w.MustCradle("device", "show", string(u.ID), "--chain", w.Path("chain.pem")))
	folder := filepath.Join(w.Data, "accounts", world.Account)
	tier := cradle.TierPolicy(cradle.Simulator).String()
	other := cradle.TierPolicy(cradle.DiscreteTPM).String()
	seen := map[cradle.Profile]bool{}
	for _, k := range d.Credentials {
		seen[k.Profile] = true
		leaf, issuers := w.Write("leaf.pem", k.PEM), w.Write("issuers.pem", k.Chain)
		for _, v := range []struct {
			root string
			args []string
			ok   bool
		}{
			{"evaluation", nil, true},
			{"evaluation", []string{"-explicit_policy", "-policy", "anyPolicy"}, true},
			{"evaluation", []string{"-explicit_policy", "-policy", tier}, true},
			{"evaluation", []string{"-explicit_policy", "-policy", cradle.PolicyKeyProved.String()}, true},
			{"evaluation", []string{"-explicit_policy", "-policy", other}, false},
			{"evaluation", []string{"-explicit_policy", "-policy", cradle.PolicyKeyNotProved.String()}, false},
			{"production", nil, false},
		} {
			// -no-CApath: nothing of the machine's own store counts.
			args := append([]string{"verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", filepath.Join(folder, v.root+"-root.pem"), "-untrusted", issuers}, v.args...)
			r := w.Tool(nil, "openssl", append(args, leaf)...)
			if (r.Code == 0) != v.ok {
				w.T.Errorf("%s of %s: %s: exit %d: %s%s", k.Profile, u.ID, r.Line, r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	if len(seen) != 4 {
		w.T.Errorf("%s has credentials %v, want four profiles", u.ID, seen)
	}
	chain, err := os.ReadFile(w.Path("chain.pem"))
	if err != nil || !strings.HasPrefix(string(chain), d.Credentials[0].PEM) {
		w.T.Errorf("device show --chain wrote %q, %v", chain, err)
	}
	// What the line wrote is in files too, and is the same.
	idevid, err := os.ReadFile(filepath.Join(u.Dir, "idevid.pem"))
	if err != nil {
		w.T.Fatal(err)
	}
	for _, k := range d.Credentials {
		if k.Profile == cradle.IDevID && !strings.HasPrefix(string(idevid), k.PEM) {
			w.T.Errorf("idevid.pem is not the certificate of the record")
		}
	}
}

// inTPM: tpm2-tools find the keys at their handles and the certificates in NV; openssl reads them and they
// belong together. The agent must be off.
func inTPM(w *world.World, u *world.Unit) {
	w.T.Helper()
	env := []string{"TPM2TOOLS_TCTI=swtpm:path=" + u.TPM.Socket()}
	tool := func(name string, args ...string) string {
		w.T.Helper()
		r := w.Tool(env, name, args...)
		if r.Code != 0 {
			w.T.Fatalf("%s: exit %d: %s%s", r.Line, r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	c := map[cradle.Profile]admin.Credential{}
	for _, k := range w.Credentials(w.Admin(), u) {
		c[k.Profile] = k
	}
	for _, k := range []struct {
		profile cradle.Profile
		handle  uint32
		index   uint32
	}{{cradle.IDevID, tpmkey.HandleIDevID, tpmkey.NVIDevID}, {cradle.IAK, tpmkey.HandleIAK, tpmkey.NVIAK}} {
		pub, der := w.Path("tpm.pub"), w.Path("tpm.der")
		tool("tpm2_readpublic", "-c", fmt.Sprintf("%#x", k.handle), "-f", "pem", "-o", pub)
		tool("tpm2_nvread", "-C", "o", fmt.Sprintf("%#x", k.index), "-o", der)
		b, err := os.ReadFile(der)
		if err != nil {
			w.T.Fatal(err)
		}
		text := tool("openssl", "x509", "-inform", "DER", "-in", der, "-noout", "-subject", "-enddate", "-pubkey")
		key, err := os.ReadFile(pub)
		if err != nil {
			w.T.Fatal(err)
		}
		if !strings.Contains(text, strings.TrimSpace(string(key))) {
			w.T.Errorf("%s: the certificate in NV %#x is not for the key at %#x:\n%s", k.profile, k.index, k.handle, text)
		}
		if !strings.Contains(text, "notAfter=Dec 31 23:59:59 9999 GMT") || !strings.Contains(text, string(u.ID)) {
			w.T.Errorf("%s: openssl reads\n%s", k.profile, text)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != c[k.profile].Fingerprint {
			w.T.Errorf("%s: NV %#x holds another certificate than the record", k.profile, k.index)
		}
	}
}
