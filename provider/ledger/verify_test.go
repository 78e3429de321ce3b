package ledger_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func verify(t *testing.T, b []byte, o ledger.Options) ([]ledger.Finding, ledger.Summary) {
	t.Helper()
	found, sum, err := ledger.Verify(bytes.NewReader(b), o)
	if err != nil {
		t.Fatal(err)
	}
	return found, sum
}

// want fails unless the code was found with a subject that holds the words.
func want(t *testing.T, found []ledger.Finding, code ledger.Code, subject string) {
	t.Helper()
	for _, f := range found {
		if f.Code == code && strings.Contains(f.Subject, subject) {
			return
		}
	}
	t.Errorf("want a finding %s about %q, got %d:", code, subject, len(found))
	for _, f := range found[:min(len(found), 5)] {
		t.Errorf("  %v", f)
	}
}

func TestHonest(t *testing.T) {
	w := newWorld(t)
	found, sum := verify(t, w.export(), ledger.Options{Key: w.vkey()})
	for _, f := range found {
		t.Errorf("in an honest export: %v", f)
	}
	if sum.Leaves != int64(len(w.leaves)) || sum.Signed != sum.Leaves || sum.Certificates != int64(len(w.certs)) || sum.Devices != units || !sum.KeyGiven || sum.Leaves < 200 {
		t.Errorf("got %+v", sum)
	}
	var seen strings.Builder
	seen.WriteString("# what hub-1 admitted\n\n")
	for _, c := range w.certs {
		fmt.Fprintln(&seen, strings.ToUpper(c.Digest))
	}
	_, notes := w.checkpoints()
	found, sum = verify(t, w.export(), ledger.Options{Checkpoints: notes[2:4], Seen: strings.NewReader(seen.String())})
	if len(found) > 0 || sum.Seen != int64(len(w.certs)) || sum.KeyGiven {
		t.Errorf("got %v, %+v", found, sum)
	}
}

// TestRecordedWrong: what somebody who also runs the log would do is found by what the rows and leaves say.
func TestRecordedWrong(t *testing.T) {
	for name, c := range map[string]struct {
		do      func(w *world) (subject string)
		code    ledger.Code
		subject string
	}{
		"certificate without a leaf": {func(w *world) string { return w.cert("operational", w.devices[0].ID).Digest }, ledger.CertificateUnlogged, "certificate"},
		"certificate of a foreign key": {func(w *world) string {
			c := w.certBy(newAuthority("operational", account), "operational", w.devices[0].ID)
			c.Authority = w.authorities["operational"].row.ID
			w.log(w.devices[0], c)
			return c.Digest
		}, ledger.CertificateForged, "certificate"},
		"certificate replaced by one with the same names and serial": {func(w *world) string {
			c := w.certs[9]
			serial := w.serial
			w.serial, _ = strconv.ParseInt(c.Serial, 16, 64)
			w.serial--
			other := w.cert(c.Profile, c.Device)
			w.certs, w.serial = w.certs[:len(w.certs)-1], serial
			c.DER, c.NotBefore, c.NotAfter = other.DER, other.NotBefore, other.NotAfter
			return c.Digest
		}, ledger.CertificateChanged, "certificate"},
		"certificate of the wrong authority": {func(w *world) string {
			c := w.certBy(w.authorities["onboarding"], "operational", w.devices[0].ID)
			w.log(w.devices[0], c)
			return c.Digest
		}, ledger.CertificateForged, "certificate"},
		"authority that no leaf names": {func(w *world) string {
			a := newAuthority("operational", account)
			w.authorities["root"] = a
			return a.row.ID
		}, ledger.AuthorityUnknown, "authority"},
		"logged twice": {func(w *world) string {
			w.log(w.devices[0], w.certs[1])
			return w.certs[1].Digest
		}, ledger.CertificateTwice, "certificate"},
		"device without an order": {func(w *world) string {
			d := w.birth(50)
			d.Order = "ord-2"
			return d.ID
		}, ledger.DeviceOutside, "device"},
		"unit outside the serial range": {func(w *world) string { return w.birth(101).ID }, ledger.DeviceOutside, "device"},
		"unit with a name of its own": {func(w *world) string {
			w.devices[7].ID = "acme-other"
			return "acme-other"
		}, ledger.DeviceOutside, "device"},
		"more units than ordered": {func(w *world) string { w.birth(41); return "ord-1" }, ledger.OrderOverrun, "order"},
		"one serial twice": {func(w *world) string {
			w.devices[8].Serial = w.devices[7].Serial
			return w.devices[8].ID
		}, ledger.UnitDuplicate, "device"},
		"one TPM twice": {func(w *world) string {
			w.devices[8].EK = w.devices[7].EK
			return w.devices[8].ID
		}, ledger.UnitDuplicate, "device"},
		"issued to a revoked device": {func(w *world) string { return w.issue(w.devices[5], "operational").Digest }, ledger.CertificateBlocked, "certificate"},
		"issued to a suspended device": {func(w *world) string {
			return w.issue(w.devices[3], "operational").Digest
		}, ledger.CertificateBlocked, "certificate"},
		"revocation of another device's certificate": {func(w *world) string {
			w.leaf(ledger.KindRevocation, map[string]any{"device": w.devices[0].ID, "certificate": w.certs[9].Digest, "serial": w.certs[9].Serial, "state": "revoked"})
			return w.certs[9].Digest
		}, ledger.CertificateChanged, "certificate"},
		"born after the order was withdrawn": {func(w *world) string {
			w.leaf(ledger.KindOrder, map[string]any{"order": "ord-1", "state": "withdrawn"})
			w.orders[0].State = "withdrawn"
			return w.birth(41).IAKCert
		}, ledger.CertificateOutside, "certificate"},
		"one serial number on two certificates": {func(w *world) string {
			w.serial--
			return w.issue(w.devices[0], "operational").Digest
		}, ledger.SerialDuplicate, "certificate"},
		"order that no leaf records": {func(w *world) string {
			o := w.orders[0]
			o.ID = "ord-2"
			w.orders = append(w.orders, o)
			return o.ID
		}, ledger.OrderUnlogged, "order"},
		"lot that no leaf records": {func(w *world) string {
			w.lots = append(w.lots, ledger.LotRow{ID: "lot-2", Order: "ord-1", State: "accepted"})
			return "lot-2"
		}, ledger.LotUnlogged, "lot"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			name := c.do(w)
			found, _ := verify(t, w.export(), ledger.Options{Key: w.vkey()})
			want(t, found, c.code, c.subject+" "+name)
		})
	}
}

// TestTampered: each change of a file that was honest is found and named.
func TestTampered(t *testing.T) {
	w := newWorld(t)
	honest := w.export()
	_, notes := w.checkpoints()
	n := len(w.leaves)
	set := func(kind string, nth int, field string, value any) func(*file) {
		return func(f *file) {
			if f.get(kind, nth)[field] == nil && field != "revoked" {
				t.Fatalf("%s has no %s", kind, field)
			}
			f.get(kind, nth)[field] = value
		}
	}
	otherKey := base64.StdEncoding.EncodeToString(spki(newKey()))
	cert := func(n int) string { return "certificate " + w.certs[n].Digest }
	dev := func(n int) string { return "device " + w.devices[n].ID }
	for name, c := range map[string]struct {
		do      func(f *file)
		code    ledger.Code
		subject string
		opts    ledger.Options
	}{
		// Rows.
		"certificate's device":                 {do: set("certificate", 9, "device", w.devices[0].ID), code: ledger.CertificateChanged, subject: cert(9)},
		"certificate's account":                {do: set("certificate", 9, "account", "other"), code: ledger.RowForeign, subject: cert(9)},
		"certificate's serial":                 {do: set("certificate", 9, "serial", "beef"), code: ledger.CertificateChanged, subject: cert(9)},
		"certificate's profile":                {do: set("certificate", 9, "profile", "ldevid"), code: ledger.CertificateChanged, subject: cert(9)},
		"certificate's authority":              {do: set("certificate", 9, "authority", w.authorities["root"].row.ID), code: ledger.CertificateForged, subject: cert(9)},
		"certificate's end":                    {do: set("certificate", 9, "not_after", "2099-01-01T00:00:00Z"), code: ledger.CertificateChanged, subject: cert(9)},
		"certificate's bytes":                  {do: set("certificate", 9, "der", base64.StdEncoding.EncodeToString(w.certs[10].DER)), code: ledger.CertificateChanged, subject: cert(9)},
		"certificate revoked by the row alone": {do: set("certificate", 9, "revoked", true), code: ledger.RevocationUnlogged, subject: cert(9)},
		"revocation undone": {do: func(f *file) {
			for _, l := range *f {
				if l["certificate"] != nil {
					delete(l["certificate"], "revoked")
				}
			}
		}, code: ledger.RevocationMissing, subject: "certificate"},
		"revocation of one certificate undone": {do: set("certificate", 20, "revoked", false), code: ledger.RevocationMissing, subject: cert(20)},
		"hold undone":                          {do: set("certificate", 21, "revoked", false), code: ledger.RevocationMissing, subject: cert(21)},
		"hold after its release":               {do: set("certificate", 22, "revoked", true), code: ledger.RevocationUnlogged, subject: cert(22)},
		"certificate row removed":              {do: func(f *file) { f.remove("certificate", 9); f.renumber() }, code: ledger.CertificateMissing, subject: cert(9)},
		"certificate row twice":                {do: func(f *file) { (*f)[f.at("certificate", 10)] = (*f)[f.at("certificate", 9)] }, code: ledger.RowDuplicate, subject: cert(9)},
		"device's tier":                        {do: set("device", 6, "tier", "discrete-tpm"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's maker":                       {do: set("device", 6, "maker", "infineon"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's TPM":                         {do: set("device", 6, "ek", strings.Repeat("ab", 32)), code: ledger.DeviceChanged, subject: dev(6)},
		"device's serial":                      {do: set("device", 6, "serial", "SN-0090"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's OEM":                         {do: set("device", 6, "oem", "maker2"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's IDevID":                      {do: set("device", 6, "idevid_cert", w.devices[7].IDevIDCert), code: ledger.DeviceChanged, subject: dev(6)},
		"revoked device active":                {do: set("device", 5, "state", "active"), code: ledger.DeviceChanged, subject: dev(5)},
		"active device revoked":                {do: set("device", 6, "state", "revoked"), code: ledger.DeviceChanged, subject: dev(6)},
		"device row removed":                   {do: func(f *file) { f.remove("device", 6); f.renumber() }, code: ledger.DeviceMissing, subject: dev(6)},
		"device's lot":                         {do: set("device", 6, "lot", "lot-9"), code: ledger.LotChanged, subject: "lot lot-9"},
		"order's quantity":                     {do: set("order", 0, "quantity", 1000), code: ledger.OrderChanged, subject: "order ord-1"},
		"order's use":                          {do: set("order", 0, "used", 39), code: ledger.OrderChanged, subject: "order ord-1"},
		"order's state":                        {do: set("order", 0, "state", "withdrawn"), code: ledger.OrderChanged, subject: "order ord-1"},
		"order's text":                         {do: set("order", 0, "jws", "e30="), code: ledger.OrderChanged, subject: "order ord-1"},
		"authority removed":                    {do: func(f *file) { f.remove("authority", 3); f.renumber() }, code: ledger.AuthorityMissing, subject: "authority " + w.authorities["idevid"].row.ID},
		"authority's account":                  {do: set("authority", 1, "account", ""), code: ledger.RowForeign, subject: "authority " + w.authorities["onboarding"].row.ID},
		"authority's state":                    {do: set("authority", 1, "state", ""), code: ledger.AuthorityChanged, subject: "authority " + w.authorities["onboarding"].row.ID},
		"state of the CA of stations":          {do: set("authority", 4, "state", "superseded"), code: ledger.AuthorityChanged, subject: "authority " + w.authorities["station"].row.ID},
		"station of another OEM's CA":          {do: set("authority", 4, "oem", "maker2"), code: ledger.CertificateForged, subject: cert(0)},
		"certificate's lineage":                {do: set("certificate", 9, "lineage", ""), code: ledger.CertificateChanged, subject: cert(9)},
		"station's lineage":                    {do: set("certificate", 0, "lineage", "operational"), code: ledger.CertificateChanged, subject: cert(0)},
		"station's slot":                       {do: set("certificate", 0, "slot", "superseded"), code: ledger.CertificateChanged, subject: cert(0)},
		"station's time of issue":              {do: set("certificate", 0, "issued", "2026-03-02T12:00:00Z"), code: ledger.CertificateChanged, subject: cert(0)},
		"time of a revocation":                 {do: set("certificate", 20, "revoked_at", "2026-03-01T00:00:00Z"), code: ledger.RevocationUnlogged, subject: cert(20)},
		"device out of its lot":                {do: set("device", 7, "lot", ""), code: ledger.LotChanged, subject: "lot lot-1"},
		"device's birth":                       {do: set("device", 7, "created", "2025-03-01T12:00:00Z"), code: ledger.DeviceChanged, subject: dev(7)},
		"lot's end":                            {do: set("lot", 0, "closed", "2026-03-02T12:00:00Z"), code: ledger.LotChanged, subject: "lot lot-1"},
		"lot's acceptance":                     {do: set("lot", 0, "accepted", "2026-03-02T12:00:00Z"), code: ledger.LotChanged, subject: "lot lot-1"},
		"order's beginning":                    {do: set("order", 0, "created", "2026-03-02T12:00:00Z"), code: ledger.OrderChanged, subject: "order ord-1"},
		"order row removed":                    {do: func(f *file) { f.remove("order", 0); f.renumber() }, code: ledger.OrderMissing, subject: "order ord-1"},
		"account's key":                        {do: set("account", 0, "order_key", otherKey), code: ledger.AccountChanged, subject: "account acme"},
		"OEM's key":                            {do: set("oem", 0, "order_key", otherKey), code: ledger.OrderChanged, subject: "order ord-1"},
		"lot's report":                         {do: set("lot", 0, "report", "AAAA"), code: ledger.LotChanged, subject: "lot lot-1"},
		"lot's state":                          {do: set("lot", 0, "state", "waiting"), code: ledger.LotChanged, subject: "lot lot-1"},
		"device's IAK":                         {do: set("device", 6, "iak", "AAAA"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's EK certificate":              {do: set("device", 6, "ek_cert", "AAAA"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's anchor":                      {do: set("device", 6, "anchor", "b"), code: ledger.DeviceChanged, subject: dev(6)},
		"device's epoch":                       {do: set("device", 6, "epoch", 1), code: ledger.DeviceChanged, subject: dev(6)},
		"revoked device's epoch":               {do: set("device", 5, "epoch", 7), code: ledger.DeviceChanged, subject: dev(5)},
		"device's reason":                      {do: set("device", 5, "reason", "none"), code: ledger.DeviceChanged, subject: dev(5)},
		"active device made":                   {do: set("device", 6, "state", "made"), code: ledger.DeviceChanged, subject: dev(6)},
		"certificate's slot":                   {do: set("certificate", 9, "slot", "superseded"), code: ledger.CertificateChanged, subject: cert(9)},
		"spent challenge forgotten":            {do: set("certificate", 9, "challenge", ""), code: ledger.CertificateChanged, subject: cert(9)},
		"certificate's time of issue":          {do: set("certificate", 9, "issued", "2026-03-02T12:00:00Z"), code: ledger.CertificateChanged, subject: cert(9)},
		"CRL forgets":                          {do: set("certificate", 20, "crl_reason", ""), code: ledger.RevocationMissing, subject: cert(20)},
		"CRL makes a hold of it":               {do: set("certificate", 20, "crl_reason", "certificateHold"), code: ledger.RevocationMissing, subject: cert(20)},
		"CRL names a good one":                 {do: set("certificate", 9, "crl_reason", "keyCompromise"), code: ledger.RevocationUnlogged, subject: cert(9)},
		"lot's custody":                        {do: set("lot", 0, "head", strings.Repeat("ab", 32)), code: ledger.LotChanged, subject: "lot lot-1"},
		"feed event removed":                   {do: func(f *file) { f.remove("feed", 3); f.renumber() }, code: ledger.FeedChanged, subject: dev(5)},
		"feed event's state":                   {do: set("feed", 3, "state", "active"), code: ledger.FeedChanged, subject: dev(5)},
		"feed event's reason":                  {do: set("feed", 3, "reason", "none"), code: ledger.FeedChanged, subject: dev(5)},
		"older feed event's state":             {do: set("feed", 1, "state", "active"), code: ledger.FeedChanged, subject: dev(4)},
		"feed event's release":                 {do: set("feed", 7, "released", false), code: ledger.FeedChanged, subject: cert(22)},
		"older feed event's reason":            {do: set("feed", 6, "reason", "none"), code: ledger.FeedChanged, subject: cert(22)},
		"older feed event's device":            {do: set("feed", 6, "device", w.devices[0].ID), code: ledger.FeedChanged, subject: cert(22)},
		"older feed event's epoch":             {do: set("feed", 6, "epoch", 9), code: ledger.FeedChanged, subject: "device " + w.certs[22].Device},
		"feed event planted": {do: func(f *file) {
			f.plant("feed", map[string]any{"seq": 99, "device": w.devices[6].ID, "state": "revoked", "epoch": 1, "at": "2026-03-02T12:00:00Z"})
			f.renumber()
		}, code: ledger.FeedChanged, subject: dev(6)},
		"feed events exchanged": {do: func(f *file) { f.get("feed", 3)["seq"] = 1 }, code: ledger.FeedChanged, subject: "feed"},
		"quarantine planted": {do: func(f *file) {
			f.plant("quarantine", map[string]any{"device": w.devices[6].ID, "lineage": "ldevid"})
			f.renumber()
		}, code: ledger.QuarantineChanged, subject: dev(6)},
		"head's size":                {do: set("head", 0, "size", 269), code: ledger.HeadChanged, subject: "head"},
		"head's root":                {do: set("head", 0, "root", "AAAA"), code: ledger.HeadChanged, subject: "head"},
		"head's checkpoint":          {do: set("head", 0, "checkpoint", "x"), code: ledger.HeadChanged, subject: "head"},
		"head removed":               {do: func(f *file) { f.remove("head", 0); f.renumber() }, code: ledger.HeadChanged, subject: "head"},
		"remembered hash":            {do: set("hash", 0, "hash", strings.Repeat("A", 43)+"="), code: ledger.HashChanged, subject: "hash 0 of level 1"},
		"remembered hash cut":        {do: set("hash", 0, "hash", "AAAA"), code: ledger.HashChanged, subject: "hash 0 of level 1"},
		"remembered hash of nothing": {do: set("hash", 0, "n", 5), code: ledger.HashChanged, subject: "hash 5 of level 1"},
		"account's profile":          {do: set("account", 0, "profiles", map[string]any{"ldevid": "validity = \"1h\"\n"}), code: ledger.AccountChanged, subject: "account acme"},
		"lot row removed":            {do: func(f *file) { f.remove("lot", 0); f.renumber() }, code: ledger.LotChanged, subject: "lot lot-1"},
		"authority's bytes": {do: set("authority", 1, "der", base64.StdEncoding.EncodeToString(w.authorities["root"].row.DER)),
			code: ledger.AuthorityChanged, subject: "authority " + w.authorities["onboarding"].row.ID},

		// Leaves.
		"leaf's text": {do: func(f *file) {
			l := f.get("leaf", f.leafOf(`"kind":"refusal"`))
			l["data"] = strings.Replace(l["data"].(string), "spent", "fresh", 1)
		}, code: ledger.CheckpointRoot, subject: "checkpoint"},
		"leaf's device": {do: func(f *file) {
			l := f.get("leaf", f.leafOf(w.certs[9].Digest))
			l["data"] = strings.ReplaceAll(l["data"].(string), w.certs[9].Device, w.devices[0].ID)
		}, code: ledger.CertificateChanged, subject: cert(9)},
		"leaf's form": {do: func(f *file) {
			l := f.get("leaf", 30)
			l["data"] = strings.Replace(l["data"].(string), `"body":{`, `"body": {`, 1)
		}, code: ledger.LeafMalformed, subject: "leaf 30"},
		"leaf of another log": {do: func(f *file) {
			l := f.get("leaf", 30)
			l["data"] = strings.Replace(l["data"].(string), `"log":"acme"`, `"log":"evil"`, 1)
		}, code: ledger.LeafMalformed, subject: "leaf 30"},
		"leaf removed": {do: func(f *file) { f.remove("leaf", 30); f.renumber() }, code: ledger.CheckpointRoot, subject: "checkpoint 50"},
		"leaf removed, its certificate stays": {do: func(f *file) {
			f.remove("leaf", f.leafOf(w.certs[9].Digest))
			f.renumber()
		}, code: ledger.CertificateUnlogged, subject: cert(9)},
		"gap": {do: func(f *file) { f.remove("leaf", 30) }, code: ledger.LeafGap, subject: "leaf 30"},
		"leaves swapped": {do: func(f *file) {
			(*f)[f.at("leaf", 30)], (*f)[f.at("leaf", 31)] = (*f)[f.at("leaf", 31)], (*f)[f.at("leaf", 30)]
			f.renumber()
		}, code: ledger.CheckpointRoot, subject: "checkpoint 50"},
		"leaf put in": {do: func(f *file) {
			*f = slices.Insert(*f, f.at("leaf", 30), map[string]map[string]any{"leaf": {"index": 0, "data": string(must(ledger.NewLeaf(account, ledger.KindOperator, start, map[string]any{})).Data)}})
			f.renumber()
		}, code: ledger.CheckpointRoot, subject: "checkpoint 50"},

		// Checkpoints.
		"checkpoint's root": {do: func(f *file) {
			c := f.get("checkpoint", 2)
			text := []byte(c["note"].(string))
			text[strings.Index(string(text), "\n75\n")+5] ^= 1
			c["note"] = string(text)
		}, code: ledger.CheckpointChanged, subject: "checkpoint 75"},
		"checkpoint's size": {do: set("checkpoint", 2, "size", 76), code: ledger.CheckpointChanged, subject: "checkpoint 76"},
		"checkpoint by another key": {do: func(f *file) {
			_, key := must2(ed25519.GenerateKey(rand.Reader))
			f.get("checkpoint", 2)["note"] = string(must(ledger.SignCheckpoint(ledger.Checkpoint{Origin: origin, Size: 75}, key)))
		}, code: ledger.CheckpointChanged, subject: "checkpoint 75"},
		"checkpoint removed":        {do: func(f *file) { f.remove("checkpoint", 2); f.renumber() }, code: ledger.CheckpointMissing, subject: "checkpoint 75"},
		"newest checkpoint removed": {do: func(f *file) { f.remove("checkpoint", -1); f.renumber() }, code: ledger.LogUnsigned, subject: "leaves from"},
		"all checkpoints removed": {do: func(f *file) {
			for range notes {
				f.remove("checkpoint", 0)
			}
			f.renumber()
		}, code: ledger.CheckpointMissing, subject: "log acme"},
		"rolled back": {do: func(f *file) {
			for range 10 {
				f.remove("leaf", -1)
			}
			f.renumber()
		}, code: ledger.LogRolledBack, subject: fmt.Sprintf("checkpoint %d", n)},
		"rolled back with its checkpoints": {do: func(f *file) {
			for range 40 {
				f.remove("leaf", -1)
			}
			for range 3 {
				f.remove("checkpoint", -1)
			}
			f.renumber()
		}, code: ledger.LogRolledBack, subject: "kept checkpoint 1", opts: ledger.Options{Checkpoints: notes[len(notes)-1:]}},

		// The file.
		"cut off":        {do: func(f *file) { *f = (*f)[:len(*f)-20] }, code: ledger.FileTruncated, subject: "file"},
		"counts":         {do: func(f *file) { f.remove("leaf", -1) }, code: ledger.FileTruncated, subject: "file"},
		"more":           {do: func(f *file) { *f = append(*f, (*f)[0]) }, code: ledger.FileMalformed, subject: "file"},
		"order of parts": {do: func(f *file) { *f = slices.Insert(*f, f.at("leaf", 5), (*f)[f.at("certificate", 0)]) }, code: ledger.FileMalformed, subject: "line"},
		"unknown part":   {do: func(f *file) { (*f)[5] = map[string]map[string]any{"x": {}} }, code: ledger.FileMalformed, subject: "line 6"},
		"another key":    {do: func(f *file) {}, code: ledger.KeyMismatch, subject: "log acme", opts: ledger.Options{Key: newWorldKey()}},

		// What hubs saw.
		"seen": {do: func(f *file) {}, code: ledger.CertificateSeenAlone, subject: "certificate " + strings.Repeat("cd", 32),
			opts: ledger.Options{Seen: strings.NewReader(w.certs[0].Digest + "\n" + strings.Repeat("cd", 32))}},
	} {
		t.Run(name, func(t *testing.T) {
			f := parse(t, honest)
			c.do(&f)
			found, sum := verify(t, f.bytes(), c.opts)
			want(t, found, c.code, c.subject)
			if sum.Findings == 0 {
				t.Error("the summary counts no finding")
			}
		})
	}
}

func newWorldKey() string {
	_, key := must2(ed25519.GenerateKey(rand.Reader))
	return must(ledger.VerifierKey(origin, key.Public().(ed25519.PublicKey)))
}

// TestRewritten: the provider itself changes a leaf and signs everything again. Who kept a checkpoint sees it.
func TestRewritten(t *testing.T) {
	w := newWorld(t)
	_, kept := w.checkpoints()
	w.leaves[20] = must(ledger.NewLeaf(account, ledger.KindOperator, start, map[string]any{"action": "nothing"}))
	found, _ := verify(t, w.export(), ledger.Options{Key: w.vkey(), Checkpoints: kept[len(kept)-1:]})
	want(t, found, ledger.CheckpointRoot, "kept checkpoint 1")
}

func TestNotAnExport(t *testing.T) {
	for _, text := range []string{"", "\n", "hello\n", "{}\n", `{"end":{"rows":0,"checkpoints":0,"leaves":0}}` + "\n", `{"header":{"version":9}}` + "\n"} {
		if _, _, err := ledger.Verify(strings.NewReader(text), ledger.Options{}); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%q: got %v, want Invalid", text, err)
		}
	}
	if _, _, err := ledger.Verify(bytes.NewReader(newWorld(t).export()), ledger.Options{Seen: strings.NewReader("zz\n")}); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("bad list of seen certificates: got %v, want Invalid", err)
	}
}

func TestWriterOrder(t *testing.T) {
	w := ledger.NewWriter(&bytes.Buffer{})
	if err := w.Leaf(0, nil); err == nil {
		t.Error("a leaf before the header was written")
	}
	w = ledger.NewWriter(&bytes.Buffer{})
	w.Header(ledger.Header{})
	w.Leaf(0, nil)
	if err := w.Certificate(ledger.CertificateRow{}); err == nil {
		t.Error("a certificate after a leaf was written")
	}
	if err := w.Close(); err == nil {
		t.Error("the error was forgotten")
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(&testing.T{})
	w.certs, w.devices, w.leaves = w.certs[:3], w.devices[:1], w.leaves[:30]
	honest := w.export()
	f.Add(honest)
	lines := bytes.SplitAfter(honest, []byte("\n"))
	for _, l := range lines[1:] {
		f.Add(slices.Concat(lines[0], l))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		found, sum, err := ledger.Verify(bytes.NewReader(b), ledger.Options{})
		if err != nil && cradle.KindOf(err) != cradle.Invalid && cradle.KindOf(err) != cradle.TooLarge {
			t.Errorf("got error %v of kind %v", err, cradle.KindOf(err))
		}
		if err == nil && sum.Findings < int64(len(found)) {
			t.Errorf("got %d findings, the summary says %d", len(found), sum.Findings)
		}
	})
}

// A key that is none is one error, not a finding for each checkpoint.
func TestVerifyWithoutKey(t *testing.T) {
	w := newWorld(t)
	for _, key := range []string{"acme.key", "localhost/local/acme+00000000+AAAA", w.vkey() + "x"} {
		found, _, err := ledger.Verify(bytes.NewReader(w.export()), ledger.Options{Key: key})
		if cradle.KindOf(err) != cradle.Invalid || len(found) > 0 {
			t.Errorf("%q: %v, %d findings", key, err, len(found))
		}
	}
}

// TestAnotherLogsCheckpoint: who keeps checkpoints of several logs is told when he gives the wrong one.
func TestAnotherLogsCheckpoint(t *testing.T) {
	_, key := must2(ed25519.GenerateKey(rand.Reader))
	kept := must(ledger.SignCheckpoint(ledger.Checkpoint{Origin: "example.com/eu/other", Size: 5}, key))
	found, _ := verify(t, newWorld(t).export(), ledger.Options{Checkpoints: [][]byte{kept}})
	want(t, found, ledger.CheckpointChanged, "kept checkpoint 1")
	if len(found) != 1 || !strings.Contains(found[0].Detail, `of log "example.com/eu/other"`) {
		t.Errorf("got %v", found)
	}
}
