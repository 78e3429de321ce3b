package allocate_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

func facts() allocate.Facts {
	var payload any
	if err := json.Unmarshal([]byte(`{"site":"north","n":3,"list":["hub-9"]}`), &payload); err != nil {
		panic(err)
	}
	return allocate.Facts{
		RegistrationID: "acme-cam-0001", Account: "acme", Enrolment: "acme-production", Attestation: "x509", Order: "ord-7", Lot: "lot-1",
		Tier: "discrete-tpm", Proved: true, TPMMaker: "ifx", EKType: "ecc-p256", Region: "eu", CurrentHub: "hub-1", Hubs: []string{"hub-1", "hub-2"}, Payload: payload,
	}
}

func TestExpression(t *testing.T) {
	for _, c := range []struct {
		source string
		want   []string
		err    string
	}{
		{source: `"hub-1"`, want: []string{"hub-1"}},
		{source: `tier == "discrete-tpm" && proved ? ["hub-1", "hub-2"] : ["hub-3"]`, want: []string{"hub-1", "hub-2"}},
		{source: `registration_id.startsWith("acme-cam-") ? "cams" : "rest"`, want: []string{"cams"}},
		{source: `hubs.filter(h, h != current_hub)`, want: []string{"hub-2"}},
		{source: `order == "ord-7" && lot == "lot-1" && tpm_maker == "ifx" && ek_type == "ecc-p256" && region == "eu" ? account : enrollment`, want: []string{"acme"}},
		{source: `untrusted.payload.site == "north" ? "hub-1" : "hub-2"`, want: []string{"hub-1"}},
		{source: `untrusted.payload.site`, want: []string{"north"}}, // the decision holds it to the enrolment's hubs
		{source: `untrusted.payload.list`, want: []string{"hub-9"}},
		{source: `has(untrusted.payload.gone) ? "a" : "b"`, want: []string{"b"}},
		{source: `[]`, want: nil},
		{source: `untrusted.payload.gone`, err: "no such key"},
		{source: `untrusted.payload.n`, err: "not a hub's name"},
		{source: `[untrusted.payload.n]`, err: "not a hub's name"},
		{source: `untrusted.payload`, err: "not a hub's name"},
	} {
		e, err := allocate.Compile(c.source)
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		got, err := e.Evaluate(t.Context(), facts())
		if c.err != "" {
			if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v %v, want %q", c.source, got, err, c.err)
			}
		} else if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v %v, want %v", c.source, got, err, c.want)
		}
	}
	var none allocate.Facts // nothing known, no payload
	e, err := allocate.Compile(`untrusted.payload == null && hubs.size() == 0 ? "none" : "some"`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := e.Evaluate(t.Context(), none); err != nil || got[0] != "none" {
		t.Errorf("no facts: %v %v", got, err)
	}
}

func TestExpressionRefused(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"", "1 to 4096"},
		{strings.Repeat(" ", 5000), "1 to 4096"},
		{"tier ==\n  tire", "line 2, column 3"},
		{`"hub`, "line 1"},
		{`1 + 1`, "gives int"},
		{`proved`, "gives bool"},
		{`[1]`, "gives list(int)"},
		{`{"a": "b"}`, "gives map"},
		{`payload.hub`, "undeclared reference"}, // only as untrusted.payload
		{strings.Repeat("(", 200) + `"a"` + strings.Repeat(")", 200), "recursion"},
		{strings.Repeat("[", 200) + strings.Repeat("]", 200), "recursion"},
	} {
		if _, err := allocate.Compile(c.source); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: got %v, want %q", c.source, err, c.want)
		}
	}
}

// Bombs end at the cost limit, and take no memory to speak of.
func TestExpressionBombs(t *testing.T) {
	digits := "[0,1,2,3,4,5,6,7,8,9]"
	nested := func(depth int, inner string) string {
		s := inner
		for i := range depth {
			s = digits + ".map(x" + string(rune('a'+i)) + ", " + s + ")[0]"
		}
		return s
	}
	for name, source := range map[string]string{
		"nested loops":     nested(8, `"hub"`),
		"doubling strings": `["x"].map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a).map(a, a+a+a+a+a+a+a+a)[0]`,
		"payload":          `untrusted.payload.big.map(a, untrusted.payload.big.map(b, b)[0])[0]`,
	} {
		e, err := allocate.Compile(source)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f := facts()
		big := make([]any, 5000)
		for i := range big {
			big[i] = "x"
		}
		f.Payload = map[string]any{"big": big}
		if _, err := e.Evaluate(t.Context(), f); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzExpression(f *testing.F) {
	for _, s := range []string{`"a"`, `[registration_id]`, `tier == "x" ? hubs : ["y"]`, `untrusted.payload.a[0]`, `hubs.map(h, h + "x")`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		e, err := allocate.Compile(source)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Errorf("%q: %v", source, err)
			}
			return
		}
		if got, err := e.Evaluate(t.Context(), facts()); err != nil && cradle.KindOf(err) != cradle.Invalid || len(got) > 16 {
			t.Errorf("%q: %v %v", source, got, err)
		}
	})
}
