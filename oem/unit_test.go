package oem_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/oem"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// checkUnit verifies all that the line left of a unit: folder, settings, NV.
func checkUnit(t *testing.T, p *fakeProvider, u *oem.Unit, socket, dir string) {
	t.Helper()
	a, err := settings.Load(filepath.Join(dir, "agent.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if a.TPM != socket || a.Device != u.Device || a.Serial != u.Serial || a.Account != "acme" || a.Provider.URL != p.url() || !a.Made.Equal(u.Made) {
		t.Errorf("settings %+v of unit %+v", a, u)
	}
	for file, want := range map[string]string{a.Anchors.Services: p.services.pem(), a.Anchors.Account: p.root.pem()} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s: %v", file, err)
		}
	}
	chain, err := os.ReadFile(a.IDevID)
	if err != nil || strings.Count(string(chain), "BEGIN CERTIFICATE") != 2 || !strings.HasSuffix(string(chain), p.idevid.pem()) {
		t.Errorf("idevid.pem: %v %s", err, chain)
	}
	tpm, err := tpmkey.Open(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	for index, want := range map[uint32]string{tpmkey.NVIDevID: u.IDevID, tpmkey.NVIAK: u.IAK} {
		if der, err := tpm.ReadCertificate(t.Context(), index); err != nil || digest(der) != want {
			t.Errorf("NV %x: %v", index, err)
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if left, _ := filepath.Glob(filepath.Join(d, durable.TempPrefix+"*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
}

func TestPersonalise(t *testing.T) {
	tpms := newTPMs(t, 3)
	s, p := newStation(t)
	_, doc := p.order("ord-1", nil)
	accept(t, s, doc)
	dir := filepath.Join(t.TempDir(), "unit1")
	r := oem.UnitRequest{Order: "ord-1", Serial: "SN01", TPM: tpms[0], Dir: dir}
	u, err := s.Personalise(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if u.Device != "acme-sn01" || p.issued != 2 {
		t.Errorf("%+v, %d certificates", u, p.issued)
	}
	checkUnit(t, p, u, tpms[0], dir)

	// Again: the same unit, no new certificate, wherever its folder is.
	p.refuse = func(path string) *cradle.Error { return cradle.Errorf(cradle.Forbidden, "%s was called", path) }
	if again, err := s.Personalise(t.Context(), r); err != nil || *again != *u {
		t.Errorf("again: %+v %v", again, err)
	}
	p.refuse = nil

	for name, c := range map[string]struct {
		r    oem.UnitRequest
		kind cradle.Kind
		want string
	}{
		"TPM of another unit":    {oem.UnitRequest{"ord-1", "SN02", tpms[0], dir + "x"}, cradle.Conflict, "already unit SN01"},
		"serial of another unit": {oem.UnitRequest{"ord-1", "SN01", tpms[1], dir + "x"}, cradle.Conflict, "serial SN01 is the unit with endorsement key"},
		"folder of another unit": {oem.UnitRequest{"ord-1", "SN03", tpms[1], dir}, cradle.Conflict, "holds unit SN01"},
		"serial outside":         {oem.UnitRequest{"ord-1", "SN10", tpms[1], dir + "x"}, cradle.Forbidden, "outside the order's range"},
		"order unknown":          {oem.UnitRequest{"ord-2", "SN02", tpms[1], dir + "x"}, cradle.NotFound, "not accepted in this folder"},
		"order traversal":        {oem.UnitRequest{"../ord-1", "SN02", tpms[1], dir + "x"}, cradle.Invalid, "order"},
		"no TPM":                 {oem.UnitRequest{"ord-1", "SN02", dir + "/no", dir + "x"}, cradle.NotFound, ""},
	} {
		_, err := s.Personalise(t.Context(), c.r)
		wantRefusal(t, name, err, c.kind, c.want)
		if _, err := os.Stat(dir + "x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a folder was made", name)
		}
	}
	// A unit that the provider refuses keeps neither serial nor TPM.
	p.refuse = func(string) *cradle.Error {
		return cradle.Errorf(cradle.Forbidden, "TPM maker is not allowed").WithHint("another TPM")
	}
	_, err = s.Personalise(t.Context(), oem.UnitRequest{"ord-1", "SN02", tpms[1], dir + "x"})
	wantRefusal(t, "maker", err, cradle.Forbidden, "TPM maker is not allowed")
	p.refuse = nil
	if _, err := s.Personalise(t.Context(), oem.UnitRequest{"ord-1", "SN03", tpms[1], dir + "x"}); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	// One that has a certificate already keeps both.
	p.refuse = func(path string) *cradle.Error {
		if strings.Contains(path, "acme-idevid") {
			return cradle.Errorf(cradle.Forbidden, "withdrawn").WithHint("ask")
		}
		return nil
	}
	_, err = s.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: "SN07", TPM: tpms[2], Dir: dir + "z"})
	wantRefusal(t, "half made", err, cradle.Forbidden, "withdrawn")
	p.refuse = nil
	_, err = s.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: "SN08", TPM: tpms[2], Dir: dir + "z"})
	wantRefusal(t, "half made, other serial", err, cradle.Conflict, "already unit SN07")
	if _, err := s.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: "SN07", TPM: tpms[2], Dir: dir + "z"}); err != nil {
		t.Errorf("half made: %v", err)
	}
	// An expired order makes no new unit.
	late := *s
	late.Now = func() time.Time { return time.Now().AddDate(1, 0, 1) }
	if _, err := late.Personalise(t.Context(), oem.UnitRequest{"ord-1", "SN05", tpms[1], dir + "y"}); cradle.KindOf(err) != cradle.Unauthorized && cradle.KindOf(err) != cradle.Forbidden {
		t.Errorf("expired: %v", err)
	}
}

// Power is cut after each durable step; run again, it is the same unit with the same two certificates.
func TestPersonaliseStoppedAtEachStep(t *testing.T) {
	tpm := newTPMs(t, 1)[0]
	for n := 1; ; n++ {
		s, p := newStation(t)
		_, doc := p.order("ord-1", nil)
		accept(t, s, doc)
		dir := filepath.Join(t.TempDir(), "unit")
		r := oem.UnitRequest{Order: "ord-1", Serial: "SN01", TPM: tpm, Dir: dir}
		clear(t, tpm)
		cut, steps, last := errors.New("power cut"), 0, ""
		s.Step = func(step string) error {
			if steps++; steps == n {
				last = step
				return cut
			}
			return nil
		}
		_, err := s.Personalise(t.Context(), r)
		if last == "" {
			if err != nil || steps < 12 {
				t.Errorf("after %d steps: %v", steps, err)
			}
			return
		}
		if !errors.Is(err, cut) {
			t.Fatalf("step %s: %v", last, err)
		}
		s.Step = nil
		if other := (oem.UnitRequest{Order: "ord-1", Serial: "SN02", TPM: tpm, Dir: dir + "x"}); last != "index" {
			_, err := s.Personalise(t.Context(), other)
			wantRefusal(t, last, err, cradle.Conflict, "already unit SN01")
		}
		u, err := s.Personalise(t.Context(), r)
		if err != nil {
			t.Fatalf("again after %s: %v", last, err)
		}
		if p.issued != 2 {
			t.Errorf("after %s: %d certificates, want 2", last, p.issued)
		}
		checkUnit(t, p, u, tpm, dir)
	}
}

// clear removes the certificates of the round before: each round has an account of its own.
func clear(t *testing.T, socket string) {
	t.Helper()
	removeNV(t, socket, tpmkey.NVIDevID, tpmkey.NVIAK)
}

// What the provider returns is verified before it reaches the unit.
func TestPersonaliseRefusesWrongCertificates(t *testing.T) {
	tpm := newTPMs(t, 1)[0]
	stranger := newAuthority(t, "IDevID CA", newAuthority(t, "root", nil))
	for name, c := range map[string]struct {
		wrong func(*fakeProvider, *x509.Certificate) *authority
		want  string
	}{
		"another root": {func(*fakeProvider, *x509.Certificate) *authority { return stranger }, "does not chain"},
		"another device": {func(p *fakeProvider, c *x509.Certificate) *authority {
			c.Subject.CommonName = "acme-sn02"
			return p.idevid
		}, "not for device acme-sn01"},
		"another account": {func(p *fakeProvider, c *x509.Certificate) *authority {
			c.Subject.Organization[0] = "other"
			return p.idevid
		}, "not for device acme-sn01"},
		"expired": {func(p *fakeProvider, c *x509.Certificate) *authority {
			c.NotAfter = c.NotBefore.Add(1)
			return p.idevid
		}, "expired"},
	} {
		s, p := newStation(t)
		_, doc := p.order("ord-1", nil)
		accept(t, s, doc)
		p.wrong = func(cert *x509.Certificate) *authority { return c.wrong(p, cert) }
		dir := filepath.Join(t.TempDir(), "u")
		_, err := s.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: "SN01", TPM: tpm, Dir: dir})
		wantRefusal(t, name, err, cradle.Conflict, c.want)
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the unit's folder was made", name)
		}
	}
}

// The provider is away or busy for a moment: the line waits and goes on.
func TestPersonaliseWaitsForProvider(t *testing.T) {
	tpm := newTPMs(t, 1)[0]
	s, p := newStation(t)
	_, doc := p.order("ord-1", nil)
	accept(t, s, doc)
	n := 0
	p.refuse = func(string) *cradle.Error {
		if n++; n <= 2 {
			return cradle.Errorf(cradle.Busy, "store is away")
		}
		return nil
	}
	u, err := s.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: "SN01", TPM: tpm, Dir: filepath.Join(t.TempDir(), "u")})
	if err != nil || u.Serial != "SN01" {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p.refuse = func(string) *cradle.Error { cancel(); return cradle.Errorf(cradle.Busy, "store is away") }
	removeNV(t, tpm, tpmkey.NVIDevID, tpmkey.NVIAK)
	if err := os.RemoveAll(filepath.Join(s.Dir, "orders", "ord-1", "units")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Personalise(ctx, oem.UnitRequest{Order: "ord-1", Serial: "SN01", TPM: tpm, Dir: filepath.Join(t.TempDir(), "u")}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestCloseLot(t *testing.T) {
	tpms := newTPMs(t, 3)
	s, p := newStation(t)
	o, doc := p.order("ord-1", nil)
	accept(t, s, doc)
	units, out := t.TempDir(), filepath.Join(t.TempDir(), "lot")
	make := func(i int) {
		t.Helper()
		if _, err := s.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: fmt.Sprintf("SN0%d", i+1), TPM: tpms[i], Dir: filepath.Join(units, fmt.Sprint(i))}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.CloseLot(t.Context(), "ord-1", out)
	wantRefusal(t, "empty", err, cradle.Conflict, "no unit")
	make(0)
	make(1)

	// Stopped after each step, and once with the provider's answer lost.
	cut := errors.New("power cut")
	for _, step := range []string{"custody", "report", "answered"} {
		s.Step = func(name string) error {
			if name == step {
				return cut
			}
			return nil
		}
		if _, err := s.CloseLot(t.Context(), "ord-1", out); !errors.Is(err, cut) {
			t.Fatalf("%s: %v", step, err)
		}
	}
	s.Step = nil
	make(2) // comes too late for the lot that is closed already
	lot, err := s.CloseLot(t.Context(), "ord-1", out)
	if err != nil {
		t.Fatal(err)
	}
	if lot.Units != 2 || lot.Remaining != 1 || lot.State != order.LotAccepted || len(p.lots) != 1 {
		t.Errorf("%+v, %d lots", lot, len(p.lots))
	}
	report, err := os.ReadFile(filepath.Join(out, "report.jws"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := custody.VerifyReport(report, p.oem.Lot)
	if err != nil || r.Lot != lot.ID || len(custody.Match(o, r, 0)) > 0 {
		t.Errorf("report %+v: %v, odd %v", r, err, custody.Match(o, r, 0))
	}
	if _, err := custody.VerifyReport(report, p.oem.Order); err == nil {
		t.Error("the report verifies by the order key")
	}
	handover, err := os.ReadFile(filepath.Join(out, "custody.jws"))
	if err != nil {
		t.Fatal(err)
	}
	keys := func(c custody.Party) (*ecdsa.PublicKey, error) {
		if c == (custody.Party{Role: custody.OEM, Name: "makers"}) {
			return p.oem.Order, nil
		}
		return nil, cradle.Errorf(cradle.NotFound, "no %s", c)
	}
	if h, err := custody.VerifyChain(r, [][]byte{handover}, keys, o); err != nil || h.Holder.Name != "acme" {
		t.Errorf("custody %+v: %v", h, err)
	}

	p.lotState = order.LotWaiting
	second, err := s.CloseLot(t.Context(), "ord-1", out)
	if err != nil || second.ID == lot.ID || second.Units != 1 || second.Remaining != 0 || second.State != order.LotWaiting {
		t.Errorf("second lot %+v: %v", second, err)
	}
	if third, err := s.CloseLot(t.Context(), "ord-1", out); err != nil || len(p.lots) != 2 || third.Remaining != 0 {
		t.Errorf("closing without a new unit: %+v %v", third, err)
	}
	if v, err := s.Show("ord-1"); err != nil || v.Made != 3 || v.InLots != 3 || len(v.Lots) != 2 {
		t.Errorf("%+v %v", v, err)
	}
}

// Several lines work in one folder at once: each makes its unit; two TPMs that want one serial, and
// two serials that want one TPM, make one unit each time.
func TestParallelLines(t *testing.T) {
	tpms := newTPMs(t, 5)
	s, p := newStation(t)
	_, doc := p.order("ord-1", nil)
	accept(t, s, doc)
	units := t.TempDir()
	for name, lines := range map[string]struct {
		requests [][2]string // serial, TPM
		made     int
	}{
		"apart":      {[][2]string{{"SN01", tpms[0]}, {"SN02", tpms[1]}}, 2},
		"one serial": {[][2]string{{"SN05", tpms[2]}, {"SN05", tpms[3]}}, 1},
		"one TPM":    {[][2]string{{"SN06", tpms[4]}, {"SN07", tpms[4]}}, 1},
		"one unit":   {[][2]string{{"SN01", tpms[0]}, {"SN02", tpms[1]}, {"SN01", tpms[0]}}, 2}, // the same again
	} {
		errs := make(chan error)
		for i, r := range lines.requests {
			go func() {
				line := &oem.Station{Dir: s.Dir}
				_, err := line.Personalise(t.Context(), oem.UnitRequest{Order: "ord-1", Serial: r[0], TPM: r[1], Dir: filepath.Join(units, name, fmt.Sprint(i))})
				errs <- err
			}()
		}
		made := 0
		for range lines.requests {
			if err := <-errs; err == nil {
				made++
			} else if k := cradle.KindOf(err); k != cradle.Conflict && k != cradle.Busy {
				t.Errorf("%s: %v", name, err)
			}
		}
		if made < lines.made || name != "one unit" && made > lines.made {
			t.Errorf("%s: %d made, want %d", name, made, lines.made)
		}
	}
	if v, err := s.Show("ord-1"); err != nil || v.Made != 4 || p.issued != 8 {
		t.Errorf("%d units, %d certificates: %v", v.Made, p.issued, err)
	}
}
