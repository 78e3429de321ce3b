package adminserver_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider/adminserver"
)

var update = flag.Bool("update", false, "rewrite docs/openapi.json")

const committed = "../../docs/openapi.json"

// TestOpenAPI holds the committed document against the served one. Rewrite it with: go test ./provider/adminserver -run OpenAPI -update
func TestOpenAPI(t *testing.T) {
	s, _ := server(t)
	resp, err := s.Client().Get(s.URL + "/admin/v1/openapi.json") // no token
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	served, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s %v", resp.Status, served, err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, served, "", "  "); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	if *update {
		if err := os.WriteFile(committed, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, b.Bytes()) {
		t.Error("docs/openapi.json is not what is served; rewrite it with -update and look at the difference")
	}
}

// TestOpenAPIRefers: every reference in the document leads somewhere, every operation can be refused, and every route for
// holders of a token is there.
func TestOpenAPIRefers(t *testing.T) {
	b, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths      map[string]map[string]struct{ Responses map[string]any }
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(b), `"$ref": "#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("no schema %s", name)
		}
	}
	for _, r := range adminserver.Routes() { // none is served without a word about it
		method, path, _ := strings.Cut(r.Pattern, " ")
		if _, ok := doc.Paths[admin.Prefix+strings.ReplaceAll(path, "...", "")][strings.ToLower(method)]; !ok {
			t.Errorf("%s is not in the document", r.Pattern)
		}
	}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			if op.Responses["default"] == nil {
				t.Errorf("%s %s says nothing of refusals", method, path)
			}
		}
	}
}

// FuzzBody: whatever arrives as the body of an admin or OEM call is refused, or is a message that
// encodes to JSON which decodes to the same message.
func FuzzBody(f *testing.F) {
	decoders := adminserver.Decoders()
	for i := range decoders {
		for _, seed := range []string{`{}`, `null`, `[]`, `{"name":"acme","order_key":"AAAA"}`, `{"jws":{"payload":""}}`, `{"reason":"lost"}`, `{"reason":"a","reason":"b"}`,
			`{"custody":null}`, `{"pem":"x","tier":"discrete-tpm","maker":"m"}`, `{"x":1}`, `{"reason":"` + "\xff" + `"}`, `{} {}`} {
			f.Add(byte(i), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		decode := decoders[int(which)%len(decoders)]
		v, err := decode(b)
		if err != nil {
			return
		}
		first, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("accepted, but does not encode: %q: %v", b, err)
		}
		again, err := decode(first)
		if err != nil {
			t.Fatalf("accepted %q, but not what it encodes to, %s: %v", b, first, err)
		}
		second, err := json.Marshal(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%q is read as %s and then as %s (%v)", b, first, second, err)
		}
	})
}
