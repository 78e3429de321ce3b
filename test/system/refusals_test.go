package system_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/internal/tpmmaker"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/test/world"
)

// TestServeRefuses: what keeps a server from starting is said in one line and a hint, and changes nothing.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	w := world.New(t, world.Options{})
	v := verbs{t, w}
	v.one("cradle account create acme")
	v.one("cradle audit export --account acme --out @/acme.jsonl") // signs
	// Another folder on the port that is taken; the same folder on another port; a file in the folder's place.
	v.bad(1, "the port is taken", "cradle serve --data @/other --listen "+w.Addr)
	v.bad(1, "another cradle serve runs on", "cradle serve --listen 127.0.0.1:0")
	w.Write("file", "")
	v.bad(1, "data folder", "cradle serve --data @/file --listen 127.0.0.1:0")
	v.bad(2, "--role", "cradle serve --data @/other --role moon")
	v.bad(2, "run together", "cradle serve --data @/other --role provider,provider,hub")
	v.bad(2, "--host", "cradle serve --data @/other --host https://iot.example.com")
	v.bad(2, "--region", "cradle serve --data @/other --region ../eu")
	v.bad(2, "--db mysql://", "cradle serve --data @/other --db mysql://db.example.com/cradle")
	v.bad(1, "the store is away", "cradle serve --data @/other --listen 127.0.0.1:0 --db postgres://127.0.0.1:1/none?connect_timeout=2")
	v.one("cradle status") // the one that runs was not disturbed
	if code := w.Server().Stop(); code != 0 {
		t.Fatalf("cradle serve ended with %d", code)
	}

	// Under another name its logs would not verify any more.
	v.bad(1, "in region local", "cradle serve --listen 127.0.0.1:0 --region eu")

	// A folder that a newer version made.
	file := filepath.Join(w.Data, "provider.db")
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v.bad(1, "99999", "cradle serve --listen 127.0.0.1:0")
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the refused start changed the database (%v)", err)
	}
}

// TestServeMakesNoSecond: a folder that has served gets neither a new key-encryption key nor a new, empty provider.
func TestServeMakesNoSecond(t *testing.T) {
	t.Parallel()
	w := world.New(t, world.Options{})
	v := verbs{t, w}
	if code := w.Server().Stop(); code != 0 {
		t.Fatalf("cradle serve ended with %d", code)
	}
	access, err := os.ReadFile(filepath.Join(w.Data, "context.json"))
	if err != nil {
		t.Fatal(err)
	}
	key, aside := filepath.Join(w.Data, "key-encryption-key"), w.Path("kept-key")
	if err := os.Rename(key, aside); err != nil {
		t.Fatal(err)
	}
	v.bad(1, "key-encryption-key is missing", "cradle serve --listen 127.0.0.1:0")
	if _, err := os.Stat(key); err == nil {
		t.Error("a refused start made a new key-encryption key")
	}
	if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	v.bad(1, "another key-encryption key", "cradle serve --listen 127.0.0.1:0") // another installation's
	if err := os.Rename(aside, key); err != nil {
		t.Fatal(err)
	}

	store := filepath.Join(w.Data, "provider.db")
	if err := os.Rename(store, w.Path("kept.db")); err != nil {
		t.Fatal(err)
	}
	v.bad(1, "has served an installation", "cradle serve --listen 127.0.0.1:0")
	if _, err := os.Stat(store); err == nil {
		t.Error("a refused start made a new store")
	}
	if err := os.WriteFile(store, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	v.bad(1, "has served an installation", "cradle serve --listen 127.0.0.1:0") // a store, and nothing in it
	if after, err := os.ReadFile(filepath.Join(w.Data, "context.json")); err != nil || !bytes.Equal(access, after) {
		t.Errorf("a refused start changed the operator's access (%v)", err)
	}
	for _, f := range []string{store + "-wal", store + "-shm"} {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(w.Path("kept.db"), store); err != nil {
		t.Fatal(err)
	}
	w.Addr = testenv.Address(t) // which nobody was told
	p := w.Start()
	v.one("cradle status")
	if !strings.Contains(p.Log(), "another address than at the last start") {
		t.Errorf("the log does not say that the address is another: %s", p.Log())
	}
}

// TestLineRefuses: what the line may not make, through every program between the TPM and the store.
func TestLineRefuses(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{Quantity: 2})
	w.Acts()
	v := verbs{t, w}
	personalise := func(serial, tpm string) string {
		return "cradle-oem personalise --dir @/oem --order order-1 --serial " + serial + " --tpm " + tpm + " --unit @/units/" + serial
	}
	good := func(name string) string { return w.NewTPM(name, world.GoodTPM).Socket() }
	v.bad(1, "no TPM at", personalise("sn-0001", "@/no-tpm"))
	v.bad(1, "neither a TPM device nor", personalise("sn-0001", w.Write("tpm-file", "")))
	v.bad(1, "EK certificate", personalise("sn-0001", w.NewTPM("bare", tpmmaker.Options{Fault: tpmmaker.NoCertificate}).Socket()))
	v.bad(1, "ek-validity", personalise("sn-0001", w.NewTPM("expired", tpmmaker.Options{Fault: tpmmaker.Expired}).Socket()))
	v.bad(1, "sn-0009", personalise("sn-0009", good("nine")))

	// A TPM of a maker that is not imported.
	mine := w.Maker
	other, err := tpmmaker.NewMaker(w.Path("other-maker"))
	if err != nil {
		t.Fatal(err)
	}
	w.Maker = other
	foreign := good("foreign")
	w.Maker = mine
	v.bad(1, "ek-untrusted", personalise("sn-0001", foreign))
	// Imported as another maker than the order allows.
	w.Write("other-maker.pem", string(other.CABundle()))
	v.one("cradle tpm-maker import @/other-maker.pem --maker other --tier simulator")
	v.bad(1, "maker-forbidden", personalise("sn-0001", foreign))
	if o := v.one("cradle order show order-1"); o["used"] != 0.0 {
		t.Errorf("refused units count: %v", o)
	}

	units := w.Personalise(2)
	v.bad(1, "sn-0003", personalise("sn-0003", good("three")))
	// An order that the OEM did not countersign, one that somebody changed.
	w.Write("order-2.toml", strings.ReplaceAll(w.OrderFile("order-2", "zz-"), `"sn-`, `"zz-`))
	v.one("cradle order create --account acme --oem oakline --file @/order-2.toml --out @/order-2.jws")
	w.Write("order-3.toml", regexp.MustCompile(`(?m)^tpm_makers.*$`).ReplaceAllString(w.OrderFile("order-3", "yy-"), `tpm_makers = ["nobody"]`))
	if r := v.run("cradle order create --account acme --oem oakline --file @/order-3.toml --out @/order-3.jws"); r.Code != 0 || !strings.HasPrefix(r.Stderr, "warning: no TPM maker nobody is imported") {
		t.Errorf("an order for a maker that nobody imported: %d %s", r.Code, r.Stderr)
	}
	v.bad(1, "order-2 was not accepted", "cradle-oem personalise --dir @/oem --order order-2 --serial zz-0001 --tpm "+good("zz")+" --unit @/zz")
	jws, err := os.ReadFile(w.Path("order-2.jws"))
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(jws, []byte(`"payload":"`)) + len(`"payload":"`)
	payload, rest, _ := strings.Cut(string(jws[i:]), `"`)
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		t.Fatal(err)
	}
	w.Write("tampered.jws", string(jws[:i])+base64.RawURLEncoding.EncodeToString(bytes.Replace(text, []byte(`"Sensor"`), []byte(`"Sensation"`), 1))+`"`+rest)
	v.bad(1, "signature", "cradle-oem order accept @/tampered.jws --dir @/oem")

	// The lot is not closed: the units' IDevIDs are inert.
	c := w.Client(units[0])
	if _, err := c.Enrol(t.Context(), cradle.LDevID, c.Certificate(device.ByIDevID)); cradle.KindOf(err) != cradle.Forbidden || !strings.Contains(err.Error(), "not accepted") {
		t.Errorf("an LDevID before the lot is accepted: %v", err)
	}
	c.Close()
	a := w.Agent(units) // waits, and goes on by itself
	w.Wait("the agents to be refused", time.Minute, func() (bool, string) {
		for _, u := range units {
			if r := w.Status(u); r.Stage != device.StageRefused {
				return false, world.Problem(r)
			}
		}
		return true, ""
	})
	w.CloseLot()
	w.AwaitConnected(2*time.Minute, units...)
	if code := a.Stop(); code != 0 {
		t.Errorf("the agent ended with %d: %s", code, a.Log())
	}
	w.Check()
}

// TestESTRefuses: requests that are wrong in form, and certificates that may not ask, over the wire.
func TestESTRefuses(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{OperationalValidity: 90 * time.Second, RenewalFraction: 0.9})
	w.Acts()
	units := w.Make(2)
	p := w.Agent(units)
	w.AwaitConnected(time.Minute, units...)
	p.Kill()
	ctx := t.Context()
	c, other := w.Client(units[0]), w.Client(units[1])
	operational := c.Certificate(c.Active())
	ldevid := c.Certificate(device.ByLDevID)
	a := w.Admin()
	before := w.Count(a, units[0])

	request := func() []byte { // a good one, anew
		key, err := c.TPM.EnsureLDevID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		der, err := c.Request(ctx, cradle.LDevID, ldevid, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	csr := request()
	post := func(cert *tls.Certificate, label cradle.Profile, op string, body []byte) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.LabelURL(label)+"/"+op, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", est.TypePKCS10)
		resp, err := w.HTTP(cert).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	whole := base64.StdEncoding.EncodeToString(csr)
	flipped := bytes.Clone(csr)
	flipped[len(flipped)-1] ^= 1
	strange := certificate(t, nil, string(units[0].ID))
	inName := certificate(t, operational.Leaf, string(units[0].ID)) // names our CA as its issuer, signed by another key
	for _, r := range []struct {
		name  string
		cert  *tls.Certificate
		label cradle.Profile
		op    string
		body  string
		code  int
		text  string
	}{
		{"empty", ldevid, cradle.LDevID, "simpleenroll", "", 400, "empty"},
		{"not base64", ldevid, cradle.LDevID, "simpleenroll", "%%%%", 400, "base64"},
		{"truncated base64", ldevid, cradle.LDevID, "simpleenroll", whole[:len(whole)-3], 400, "base64"},
		{"truncated DER", ldevid, cradle.LDevID, "simpleenroll", base64.StdEncoding.EncodeToString(csr[:len(csr)/2]), 400, "PKCS#10"},
		{"too large", ldevid, cradle.LDevID, "simpleenroll", strings.Repeat("A", 1<<20), 413, "65536"},
		{"no CSR", ldevid, cradle.LDevID, "simpleenroll", base64.StdEncoding.EncodeToString(ldevid.Certificate[0]), 400, "PKCS#10"},
		{"signature of the CSR", ldevid, cradle.LDevID, "simpleenroll", base64.StdEncoding.EncodeToString(flipped), 0, "signature"},
		{"for another label", ldevid, cradle.Operational, "simpleenroll", whole, 403, "challenge-label"},
		{"no certificate", nil, cradle.LDevID, "simpleenroll", whole, 403, "certificate"},
		{"foreign certificate", strange, cradle.LDevID, "simpleenroll", whole, 403, "not issued here"},
		{"in our CA's name", inName, cradle.LDevID, "simpleenroll", whole, 403, "not issued here"},
		{"the wrong credential", operational, cradle.LDevID, "simpleenroll", whole, 403, "does not authenticate"},
		{"another device's evidence", other.Certificate(device.ByLDevID), cradle.LDevID, "simpleenroll", whole, 403, "challenge-client"},
		{"unknown label", ldevid, "moon", "simpleenroll", whole, 404, "acme-moon"},
		{"a key made by the server for one that proved its own", ldevid, cradle.LDevID, "serverkeygen", whole, 403, "began with evidence"},
		{"no such operation", ldevid, cradle.LDevID, "fullcmc", whole, 501, "not implemented"},
	} {
		code, text := post(r.cert, r.label, r.op, []byte(r.body))
		first, hint, _ := strings.Cut(strings.TrimSpace(text), "\n")
		if code != r.code && (r.code != 0 || code/100 != 4) || !strings.Contains(text, r.text) || first == "" || strings.Contains(hint, "\n") {
			t.Errorf("%s: %d %q, want %d %q: a reason and a hint", r.name, code, text, r.code, r.text)
		}
	}
	cut(t, w, ldevid, whole)
	if after := w.Count(a, units[0]); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("refused requests changed the store: %v, before %v", after, before)
	}

	// The very request that all of them spoiled is good; a second time it gives the same certificate.
	first, err := w.EST(cradle.LDevID, ldevid).SimpleEnroll(ctx, csr)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.EST(cradle.LDevID, ldevid).SimpleEnroll(ctx, csr)
	if err != nil || !again.Equal(first) {
		t.Errorf("the same request again: %v", err)
	}

	// Expired: EST, provisioning and hub refuse it; the LDevID heals.
	time.Sleep(time.Until(operational.Leaf.NotAfter.Add(time.Second)))
	if _, err := c.Enrol(ctx, cradle.Operational, operational); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("EST by an expired certificate: %v", err)
	}
	if err := c.Register(ctx, operational); err == nil {
		t.Error("provisioning accepts an expired certificate")
	}
	if err := c.Connect(ctx, operational); err == nil {
		t.Error("the hub accepts an expired certificate")
	}
	for _, cert := range []*tls.Certificate{nil, strange, inName} {
		if err := c.Register(ctx, cert); err == nil {
			t.Errorf("provisioning accepts %v", cert)
		}
		if err := c.Connect(ctx, cert); err == nil {
			t.Errorf("the hub accepts %v", cert)
		}
	}
	c.Close()
	other.Close()
	p = w.Agent(units)
	w.AwaitConnected(time.Minute, units...)
	p.Stop()
	w.Check()
}

// certificate makes a self-made client certificate, which may name another one's issuer.
func certificate(t *testing.T, as *x509.Certificate, name string) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{Organization: []string{world.Account}, CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	own := &testca.Pair{Cert: template, Key: testca.Key(t)}
	by := &testca.Pair{Cert: template, Key: own.Key}
	if as != nil {
		by.Cert = &x509.Certificate{RawSubject: as.RawIssuer, SubjectKeyId: as.AuthorityKeyId}
	}
	own.Cert = testca.Sign(t, template, by, own.Key.Public())
	c := own.TLS()
	return &c
}

// cut sends half of a request and hangs up, a few times; the server goes on.
func cut(t *testing.T, w *world.World, cert *tls.Certificate, body string) {
	t.Helper()
	for range 5 {
		conn, err := tls.Dial("tcp", w.Addr, w.TLS(cert))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			strings.TrimPrefix(w.LabelURL(cradle.LDevID), w.URL()), est.TypePKCS10, len(body), body[:len(body)/2])
		if err := conn.CloseWrite(); err != nil && !strings.Contains(err.Error(), net.ErrClosed.Error()) {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) {
			t.Errorf("half of a request was answered with %.60q", answer)
		}
	}
}
