package system_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/test/world"
)

// TestRestore: an installation is backed up while it serves, goes on, and is lost. The older backup is restored; it serves nothing
// until a newer export of the log has brought it to where the world is, and then everything that was done since holds.
func TestRestore(t *testing.T) {
	testenv.Long(t)
	w := world.New(t, world.Options{TelemetryInterval: time.Second})
	w.Acts()
	first := w.Make(2)
	power := w.Devices()
	power.PowerOn(first...)
	w.AwaitConnected(time.Minute, first...)

	archive := w.Path("monday.backup")
	about := world.Decode[struct {
		Keys    bool
		LeftOut []string `json:"left_out"`
	}](t, w.Must("cradle", "backup", "--data", w.Data, "--out", archive, "--json"))
	if st, err := os.Stat(archive); err != nil || st.Mode().Perm() != 0o600 || about.Keys || !strings.Contains(strings.Join(about.LeftOut, " "), "key-encryption-key") {
		t.Errorf("%v, %v, %+v", st.Mode(), err, about)
	}
	refuse(w, "exists already", "backup", "--data", w.Data, "--out", archive)

	// After the backup: a unit is made, a device revoked.
	second := w.Make(1)
	power.PowerOn(second...)
	w.AwaitConnected(time.Minute, second...)
	w.MustCradle("device", "revoke", string(first[1].ID), "--reason", "keyCompromise: stolen")
	for _, log := range []string{world.Account, "provider"} {
		w.MustCradle("audit", "export", "--account", log, "--out", w.Path(log+".jsonl"))
	}
	power.Off()
	if code := w.Server().Stop(); code != 0 {
		t.Fatalf("cradle serve ended with %d", code)
	}
	lost := w.Data

	// What cannot be restored is refused by its name.
	refuse(w, "is not empty: it holds", "restore", archive, "--data", lost)
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	w.Write("cut.backup", string(b[:len(b)-100]))
	refuse(w, "damaged", "restore", w.Path("cut.backup"), "--data", w.Path("nowhere"))
	refuse(w, "damaged", "restore", w.Path("acme.jsonl"), "--data", w.Path("nowhere"))
	if _, err := os.Stat(w.Path("nowhere")); err == nil {
		t.Error("a refused restore left its folder")
	}

	w.Data = w.Path("restored")
	w.Must("cradle", "restore", archive, "--data", w.Data)
	refuse(w, "copy the key-encryption-key", "restore", "catch-up", "--data", w.Data, "--export", w.Path("acme.jsonl"))
	copyFile(t, filepath.Join(lost, "key-encryption-key"), filepath.Join(w.Data, "key-encryption-key"))

	// It starts, and does nothing that could contradict the world.
	w.Start()
	refuse(w, "serve runs on", "restore", "catch-up", "--data", w.Data, "--export", w.Path("acme.jsonl"))
	refuse(w, "has not caught up", "device", "revoke", string(first[0].ID), "--reason", "x", "--data", w.Data)
	refuse(w, "has not caught up", "order", "withdraw", world.Order, "--reason", "x", "--data", w.Data)
	old, late := w.Client(first[0]), w.Client(second[0])
	ask := func(c *world.Client) error {
		_, err := w.EST(cradle.Operational, c.Certificate(device.ByLDevID)).Nonce(t.Context(), cradle.OIDActivation, evidence.Claim{Serial: c.Unit.Serial})
		return err
	}
	for _, c := range []*world.Client{old, late} {
		if err := ask(c); err == nil || !strings.Contains(err.Error(), "has not caught up") {
			t.Errorf("EST answers %s while the log is closed: %v", c.Unit.ID, err)
		}
	}
	st := world.Decode[admin.Status](t, w.MustCradle("status"))
	if st.Services[0].Healthy || !strings.Contains(st.Services[0].Detail, "restored from a backup") {
		t.Errorf("status: %+v", st.Services[0])
	}
	if s := world.Decode[struct{ Closed []struct{ Log string } }](t, w.Must("cradle", "restore", "status", "--data", w.Data, "--json")); len(s.Closed) != 2 {
		t.Errorf("closed: %+v", s)
	}
	w.Server().Stop()

	// Had nobody a newer export: what came after the backup would be lost, and said to be.
	caught := w.Data
	w.Data = w.Path("without-export")
	w.Must("cradle", "restore", archive, "--data", w.Data)
	copyFile(t, filepath.Join(lost, "key-encryption-key"), filepath.Join(w.Data, "key-encryption-key"))
	w.Must("cradle", "restore", "declare-lost", "--data", w.Data, "--reason", "the auditor's disk is gone too")
	w.Start()
	if err := ask(old); err != nil {
		t.Errorf("a device that the backup knows: %v", err)
	}
	if err := ask(late); err == nil || !strings.Contains(err.Error(), "in quarantine") {
		t.Errorf("a device that the backup does not know: %v", err)
	}
	if o := world.Decode[admin.Order](t, w.MustCradle("order", "show", world.Order)); o.State != "frozen" {
		t.Errorf("order: %+v", o)
	}
	if o := world.Decode[admin.Order](t, w.MustCradle("order", "thaw", world.Order, "--used", "3", "--reason", "the OEM's list")); o.State != "open" || o.Used != 3 {
		t.Errorf("order: %+v", o)
	}
	w.MustCradle("audit", "export", "--account", world.Account, "--out", w.Path("lost.jsonl"))
	w.Must("cradle", "audit", "verify", w.Path("lost.jsonl"))
	if r := w.Run("cradle", "audit", "verify", w.Path("lost.jsonl"), "--previous", w.Path("acme.jsonl")); r.Code != 1 || !strings.Contains(r.Stdout, "log-lost") {
		t.Errorf("an auditor with a newer checkpoint sees %s", r.Stdout)
	}
	w.Server().Stop()
	w.Data = caught

	bad := strings.Replace(string(read(t, w.Path("acme.jsonl"))), string(second[0].ID), string(first[0].ID), 1)
	w.Write("bad.jsonl", bad)
	refuse(w, "nothing of it was taken over", "restore", "catch-up", "--data", w.Data, "--export", w.Path("bad.jsonl"))
	w.Must("cradle", "restore", "catch-up", "--data", w.Data, "--export", w.Path("acme.jsonl"), "--export", w.Path("provider.jsonl"))
	if s := world.Decode[struct{ Open bool }](t, w.Must("cradle", "restore", "status", "--data", w.Data, "--json")); !s.Open {
		t.Error("it is not open")
	}
	w.Start()

	// Nothing un-revoked, no quota given back, the log the very one that auditors know.
	if d := world.Decode[admin.Device](t, w.MustCradle("device", "show", string(first[1].ID))); d.State != "revoked" {
		t.Errorf("the device that was revoked since the backup is %s", d.State)
	}
	if o := world.Decode[admin.Order](t, w.MustCradle("order", "show", world.Order)); o.Used != 3 || o.State != "open" {
		t.Errorf("order: %+v", o)
	}
	w.MustCradle("audit", "export", "--account", world.Account, "--out", w.Path("after.jsonl"))
	w.Must("cradle", "audit", "verify", w.Path("after.jsonl"), "--previous", w.Path("acme.jsonl"))
	// Who was admitted works, also who came after the backup: the registrations that were lost are made again by the device.
	old.Close()
	late.Close()
	power = w.Devices()
	power.PowerOn(first[0], second[0])
	w.AwaitConnected(2*time.Minute, first[0], second[0])
	for _, u := range []*world.Unit{first[0], second[0]} {
		w.Wait(string(u.ID)+" is heard", time.Minute, func() (bool, string) {
			for _, e := range w.Events() {
				if e.Device == u.ID {
					return true, ""
				}
			}
			return false, "no event"
		})
	}
}

// refuse runs a verb that is refused with these words.
func refuse(w *world.World, words string, args ...string) {
	w.T.Helper()
	if r := w.Run("cradle", args...); r.Code != 1 || !strings.Contains(r.Stderr, words) {
		w.T.Errorf("%s: exit %d, %s; want 1 and %q", r.Line, r.Code, r.Stderr, words)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, read(t, from), 0o600); err != nil {
		t.Fatal(err)
	}
}
