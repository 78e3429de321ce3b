package provider_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

// backup copies the store as an operator would, and returns how to make a store of the copy.
func (r *rig) backup() (restore func() string) {
	r.t.Helper()
	dir := r.t.TempDir()
	if !strings.HasPrefix(r.url, "postgres") {
		kept := filepath.Join(dir, "kept.db")
		if err := sqldb.Snapshot(r.t.Context(), []sqldb.Copy{{From: r.url, To: kept}}, nil); err != nil {
			r.t.Fatal(err)
		}
		return func() string {
			to := filepath.Join(r.t.TempDir(), "restored.db")
			if err := sqldb.Snapshot(r.t.Context(), []sqldb.Copy{{From: kept, To: to}}, nil); err != nil {
				r.t.Fatal(err)
			}
			return to
		}
	}
	kept := filepath.Join(dir, "kept.dump")
	run := func(program string, args ...string) {
		r.t.Helper()
		testenv.Require(r.t, program)
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			r.t.Fatalf("%s: %v\n%s", program, err, out)
		}
	}
	run("pg_dump", "--format=custom", "--file="+kept, r.url)
	return func() string {
		to := testenv.Postgres(r.t)
		run("pg_restore", "--exit-on-error", "--single-transaction", "--dbname="+to, kept)
		return to
	}
}

// restored is a store from a backup, marked.
type restored struct {
	*rig
	db *providerdb.DB
}

func (r *rig) restored(url string) *restored {
	r.t.Helper()
	db, err := providerdb.Open(r.t.Context(), url)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { db.Close() })
	if err := db.MarkRestored(r.t.Context(), r.now()); err != nil {
		r.t.Fatal(err)
	}
	again := &rig{t: r.t, url: url, vault: r.vault, db: db, maker: r.maker, account: r.account, oem: r.oem, oemKey: r.oemKey, lotKey: r.lotKey, roots: r.roots}
	again.offset.Store(r.offset.Load())
	x := &restored{again, db}
	x.open()
	return x
}

// open starts a provider on the store, as cradle serve does after an operator's work.
func (x *restored) open() {
	x.t.Helper()
	p, err := provider.New(x.t.Context(), provider.Config{Store: x.db, Vault: x.vault, Replica: "r2", Now: x.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		x.t.Fatal(err)
	}
	x.p = p
}

func (x *restored) recovery() *provider.Recovery {
	x.t.Helper()
	r, err := provider.OpenRecovery(x.t.Context(), x.db, x.vault, x.now)
	if err != nil {
		x.t.Fatal(err)
	}
	return r
}

func (x *restored) catchUp(export []byte) (provider.CaughtUp, []ledger.Finding, error) {
	x.t.Helper()
	return x.recovery().CatchUp(x.t.Context(), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(export)), nil })
}

// closed asserts that nothing happens that the log would have to record.
func (x *restored) closed(u *unit, o cradle.OrderID) {
	x.t.Helper()
	const words = "has not caught up"
	_, err := x.renew(u, u.op)
	refused(x.t, err, cradle.Busy, words)
	if cradle.RetryAfter(err) <= 0 {
		x.t.Error("a device is not told when to ask again")
	}
	_, err = x.p.ChangeState(x.t.Context(), "acme", cradle.DeviceID(u.op.Subject.CommonName), provider.Release, "x")
	if err == nil {
		x.t.Error("a standing was changed")
	}
	_, err = x.p.WithdrawOrder(x.t.Context(), o, "x")
	refused(x.t, err, cradle.Busy, words)
	_, err = x.p.CreateAccount(x.t.Context(), "fresh", spki(x.t, newKey(x.t)), nil, provider.CAs{}) // what is lost may have one of that name
	refused(x.t, err, cradle.Busy, words)
	_, err = x.p.After(x.t.Context(), 0, false)
	refused(x.t, err, cradle.Busy, words)
	_, err = x.p.CertStatus(x.t.Context(), nil, ca.SerialString(u.op.SerialNumber))
	refused(x.t, err, cradle.Busy, words)
	_, _, err = x.p.CRL(x.t.Context(), "any", 1)
	refused(x.t, err, cradle.Busy, words)
	if err := x.p.Run(expired(x.t)); err != nil { // signs nothing
		x.t.Error(err)
	}
}

func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// loss is a story: a backup, then work that the backup does not know.
type loss struct {
	*rig
	order      cradle.OrderID
	signed     *order.Order
	station    *x509.Certificate
	kept       func() string
	old, new   *unit // made before and after the backup
	revoked    *unit
	renewed    *unit // old, with the credentials that it got after the backup
	spent      provider.Request
	before     []byte // export of the time of the backup
	after      []byte
	installed  []byte // export of the installation's log
	checkpoint []byte // newest
	feed       int64
}

func newLoss(t *testing.T, url string) *loss {
	l := &loss{rig: newRig(t, url)}
	o := l.rig.order(nil)
	l.order, l.signed = o.ID, o
	station := l.rig.station(o)
	l.station = station
	l.old, l.revoked = l.active(o, station, "SN0001"), l.active(o, station, "SN0002")
	k, err := l.old.NewOperational()
	if err != nil {
		t.Fatal(err)
	}
	// A nonce of before the backup, spent after it.
	if l.spent, err = l.request(l.p, l.old, attempt{profile: cradle.Operational, peer: l.old.ldevid, key: k}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.p.AddOperator(t.Context(), provider.Operator{Account: "acme", Name: "alice", Role: "operator"}); err != nil {
		t.Fatal(err)
	}
	l.before = l.export()
	l.kept = l.backup()

	if _, err := l.p.Enroll(t.Context(), l.spent); err != nil {
		t.Fatal(err)
	}
	renewed := *l.old
	l.renewed = &renewed
	if renewed.op, err = l.renew(l.old, l.old.op); err != nil {
		t.Fatal(err)
	}
	if _, err = l.renew(&renewed, renewed.op); err != nil { // it is in use
		t.Fatal(err)
	}
	l.new = l.active(o, station, "SN0003")
	if _, _, err := l.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(l.new.ldevid.SerialNumber), provider.Suspend, "looked at"); err != nil {
		t.Fatal(err)
	}
	ev, err := l.p.ChangeState(t.Context(), "acme", cradle.DeviceID(l.revoked.op.Subject.CommonName), provider.Revoke, "keyCompromise: stolen")
	if err != nil {
		t.Fatal(err)
	}
	l.feed = ev.Seq
	if err := l.p.RemoveOperator(t.Context(), "acme", "alice"); err != nil {
		t.Fatal(err)
	}
	later, err := newMaker()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.p.ImportMaker(t.Context(), "later", cradle.Simulator, [][]byte{later.Cert.Raw}); err != nil {
		t.Fatal(err)
	}
	l.after = l.export()
	h, err := l.p.LogHead(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	l.checkpoint = h.Checkpoint
	var b bytes.Buffer
	if err := l.p.Export(t.Context(), provider.InstallationLog, ledger.NewWriter(&b)); err != nil {
		t.Fatal(err)
	}
	l.installed = b.Bytes()
	return l
}

// TestCatchUp: an older backup is restored; with a newer export of the log it is what the lost store was.
func TestCatchUp(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		if strings.HasPrefix(url, "postgres") {
			testenv.Long(t)
		}
		l := newLoss(t, url)
		x := l.restored(l.kept())
		x.closed(l.old, l.order)

		// What is known outside is newer: the log stays closed, and an old export does not open it.
		u, err := x.recovery().Known(t.Context(), "acme", l.checkpoint)
		if err != nil || u.Open {
			t.Fatalf("%+v, %v", u, err)
		}
		u, findings, err := x.catchUp(l.before)
		if err != nil || len(findings) > 0 || u.Open || u.Leaves != 0 {
			t.Fatalf("an export of the backup's time: %+v, %v, %v", u, findings, err)
		}
		x.closed(l.old, l.order)
		for name, bad := range map[string][]byte{"changed": bytes.Replace(l.after, []byte("acme-sn0003"), []byte("acme-sn0009"), 1), "cut": l.after[:len(l.after)/2],
			"of another installation": other(t)} {
			u, findings, err := x.catchUp(bad)
			if err == nil && len(findings) == 0 {
				t.Errorf("an export that is %s was taken: %+v", name, u)
			}
		}
		x.closed(l.old, l.order)

		u, findings, err = x.catchUp(l.after)
		if err != nil || len(findings) > 0 || !u.Open || u.Leaves == 0 || u.Devices != 1 || u.Feed != l.feed {
			t.Fatalf("%+v, %v, %v", u, findings, err)
		}
		x.open()
		if _, err := x.p.After(t.Context(), 0, false); cradle.KindOf(err) != cradle.Busy { // the installation's log still waits
			t.Errorf("the feed speaks while a log is closed: %v", err)
		}
		if u, findings, err = x.catchUp(l.installed); err != nil || len(findings) > 0 || !u.Open || len(u.Todo) > 0 {
			t.Fatalf("%+v, %v, %v", u, findings, err)
		}
		x.open()

		// Nothing un-revoked.
		_, err = x.renew(l.revoked, l.revoked.op)
		refused(t, err, cradle.Forbidden, "revoked")
		_, err = x.enrollKey(l.new, cradle.Operational, l.new.ldevid)
		refused(t, err, cradle.Forbidden, "on hold")
		env, err := x.p.After(t.Context(), 0, false)
		if err != nil {
			t.Fatal(err)
		}
		s, err := status.Verify(env, l.p.FeedKey(), 0)
		if err != nil || s.Newest != l.feed || s.Events[l.feed-1].State != cradle.Revoked {
			t.Errorf("the feed after the restore: %+v, %v", s, err)
		}
		if ops, err := x.p.OperatorList(t.Context()); err != nil || len(ops) != 0 {
			t.Errorf("an operator who was removed is back: %v, %v", ops, err)
		}
		// No challenge given back.
		_, err = x.p.Enroll(t.Context(), l.spent)
		refused(t, err, cradle.Forbidden, "not made here")
		// No quota given back.
		if o, err := x.p.Order(t.Context(), l.order); err != nil || o.Used != 3 || o.State != provider.OrderOpen {
			t.Errorf("order: %+v, %v", o, err)
		}
		// What was issued since is known, in its place; what was superseded stays so.
		if _, err := x.renew(l.new, l.new.op); err != nil {
			t.Errorf("a device made since the backup: %v", err)
		}
		if _, err := x.renew(l.renewed, l.renewed.op); err != nil {
			t.Errorf("a certificate issued since the backup: %v", err)
		}
		_, err = x.renew(l.old, l.old.op)
		refused(t, err, cradle.Forbidden, "superseded")
		// The log goes on where it was.
		x.consistent(l.checkpoint)
		x.check()
		if _, _, err := x.catchUp(l.after); cradle.KindOf(err) != cradle.Conflict {
			t.Errorf("catching up while open: %v", err)
		}
	})
}

// consistent asserts that the log contains a checkpoint that was kept outside.
func (x *restored) consistent(checkpoint []byte) {
	x.t.Helper()
	findings, _, err := ledger.Verify(bytes.NewReader(x.export()), ledger.Options{Checkpoints: [][]byte{checkpoint}})
	if err != nil || len(findings) > 0 {
		x.t.Errorf("with the checkpoint that was kept: %v, %v", findings, err)
	}
}

func other(t *testing.T) []byte {
	r := newRig(t, t.TempDir()+"/other.db")
	return r.export()
}

// TestNothingLost: a checkpoint that was kept shows that the backup is the newest there was.
func TestNothingLost(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	restore := r.backup() // before any checkpoint
	r.export()
	x := r.restored(restore())
	x.closed(u, o.ID)
	for _, log := range []string{"acme", provider.InstallationLog} {
		h, err := r.p.LogHead(t.Context(), log)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := x.recovery().Known(t.Context(), log, h.Checkpoint); err != nil || !c.Open {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	x.open()
	if _, err := x.renew(u, u.op); err != nil {
		t.Error(err)
	}
	x.check()
	_, err := x.recovery().Known(t.Context(), "nobody", nil)
	refused(t, err, cradle.NotFound, "made after the backup")
}

// TestDeclareLost: nobody has what came after the backup. What is unknown is refused by name, orders wait for a count,
// and an auditor with a newer checkpoint is told of the loss.
// TestCatchUpExternalRoot: a root without a key here was not made after the backup, and has lost nothing.
func TestCatchUpExternalRoot(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.certify(newCeremony(t, "root"), provider.OperationalCA, "", cradle.Production, false)
		before := must[[]provider.Authority](t)(r.db.Authorities(t.Context()))
		x := r.restored(r.backup()())
		u, findings, err := x.catchUp(r.export())
		if err != nil || len(findings) > 0 || !u.Open || len(u.Todo) > 0 {
			t.Fatalf("%+v, %v, %v", u, findings, err)
		}
		x.open()
		if after := must[[]provider.Authority](t)(x.db.Authorities(t.Context())); len(after) != len(before) {
			t.Errorf("%d CAs before, %d after", len(before), len(after))
		}
	})
}

func TestDeclareLost(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		if strings.HasPrefix(url, "postgres") {
			testenv.Long(t)
		}
		l := newLoss(t, url)
		x := l.restored(l.kept())
		if _, err := x.recovery().DeclareLost(t.Context(), "acme", "", 0); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("without a reason: %v", err)
		}
		if u, err := x.recovery().Known(t.Context(), "acme", l.checkpoint); err != nil || u.Open {
			t.Fatalf("%+v, %v", u, err)
		}
		ended, err := x.recovery().DeclareLost(t.Context(), "acme", "the exports burned too", l.feed)
		if err != nil || len(ended.Orders) != 1 || ended.Orders[0] != l.order || len(ended.Operators) != 1 {
			t.Fatalf("%+v, %v", ended, err)
		}
		if ops, err := x.p.OperatorList(t.Context()); err != nil || len(ops) != 0 {
			t.Errorf("an operator who may have been removed since is back: %v, %v", ops, err)
		}
		if _, err := x.recovery().DeclareLost(t.Context(), provider.InstallationLog, "the exports burned too", l.feed); err != nil {
			t.Fatal(err)
		}
		x.open()
		// Unknown certificates are in quarantine; a device that the backup knows heals by attesting afresh.
		_, err = x.renew(l.new, l.new.op)
		refused(t, err, cradle.Forbidden, "in quarantine")
		_, err = x.enrollKey(l.new, cradle.LDevID, l.new.idevid)
		refused(t, err, cradle.Forbidden, "in quarantine")
		_, err = x.renew(l.renewed, l.renewed.op)
		refused(t, err, cradle.Forbidden, "in quarantine")
		healed, err := x.enrollKey(l.renewed, cradle.Operational, l.renewed.ldevid)
		if err != nil {
			t.Fatalf("attesting afresh: %v", err)
		}
		if _, err := x.renew(l.renewed, healed); err != nil {
			t.Error(err)
		}
		// No challenge given back, and no quota.
		_, err = x.p.Enroll(t.Context(), l.spent)
		refused(t, err, cradle.Forbidden, "not made here")
		refused(t, x.birth(x.unit(l.signed, "SN0004"), l.station), cradle.Forbidden, "frozen")
		if row, err := x.p.Order(t.Context(), l.order); err != nil || row.State != provider.OrderFrozen {
			t.Errorf("order: %+v, %v", row, err)
		}
		for used, want := range map[int64]cradle.Kind{1: cradle.Conflict, 11: cradle.Conflict} {
			if _, err := x.p.ThawOrder(t.Context(), l.order, used, ""); cradle.KindOf(err) != want {
				t.Errorf("thawed with %d units: %v", used, err)
			}
		}
		x.check()
		x.open() // the order is not cached as it was
		row, err := x.p.ThawOrder(t.Context(), l.order, 3, "the OEM's list")
		if err != nil || row.State != provider.OrderOpen || row.Used != 3 {
			t.Fatalf("%+v, %v", row, err)
		}
		if err := x.birth(x.unit(l.signed, "SN0004"), l.station); err != nil {
			t.Errorf("a birth after the thaw: %v", err)
		}
		if _, err := x.p.ThawOrder(t.Context(), l.order, 3, ""); cradle.KindOf(err) != cradle.Conflict {
			t.Errorf("thawed twice: %v", err)
		}
		// The feed goes on above what followers know; whoever knows more is told.
		env, err := x.p.After(t.Context(), 0, false)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := status.Verify(env, l.p.FeedKey(), 0); err != nil || s.Newest < l.feed {
			t.Errorf("the feed after the loss: %+v, %v", s, err)
		}
		_, err = x.p.After(t.Context(), 1<<40, false)
		refused(t, err, cradle.Conflict, "was the store restored")
		ev, err := x.p.ChangeState(t.Context(), "acme", "acme-sn0002", provider.Revoke, "again")
		if err != nil || ev.Seq <= l.feed {
			t.Errorf("%+v, %v", ev, err)
		}
		x.check()
		// The auditor who kept a checkpoint of the lost leaves sees the loss by its name, as long as the log is shorter and
		// when it has grown past it.
		for range 2 {
			findings, _, err := ledger.Verify(bytes.NewReader(x.export()), ledger.Options{Checkpoints: [][]byte{l.checkpoint}})
			if err != nil || len(findings) != 1 || findings[0].Code != ledger.LogLost || !strings.Contains(findings[0].Detail, "the exports burned too") {
				t.Errorf("the auditor sees %v, %v", findings, err)
			}
			x.fill(100)
		}
	})
}

// TestUnknownSigned: a certificate that an issuing key of ours signed and that no record knows is refused as what it is.
func TestUnknownSigned(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	u := r.active(o, r.station(o), "SN0001")
	stranger := newRig(t, t.TempDir()+"/q.db")
	so := stranger.order(nil)
	su := stranger.active(so, stranger.station(so), "SN0001")
	_, err := r.renew(u, su.op) // same names, another installation's key
	refused(t, err, cradle.Unauthorized, "was not issued here")
}
