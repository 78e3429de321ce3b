package adminserver_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// fetch asks with a token, none if empty.
func fetch(t *testing.T, s *httptest.Server, method, path, token string, body string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, b
}

// TestExportAway: an export that cannot begin is answered, not broken off.
func TestExportAway(t *testing.T) {
	s, _, db := serverOn(t)
	if err := db.(io.Closer).Close(); err != nil {
		t.Fatal(err)
	}
	code, h, b := fetch(t, s, http.MethodGet, "/admin/v1/audit/provider", client(s, "").Token, "")
	if code != http.StatusServiceUnavailable || h.Get("Retry-After") == "" || !strings.Contains(string(b), "store is closed") {
		t.Errorf("%d, Retry-After %q, %s", code, h.Get("Retry-After"), b)
	}
}

// TestTilesOverHTTP: a log's tiles need a token of its account until it is published; then a witness reads the
// checkpoint, cosigns it and hands it in without any token.
func TestTilesOverHTTP(t *testing.T) {
	s, p := server(t)
	owner, acme, other := client(s, ""), client(s, "acme"), client(s, "other")
	for _, name := range []cradle.AccountID{"acme", "other"} {
		if err := owner.Call(t.Context(), http.MethodPost, "/accounts", admin.CreateAccount{Name: name, OrderKey: orderKey(t)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Export(t.Context(), "acme", ledger.NewWriter(io.Discard)); err != nil { // signs
		t.Fatal(err)
	}
	const base = admin.TilesPrefix + "/acme"
	for _, path := range []string{"/checkpoint", "/tile/0/000.p/1", "/tile/entries/000.p/1"} {
		for who, c := range map[string]struct {
			token string
			want  int
		}{"nobody": {"", 401}, "another account": {other.Token, 404}, "the account": {acme.Token, 200}, "the installation": {owner.Token, 200}} {
			if code, _, b := fetch(t, s, http.MethodGet, base+path, c.token, ""); code != c.want {
				t.Errorf("%s as %s: %d %s", path, who, code, b)
			}
		}
	}
	if a, _, _ := fetch(t, s, http.MethodGet, admin.TilesPrefix+"/acme/checkpoint", "", ""); a != 401 {
		t.Errorf("a log that is there: %d", a)
	}
	if a, _, _ := fetch(t, s, http.MethodGet, admin.TilesPrefix+"/nothing/checkpoint", "", ""); a != 401 {
		t.Errorf("a log that is not there looks different: %d", a)
	}
	if err := acme.Call(t.Context(), http.MethodPost, "/audit/acme/publish", admin.Publish{Public: true}, nil); err != nil {
		t.Fatal(err)
	}
	code, h, msg := fetch(t, s, http.MethodGet, base+"/checkpoint", "", "")
	if code != 200 || h.Get("Cache-Control") != "no-cache" || !strings.HasPrefix(h.Get("Content-Type"), "text/plain") {
		t.Fatalf("published: %d %v %s", code, h, msg)
	}
	key, err := p.LogKey("acme")
	if err != nil {
		t.Fatal(err)
	}
	c, err := ledger.OpenCheckpoint(msg, key)
	if err != nil {
		t.Fatal(err)
	}
	_, _, tile := fetch(t, s, http.MethodGet, base+"/tile/0/000.p/1", "", "")
	_, _, entry := fetch(t, s, http.MethodGet, base+"/tile/entries/000.p/1", "", "")
	if len(entry) < 2 || int(binary.BigEndian.Uint16(entry)) != len(entry)-2 {
		t.Fatalf("the bundle of one entry has %d bytes", len(entry))
	}
	leaf := ledger.Leaf{Data: entry[2:]}.Hash()
	if !bytes.Equal(tile, leaf[:]) || c.Size != 1 || c.Root != leaf {
		t.Errorf("tile %x, leaf %x, checkpoint %+v", tile, leaf, c)
	}
	for _, path := range []string{"/tile/0/000", "/tile/0/001.p/1", "/tile/0/000.p/2", "/tile/9/000", "/tile/", "/tile/../checkpoint", "/tile/0/000.p/1/", "/tile/data/000"} {
		if code, _, b := fetch(t, s, http.MethodGet, base+path, "", ""); code != 404 && !(strings.Contains(path, "..") && code == 400) {
			t.Errorf("%s: %d %s", path, code, b)
		}
	}
	if code, _, _ := fetch(t, s, http.MethodPut, base+"/tile/0/000.p/1", owner.Token, ""); code != 405 {
		t.Errorf("writing a tile: %d", code)
	}

	_, k, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	vkey, err := ledger.WitnessKey("w.example.com/1", k.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ledger.Cosign(msg, key, "w.example.com/1", k, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if code, _, b := fetch(t, s, http.MethodPost, base+"/checkpoint", "", string(signed)); code != 403 {
		t.Errorf("a stranger's cosignature: %d %s", code, b)
	}
	if err := acme.Call(t.Context(), http.MethodPost, "/audit/acme/witnesses", admin.AddWitness{Key: vkey}, nil); err != nil {
		t.Fatal(err)
	}
	if code, _, b := fetch(t, s, http.MethodPost, base+"/checkpoint", "", string(signed)); code != 200 || !bytes.Contains(b, []byte("w.example.com/1")) {
		t.Errorf("the witness: %d %s", code, b)
	}
	for name, body := range map[string]string{"empty": "", "text": "hello", "huge": strings.Repeat("a", 1<<20)} {
		if code, _, b := fetch(t, s, http.MethodPost, base+"/checkpoint", "", body); code != 400 && code != 413 {
			t.Errorf("%s: %d %s", name, code, b)
		}
	}
	var ws []admin.Witness
	if err := acme.Call(t.Context(), http.MethodGet, "/audit/acme/witnesses", nil, &ws); err != nil || len(ws) != 1 || ws[0].Key != vkey {
		t.Errorf("got %v, %v", ws, err)
	}
	for _, q := range []struct {
		method, path string
		in           any
	}{{http.MethodGet, "/audit/acme/witnesses", nil}, {http.MethodPost, "/audit/acme/witnesses", admin.AddWitness{Key: vkey}}, {http.MethodDelete, "/audit/acme/witnesses/w.example.com%2F1", nil},
		{http.MethodPost, "/audit/acme/cosignatures", admin.Cosigned{}}, {http.MethodPost, "/audit/acme/publish", admin.Publish{}}} {
		if err := other.Call(t.Context(), q.method, q.path, q.in, nil); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("another account's %s %s: %v", q.method, q.path, err)
		}
	}
	if err := acme.Call(t.Context(), http.MethodDelete, "/audit/acme/witnesses/w.example.com%2F1", nil, nil); err != nil {
		t.Error(err)
	}
}
