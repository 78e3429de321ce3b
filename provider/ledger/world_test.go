package ledger_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const (
	account = "acme"
	maker   = "maker1"
	origin  = "localhost:8443/local/acme"
	units   = 40
	every   = 25 // leaves per checkpoint
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func digest(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// world is an account with its rows and log, as a store would hold it. Every test makes its own: the
// things are built through the same steps, so a test can also build them wrong.
type world struct {
	t   *testing.T
	key ed25519.PrivateKey

	accountRow  ledger.AccountRow
	oem         ledger.OEMRow
	authorities map[string]*authority // by kind
	orders      []ledger.OrderRow
	lots        []ledger.LotRow
	devices     []*ledger.DeviceRow
	certs       []*ledger.CertificateRow
	leaves      []ledger.Leaf
	order       *order.Order
	serial      int64
	feed        []ledger.FeedRow
	quarantines []ledger.QuarantineRow
	cosign      func(size int64, note []byte) []byte // nil: no witness
}

type authority struct {
	row  ledger.AuthorityRow
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

var deviceKey = newKey()

func spki(k *ecdsa.PrivateKey) []byte { return must(x509.MarshalPKIXPublicKey(&k.PublicKey)) }

func newAuthority(kind, acc string) *authority {
	k := newKey()
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{account}, CommonName: kind},
		NotBefore: start.Add(-time.Hour), NotAfter: start.AddDate(50, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must(x509.CreateCertificate(rand.Reader, tpl, tpl, &k.PublicKey, k))
	return &authority{ledger.AuthorityRow{ID: digest(der), Kind: kind, Account: acc, State: "active", Created: start, DER: der}, must(x509.ParseCertificate(der)), k}
}

// newWorld builds an honest world of some hundred leaves.
func newWorld(t *testing.T) *world {
	t.Helper()
	_, key := must2(ed25519.GenerateKey(rand.Reader))
	w := &world{t: t, key: key, authorities: map[string]*authority{}, serial: 1000}
	accountKey, oemKey := newKey(), newKey()
	w.accountRow = ledger.AccountRow{ID: account, Region: "local", OrderKey: spki(accountKey), Profiles: map[string]string{"ldevid": "validity = \"8760h\"\n"}}
	w.oem = ledger.OEMRow{ID: maker, OrderKey: spki(oemKey)}
	var ids []string
	for _, kind := range []string{"root", "onboarding", "operational", "idevid"} {
		w.authorities[kind] = newAuthority(kind, account)
		ids = append(ids, w.authorities[kind].row.ID)
	}
	w.authorities["station"] = newAuthority("station", "")
	w.authorities["station"].row.OEM = maker
	w.leaf(ledger.KindAccount, map[string]any{"account": account, "order_key": digest(w.accountRow.OrderKey), "authorities": ids, "profiles": map[string]any{"ldevid": digest([]byte(w.accountRow.Profiles["ldevid"]))}})

	anchor := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.authorities["root"].row.DER}))
	o := &order.Order{ID: "ord-1", Account: account, OEM: maker, Model: "Sensor", Quantity: units, SerialPrefix: "SN-", SerialFirst: "0001",
		SerialLast: "0100", Tiers: []cradle.Tier{cradle.Simulator}, TPMMakers: []cradle.MakerID{"demo"}, ProviderURL: "https://localhost:8443",
		ServicesAnchors: anchor, AccountAnchors: anchor, ProvisioningEndpoint: "https://localhost:8443", IDScope: "0ne00000001", AutoAccept: true}
	o.Complete(start)
	jws := must(order.Sign(o, accountKey))
	o, err := order.Verify(jws, &accountKey.PublicKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws = must(order.Countersign(jws, oemKey))
	w.order = o
	w.orders = []ledger.OrderRow{{ID: string(o.ID), Account: account, OEM: maker, JWS: jws, Quantity: units, State: "open", Created: w.now()}}
	w.leaf(ledger.KindOrder, map[string]any{"order": o.ID, "digest": o.Digest(), "oem": maker, "quantity": o.Quantity, "state": "signed"})
	w.leaf(ledger.KindOrder, map[string]any{"order": o.ID, "digest": o.Digest(), "oem": maker, "state": "open"})
	st := w.cert("station", "ord-1")
	w.leaf(ledger.KindStation, map[string]any{"order": o.ID, "certificate": st.Digest, "serial": st.Serial})
	for i := range units {
		w.birth(i + 1)
	}
	lot := ledger.LotRow{ID: "lot-1", Order: "ord-1", Report: []byte("report"), OEM: maker, Custody: []byte(`{"payload":"Y3VzdG9keQ"}`), Head: digest([]byte("custody")), Units: units, State: "accepted", Closed: w.now(), Accepted: w.now()}
	w.lots = append(w.lots, lot)
	w.leaf(ledger.KindLot, map[string]any{"lot": lot.ID, "order": lot.Order, "report": digest(lot.Report), "custody": lot.Head, "units": lot.Units, "state": "accepted"})
	for _, d := range w.devices {
		d.Lot = lot.ID
		d.State = "active"
		w.issue(d, "ldevid")
		w.issue(d, "operational")
		w.issue(d, "operational")
	}
	w.leaf(ledger.KindRefusal, map[string]any{"label": "acme-ldevid", "operation": "simpleenroll", "reason": "challenge <spent> & \u2028"})
	w.state(w.devices[3], "suspended")
	w.state(w.devices[4], "suspended")
	w.state(w.devices[4], "active")
	w.state(w.devices[5], "revoked")
	w.issue(w.devices[4], "operational")
	w.certState(w.certs[20], "revoked")
	w.certState(w.certs[21], "suspended")
	w.certState(w.certs[22], "suspended")
	w.certState(w.certs[22], "active")
	for len(w.leaves) < 270 { // more than a tile
		w.leaf(ledger.KindRefusal, map[string]any{"reason": "no evidence"})
	}
	return w
}

func must2[A, B any](a A, b B, err error) (A, B) {
	if err != nil {
		panic(err)
	}
	return a, b
}

func (w *world) now() time.Time { return start.Add(time.Duration(len(w.leaves)) * time.Second) }

func (w *world) leaf(kind ledger.Kind, body map[string]any) {
	w.leaves = append(w.leaves, must(ledger.NewLeaf(account, kind, w.now(), body)))
}

// cert makes and stores a certificate without a leaf.
func (w *world) cert(profile, device string) *ledger.CertificateRow {
	kind := map[string]string{"iak": "idevid", "ldevid": "onboarding"}[profile]
	if kind == "" {
		kind = profile
	}
	return w.certBy(w.authorities[kind], profile, device)
}

func (w *world) certBy(a *authority, profile, device string) *ledger.CertificateRow {
	w.serial++
	tpl := &x509.Certificate{SerialNumber: big.NewInt(w.serial), Subject: pkix.Name{Organization: []string{account}, CommonName: device},
		NotBefore: w.now().Truncate(time.Second), NotAfter: w.now().Truncate(time.Second).AddDate(1, 0, 0)}
	der := must(x509.CreateCertificate(rand.Reader, tpl, a.cert, &deviceKey.PublicKey, a.key))
	c := &ledger.CertificateRow{Digest: digest(der), Serial: tpl.SerialNumber.Text(16), Account: account, Device: device, Profile: profile, Lineage: profile,
		Slot: "current", Issued: w.now(), Intent: "intent-" + tpl.SerialNumber.String(), Challenge: digest([]byte(tpl.SerialNumber.String())), Key: digest(must(x509.MarshalPKIXPublicKey(&deviceKey.PublicKey))), Authority: a.row.ID, DER: der, NotBefore: tpl.NotBefore, NotAfter: tpl.NotAfter}
	w.certs = append(w.certs, c)
	return c
}

func (w *world) issue(d *ledger.DeviceRow, profile string) *ledger.CertificateRow {
	c := w.cert(profile, d.ID)
	w.log(d, c)
	return c
}

// log records an issuance and moves the lineage, as the store does.
func (w *world) log(d *ledger.DeviceRow, c *ledger.CertificateRow) {
	for _, o := range w.certs {
		if o != c && o.Device == c.Device && o.Profile == c.Profile {
			c.Slot = "next"
			if o.Slot == "next" {
				o.Slot = "superseded"
			}
		}
	}
	w.leaf(ledger.KindIssuance, map[string]any{"certificate": c.Digest, "serial": c.Serial, "device": d.ID, "profile": c.Profile,
		"order": d.Order, "unit": d.Serial, "ek": d.EK, "intent": c.Intent, "challenge": c.Challenge, "lineage": c.Profile, "record": d.Record(), "tier": d.Tier, "maker": d.Maker, "proved": true})
}

func (w *world) birth(n int) *ledger.DeviceRow {
	serial := fmt.Sprintf("SN-%04d", n)
	d := &ledger.DeviceRow{ID: "acme-" + strings.ToLower(serial), Account: account, OEM: maker, Order: "ord-1", Serial: serial,
		Tier: "simulator", Maker: "demo", EK: digest([]byte(serial)), EKCert: []byte("EK certificate " + serial), IAK: []byte("IAK " + serial), Anchor: "a",
		Created: w.now(), State: "made"}
	w.devices = append(w.devices, d)
	w.orders[0].Used++
	d.IAKCert = w.issue(d, "iak").Digest
	d.IDevIDCert = w.issue(d, "idevid").Digest
	return d
}

func (w *world) state(d *ledger.DeviceRow, to string) {
	d.State, d.Reason = to, "test"
	d.Epoch++
	w.event(ledger.FeedRow{Device: d.ID, State: to, Epoch: d.Epoch, Reason: "test"})
	w.leaf(ledger.KindRevocation, map[string]any{"account": account, "device": d.ID, "state": to, "reason": "test"})
	for _, c := range w.certs {
		if c.Device == d.ID && (to == "revoked" || to == "retired") {
			c.Revoked, c.RevokedAt, c.CRLReason, c.Reason = true, w.now(), "unspecified", "test"
		}
	}
}

// certState is a change of one certificate alone.
func (w *world) certState(c *ledger.CertificateRow, to string) {
	c.Revoked, c.RevokedAt = to != "active", w.now()
	c.Reason = map[bool]string{true: "test"}[c.Revoked]
	c.CRLReason = map[string]string{"suspended": "certificateHold", "revoked": "unspecified"}[to]
	for _, d := range w.devices {
		if d.ID == c.Device {
			d.Epoch++
			w.event(ledger.FeedRow{Device: d.ID, State: d.State, Epoch: d.Epoch, Reason: "test", Certificate: c.Digest, Released: to == "active"})
		}
	}
	w.leaf(ledger.KindRevocation, map[string]any{"account": account, "device": c.Device, "certificate": c.Digest, "serial": c.Serial, "state": to, "reason": "test"})
}

func (w *world) event(e ledger.FeedRow) {
	e.Seq, e.At = int64(len(w.feed)*2+1), w.now() // the others are another account's
	w.feed = append(w.feed, e)
}

func (w *world) vkey() string {
	return must(ledger.VerifierKey(origin, w.key.Public().(ed25519.PublicKey)))
}

// checkpoints signs the log at every size that is due.
func (w *world) checkpoints() (sizes []int64, notes [][]byte) {
	var f ledger.Frontier
	var previous int64
	for i, l := range w.leaves {
		f.Append(l.Hash())
		if (i+1)%every != 0 && i+1 != len(w.leaves) {
			continue
		}
		notes = append(notes, must(ledger.SignCheckpoint(ledger.Checkpoint{Origin: origin, Size: f.Size(), Root: f.Root(), Previous: previous}, w.key)))
		previous = f.Size()
		sizes = append(sizes, previous)
	}
	return sizes, notes
}

// hashes are what a store remembers of the tree, and the tree's right edge.
func (w *world) hashes() (level1 []ledger.Hash, f ledger.Frontier) {
	var t ledger.Tiler
	for _, l := range w.leaves {
		f.Append(l.Hash())
		if err := t.Add(l.Hash(), func(t ledger.Tile) error {
			level1 = append(level1, ledger.Subtree(t.Hashes))
			return nil
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	return level1, f
}

func (w *world) export() []byte {
	w.t.Helper()
	var b bytes.Buffer
	x := ledger.NewWriter(&b)
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	check(x.Header(ledger.Header{Log: account, Origin: origin, Key: w.vkey(), Created: w.now().Add(time.Hour)}))
	check(x.Account(w.accountRow))
	check(x.OEM(w.oem))
	for _, kind := range []string{"root", "onboarding", "operational", "idevid", "station"} {
		check(x.Authority(w.authorities[kind].row))
	}
	for _, o := range w.orders {
		check(x.Order(o))
	}
	for _, l := range w.lots {
		check(x.Lot(l))
	}
	for _, d := range w.devices {
		check(x.Device(*d))
	}
	for _, c := range w.certs {
		check(x.Certificate(*c))
	}
	for _, q := range w.quarantines {
		check(x.Quarantine(q))
	}
	for _, e := range w.feed {
		check(x.Feed(e))
	}
	sizes, notes := w.checkpoints()
	for i := range sizes {
		if w.cosign != nil {
			notes[i] = w.cosign(sizes[i], notes[i])
		}
	}
	hashes, f := w.hashes()
	check(x.Head(ledger.HeadRow{Size: f.Size(), Root: f.Root().String(), Signed: sizes[len(sizes)-1], Checkpoint: string(notes[len(notes)-1]), Feed: int64(2 * len(w.feed))}))
	for i := range sizes {
		check(x.Checkpoint(sizes[i], notes[i]))
	}
	for n, h := range hashes {
		check(x.Hash(ledger.HashRow{Level: 1, N: int64(n), Hash: h[:]}))
	}
	for i, l := range w.leaves {
		check(x.Leaf(int64(i), l.Data))
	}
	check(x.Close())
	return b.Bytes()
}

// file is an export as somebody with the store in his hands would change it.
type file []map[string]map[string]any

func parse(t *testing.T, b []byte) (f file) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	for {
		var l map[string]map[string]any
		err := d.Decode(&l)
		if err == io.EOF {
			return f
		}
		if err != nil {
			t.Fatal(err)
		}
		f = append(f, l)
	}
}

// at returns the index of the nth line of a kind, from the end if n is negative.
func (f file) at(kind string, n int) int {
	var all []int
	for i, l := range f {
		if l[kind] != nil {
			all = append(all, i)
		}
	}
	if n < 0 {
		n += len(all)
	}
	return all[n]
}

func (f file) get(kind string, n int) map[string]any { return f[f.at(kind, n)][kind] }

// leafOf returns the position of the nth leaf whose text holds all of these.
func (f file) leafOf(words ...string) int {
	n := 0
next:
	for _, l := range f {
		if l["leaf"] == nil {
			continue
		}
		n++
		for _, w := range words {
			if !strings.Contains(l["leaf"]["data"].(string), w) {
				continue next
			}
		}
		return n - 1
	}
	panic("no such leaf")
}

func (f *file) remove(kind string, n int) {
	i := f.at(kind, n)
	*f = append((*f)[:i:i], (*f)[i+1:]...)
}

// plant puts a further line after the last certificate, quarantine or feed event.
func (f *file) plant(kind string, line map[string]any) {
	after := "certificate"
	if kind == "feed" {
		after = "feed"
	}
	i := f.at(after, -1) + 1
	*f = append((*f)[:i:i], append(file{{kind: line}}, (*f)[i:]...)...)
}

// renumber makes indexes and counts fit again.
func (f file) renumber() {
	rows, checkpoints, leaves := 0, 0, 0
	for _, l := range f {
		switch {
		case l["leaf"] != nil:
			l["leaf"]["index"] = leaves
			leaves++
		case l["checkpoint"] != nil:
			checkpoints++
		case l["end"] != nil:
			l["end"] = map[string]any{"rows": rows, "checkpoints": checkpoints, "leaves": leaves}
		case l["header"] == nil:
			rows++
		}
	}
}

func (f file) bytes() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	for _, l := range f {
		if err := e.Encode(l); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}
