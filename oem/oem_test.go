package oem_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/swtpm"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/oem"
	"github.com/cradle-iot/cradle/protocol/order"
)

// newStation is an OEM's folder registered with a provider.
func newStation(t *testing.T) (*oem.Station, *fakeProvider) {
	t.Helper()
	p := newProvider(t)
	s := &oem.Station{Dir: filepath.Join(t.TempDir(), "oem")}
	var err error
	if p.oem, err = oem.Init(s.Dir); err != nil {
		t.Fatal(err)
	}
	return s, p
}

func accept(t *testing.T, s *oem.Station, doc []byte) *oem.Acceptance {
	t.Helper()
	a, err := s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: doc})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// newTPMs makes running software TPMs with EK certificates; returns their sockets.
func newTPMs(t *testing.T, n int) []string {
	t.Helper()
	testenv.Require(t, "swtpm")
	base, err := os.MkdirTemp("", "line") // short: a socket's path has at most 107 characters
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	m, err := tpmmaker.NewMaker(filepath.Join(base, "maker"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range n {
		tpm, err := swtpm.Start(t.Context(), filepath.Join(base, fmt.Sprint(i)), swtpm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tpm.Stop() })
		if _, err := m.Manufacture(t.Context(), tpm.Socket(), tpmmaker.Options{}); err != nil {
			t.Fatal(err)
		}
		out = append(out, tpm.Socket())
	}
	return out
}

// wantRefusal checks an error that a person at the line will read.
func wantRefusal(t *testing.T, name string, err error, kind cradle.Kind, text string) {
	t.Helper()
	if err == nil || cradle.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got %v (%v), want %q (%v)", name, err, cradle.KindOf(err), text, kind)
	} else if cli.Hint(err) == "" {
		t.Errorf("%s: no hint with %v", name, err)
	}
}

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "oem")
	first, err := oem.Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := oem.Init(dir)
	if err != nil || !again.Order.Equal(first.Order) || !again.Lot.Equal(first.Lot) {
		t.Errorf("second Init changed the keys: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "oem.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := order.ParseOEMPublic(b); err != nil || !p.Order.Equal(first.Order) {
		t.Errorf("oem.pub: %v", err)
	}
	for _, f := range []string{"order.key", "lot.key"} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st, err)
		}
	}
}

func TestAcceptOrder(t *testing.T) {
	s, p := newStation(t)
	o, doc := p.order("ord-1", nil)
	a := accept(t, s, doc)
	if !a.NewKey || a.KeyID != order.KeyID(&p.account.PublicKey) || len(a.Services) != 1 {
		t.Errorf("%+v", a)
	}
	if st, err := os.Stat(filepath.Join(a.Dir, "station.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("station.key: %v", err)
	}
	stored, err := os.ReadFile(filepath.Join(a.Dir, "order.jws"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := order.Verify(stored, &p.account.PublicKey, p.oem.Order); err != nil || got.Digest() != o.Digest() {
		t.Errorf("stored order: %v", err)
	}
	if again := accept(t, s, doc); again.NewKey {
		t.Error("the second time the account's key is new again")
	}
	v, err := s.Show("ord-1")
	if err != nil || v.Made != 0 || v.StationUntil.IsZero() || v.Digest != o.Digest() {
		t.Errorf("show: %+v %v", v, err)
	}

	_, expired := p.order("ord-2", func(o *order.Order) {
		o.NotBefore, o.NotAfter = o.NotBefore.AddDate(-1, 0, 0), o.NotBefore
	})
	_, same := p.order("ord-1", func(o *order.Order) { o.Quantity = 4 })
	tampered := append([]byte(nil), doc...)
	tampered[20] ^= 1
	accountKey := p.account
	p.account, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := p.order("ord-3", nil)
	foreignKey := p.account
	p.account = accountKey
	for name, c := range map[string]struct {
		r    oem.AcceptRequest
		kind cradle.Kind
		want string
	}{
		"expired":          {oem.AcceptRequest{Order: expired}, cradle.Forbidden, "expired"},
		"another version":  {oem.AcceptRequest{Order: same}, cradle.Conflict, "another order ord-1"},
		"another account":  {oem.AcceptRequest{Order: foreign}, cradle.Unauthorized, "the account has key"},
		"not the key told": {oem.AcceptRequest{Order: doc, AccountKey: &foreignKey.PublicKey}, cradle.Unauthorized, "the account has key"},
	} {
		_, err := s.AcceptOrder(t.Context(), c.r)
		wantRefusal(t, name, err, c.kind, c.want)
	}
	if _, err := s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: tampered}); err == nil {
		t.Error("a tampered order was accepted")
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "orders", "ord-3")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a refused order left something")
	}
	// The provider's TLS is verified by the anchors in the order.
	_, strange := p.order("ord-4", func(o *order.Order) { o.ServicesAnchors = newAuthority(t, "other services", nil).pem() })
	_, err = s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: strange})
	wantRefusal(t, "strange TLS", err, cradle.Busy, "certificate signed by unknown authority")
	// The provider's refusal comes through.
	p.refuse = func(string) *cradle.Error {
		return cradle.Errorf(cradle.Conflict, "order was withdrawn").WithHint("ask the account")
	}
	_, err = s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: doc})
	wantRefusal(t, "withdrawn", err, cradle.Conflict, "order was withdrawn")
	other := &oem.Station{Dir: t.TempDir()}
	_, err = other.AcceptOrder(t.Context(), oem.AcceptRequest{Order: doc})
	wantRefusal(t, "no folder", err, cradle.NotFound, "not an OEM's folder")
}

// Of an order that the provider refused nothing stays: the genuine one of that id, by another key, is accepted after it.
func TestRefusedOrderLeavesNothing(t *testing.T) {
	s, p := newStation(t)
	_, genuine := p.order("ord-1", nil)
	account := p.account
	var err error
	if p.account, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	_, forged := p.order("ord-1", func(o *order.Order) { o.Quantity = 4 })
	p.account = account
	for _, k := range []cradle.Kind{cradle.Unauthorized, cradle.Forbidden, cradle.Conflict, cradle.NotFound} {
		p.refuse = func(string) *cradle.Error {
			return cradle.Errorf(k, "not an order of ours").WithHint("ask the account")
		}
		_, err = s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: forged})
		wantRefusal(t, "forged", err, k, "not an order of ours")
	}
	for _, left := range []string{"orders/ord-1", "accounts/acme.pub"} {
		if _, err := os.Stat(filepath.Join(s.Dir, left)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the refused order left %s", left)
		}
	}
	p.refuse = nil
	if a := accept(t, s, genuine); !a.NewKey || a.KeyID != order.KeyID(&account.PublicKey) {
		t.Errorf("%+v", a)
	}
	// Refused later, it stays what it is.
	p.refuse = func(string) *cradle.Error {
		return cradle.Errorf(cradle.Conflict, "order was withdrawn").WithHint("ask the account")
	}
	_, err = s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: genuine})
	wantRefusal(t, "withdrawn", err, cradle.Conflict, "order was withdrawn")
	if v, err := s.Show("ord-1"); err != nil || v.StationUntil.IsZero() {
		t.Errorf("the accepted order is gone: %+v %v", v, err)
	}
}

// What the provider answers to an order is verified by the order before the line uses it.
func TestAcceptOrderRefusesWrongAnswers(t *testing.T) {
	s, p := newStation(t)
	_, doc := p.order("ord-1", nil)
	stranger := newAuthority(t, "stranger", nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ord-1"}}, &key.PublicKey, p.station)
	for name, c := range map[string]struct {
		change func(*order.Accepted)
		want   string
	}{
		"another order":         {func(a *order.Accepted) { a.Order = "ord-2" }, "for order ord-2"},
		"another key":           {func(a *order.Accepted) { a.StationCertificate = other }, "for another key"},
		"another issuer":        {func(a *order.Accepted) { a.StationIssuer = stranger.cert.Raw }, "not its issuer's"},
		"no certificate":        {func(a *order.Accepted) { a.StationCertificate = nil }, "station certificate"},
		"another label":         {func(a *order.Accepted) { a.IAKURL = a.IDevIDURL }, "not of label acme-iak"},
		"no TLS":                {func(a *order.Accepted) { a.IDevIDURL = "http" + strings.TrimPrefix(a.IDevIDURL, "https") }, "not https"},
		"strange IDevID issuer": {func(a *order.Accepted) { a.IDevIDChain = [][]byte{stranger.cert.Raw} }, "does not chain"},
		"no IDevID issuer":      {func(a *order.Accepted) { a.IDevIDChain = nil }, "0 IDevID issuers"},
	} {
		p.answer = c.change
		_, err := s.AcceptOrder(t.Context(), oem.AcceptRequest{Order: doc})
		wantRefusal(t, name, err, cradle.Invalid, c.want)
	}
	if v, err := s.Show("ord-1"); err == nil && !v.StationUntil.IsZero() {
		t.Errorf("something of a wrong answer was kept: %+v", v)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "accounts", "acme.pub")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a wrong answer pinned the account's key")
	}
	p.answer = nil
	accept(t, s, doc)
}
