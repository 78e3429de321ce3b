package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the store is looked at from outside

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/estserver"
	"github.com/cradle-iot/cradle/provider/providerdb"
)

const (
	linePassword = "correct horse battery"
	label        = "acme-operational"
)

// estRig is EST as serve wires it, on a real TLS port over a real provider and store. Account acme lets in the Basic user
// "line" for names gw-* at profile operational, and unit gw-7 of another CA; account globex does the same for its own user.
type estRig struct {
	t      *testing.T
	file   string
	p      *provider.Provider
	server *tls.Certificate
	est    http.Handler
	addr   string
	roots  *x509.CertPool
	logs   *testenv.Buffer

	maker  *testca.Pair    // the other CA
	holder tls.Certificate // gw-1, issued here
}

// outsider makes a client certificate of a CA outside the installation.
func outsider(t testing.TB, ca *testca.Pair, cn string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, KeyUsage: x509.KeyUsageDigitalSignature}
	if change != nil {
		change(tmpl)
	}
	return testca.New(t, tmpl, ca).TLS()
}

func newESTRig(t *testing.T) *estRig {
	t.Helper()
	s := &estRig{t: t, file: filepath.Join(t.TempDir(), "provider.db"), logs: new(testenv.Buffer), roots: x509.NewCertPool()}
	log := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	vault, err := filekey.OpenVault(filepath.Join(t.TempDir(), "kek"), false)
	if err != nil {
		t.Fatal(err)
	}
	db, err := providerdb.Open(t.Context(), s.file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if s.p, err = provider.New(t.Context(), provider.Config{Store: db, Vault: vault, Replica: "r", Log: log}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []cradle.AccountID{"acme", "globex"} {
		spki, err := x509.MarshalPKIXPublicKey(testca.Key(t).Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.p.CreateAccount(t.Context(), a, spki, nil, provider.CAs{}); err != nil {
			t.Fatal(err)
		}
		user := map[cradle.AccountID]string{"acme": "line", "globex": "other"}[a]
		if _, err := s.p.SetBasicUser(t.Context(), provider.BasicUser{Account: a, Profile: cradle.Operational, Name: user, Names: "gw-*"}, linePassword); err != nil {
			t.Fatal(err)
		}
	}
	s.maker = testca.New(t, testca.CA("some maker"), nil)
	manifest, err := provider.ParseManifest("gw-7\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.p.SetClientCA(t.Context(), provider.ClientCA{Account: "acme", Profile: cradle.Operational, Certs: [][]byte{s.maker.Cert.Raw}}, manifest); err != nil {
		t.Fatal(err)
	}
	key := testca.Key(t)
	leaf, err := s.p.ServerCertificate(key.Public(), []string{"localhost", "acme.est.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AddCert(s.p.Services())
	s.server = &tls.Certificate{Certificate: [][]byte{leaf.Raw, s.p.Services().Raw}, PrivateKey: key}
	s.est = estserver.New(estserver.Config{Provider: estProvider{p: s.p, host: "localhost"}, Log: log})
	s.addr = s.listen(front.Config{Log: log})
	s.holder = s.enrol("line", "gw-1")
	return s
}

// listen serves EST on one more port.
func (s *estRig) listen(c front.Config) string {
	s.t.Helper()
	ln, err := front.Listen(s.t.Context(), "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	c.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.server, nil }
	c.Default = front.Route{HTTP: s.est}
	c.Log = slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.Grace = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- front.New(c).Run(ctx, ln) }()
	s.t.Cleanup(func() { cancel(); <-ended })
	return ln.Addr().String()
}

// enrol gets a certificate by password, as a client would.
func (s *estRig) enrol(user, cn string) tls.Certificate {
	s.t.Helper()
	key := testca.Key(s.t)
	account := map[string]string{"line": "acme", "other": "globex"}[user]
	tr := &http.Transport{TLSClientConfig: s.tls(nil)}
	defer tr.CloseIdleConnections()
	c := &est.Client{HTTP: &http.Client{Transport: basicAuth{tr, user, linePassword}}, URL: "https://" + s.addr + est.WellKnown + account + "-operational"}
	cert, err := c.SimpleEnroll(s.t.Context(), csrOf(s.t, cn, key))
	if err != nil {
		s.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

type basicAuth struct {
	next           http.RoundTripper
	user, password string
}

func (b basicAuth) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(b.user, b.password)
	return b.next.RoundTrip(r)
}

func (s *estRig) tls(cert *tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: s.roots, ServerName: "localhost"}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}

func csrOf(t testing.TB, cn string, key crypto.Signer, attributes ...est.Attribute) []byte {
	t.Helper()
	der, err := est.CreateRequest(pkix.Name{CommonName: cn}, key, attributes...)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func b64(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

func basicHeader(user, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// post is a whole request; the connection is closed after it.
func post(op, body string, header ...string) string {
	return request("POST", label+"/"+op, body, append(header, "Content-Type: application/pkcs10")...)
}

func request(method, path, body string, header ...string) string {
	h := strings.Join(append(header, ""), "\r\n")
	if body != "" || method == "POST" {
		h += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return method + " /.well-known/est/" + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + h + "\r\n" + body
}

// send writes bytes on a connection of its own and returns what comes until the server closes it.
func (s *estRig) send(c *tls.Config, bytes string) string {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.addr, c)
	if err != nil {
		return ""
	}
	defer conn.Close()
	go io.WriteString(conn, bytes) // a refused request is not read to its end
	return s.read(conn)
}

// read takes all there is; that the server does not close is an error.
func (s *estRig) read(conn *tls.Conn) string {
	s.t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		s.t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if e, ok := err.(interface{ Timeout() bool }); ok && e.Timeout() {
		s.t.Errorf("the connection stays open after %.200q", got)
	}
	return string(got)
}

// state is every row of the store by table, but for what a refusal may add: leaves and heads of the logs, whose
// leaves must be refusals then.
func (s *estRig) state() (tables map[string]string, leaves int) {
	s.t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.file+"?mode=ro")
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	tables = map[string]string{}
	for _, name := range column(s.t, db, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name") {
		if slices.Contains([]string{"leaves", "logs", "checkpoints", "log_hashes"}, name) {
			continue
		}
		tables[name] = digest(s.t, db, name)
	}
	if err := db.QueryRow(`SELECT count(*) FROM leaves WHERE instr(CAST(data AS TEXT), '"refusal"') = 0`).Scan(&leaves); err != nil {
		s.t.Fatal(err)
	}
	return tables, leaves
}

func column(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func digest(t *testing.T, db *sql.DB, table string) string {
	t.Helper()
	rows, err := db.Query("SELECT * FROM " + table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for rows.Next() {
		row := make([]any, len(names))
		for i := range row {
			row[i] = new(any)
		}
		if err := rows.Scan(row...); err != nil {
			t.Fatal(err)
		}
		line := ""
		for _, v := range row {
			line += fmt.Sprintf("%v|", *v.(*any))
		}
		all = append(all, line)
	}
	slices.Sort(all)
	d := sha256.Sum256([]byte(strings.Join(all, "\n")))
	return fmt.Sprintf("%d rows %s", len(all), hex.EncodeToString(d[:8]))
}

// unchanged runs f and holds that the store is as before, that the refusal is in the log, and that the server goes on.
func (s *estRig) unchanged(t *testing.T, f func()) {
	t.Helper()
	before, leaves := s.state()
	s.logs.Take()
	f()
	after, now := s.state()
	if !maps.Equal(before, after) || leaves != now {
		for name, v := range after {
			if before[name] != v {
				t.Errorf("table %s changed: %s, then %s", name, before[name], v)
			}
		}
		t.Errorf("%d leaves that are no refusals, then %d", leaves, now)
	}
	told := func(log string) bool {
		return strings.Contains(log, "level=WARN msg=est status=4") || strings.Contains(log, "level=WARN msg=est status=5") ||
			strings.Contains(log, "http request refused") || strings.Contains(log, "tls handshake")
	}
	log := s.logs.Take()
	testenv.Eventually(t, "a refusal in the log", func() bool { // a client may learn of the end of its connection before the line is written
		log += s.logs.Take()
		return told(log)
	})
	if got := s.send(s.tls(nil), request("GET", label+"/cacerts", "")); !strings.HasPrefix(got, "HTTP/1.1 200 OK") {
		t.Errorf("afterwards cacerts: %.100q", got)
	}
}

func rawValue(t testing.TB, v any) asn1.RawValue {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{FullBytes: der}
}
