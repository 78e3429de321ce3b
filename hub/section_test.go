package hub

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

var at = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func object(t testing.TB, s string) map[string]any {
	t.Helper()
	m, err := iothub.ParseSection("test", []byte(s))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return m
}

// TestMerge has the examples of RFC 7396 appendix A whose target and patch are objects.
func TestMerge(t *testing.T) {
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"a":1.50,"n":12345678901234567890}`, `{"b":true}`, `{"a":1.50,"b":true,"n":12345678901234567890}`},
	} {
		values := object(t, c[0])
		merge(values, map[string]any{}, object(t, c[1]), newStamp(at, 0))
		if got := string(encodeJSON(values)); got != c[2] {
			t.Errorf("%s with %s: got %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

func TestSectionLimits(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for s, ok := range map[string]bool{
		`{}`:                        true,
		` {"a" : [1,{"b":null}] } `: true,
		`{"ü":"\u0000"}`:            true,
		`{"$version":3,"$metadata":{"$lastUpdated":"x"},"a":1}`: true,
		deep(10):                      true,
		deep(11):                      false,
		`{"a":` + deep(10) + `}`:      false,
		`{"a":[[[[[[[[[[1]]]]]]]]]]}`: false,
		`{"` + strings.Repeat("k", 1025) + `":1}`:   false,
		`{"a":"` + strings.Repeat("v", 4097) + `"}`: false,
		`{"a":1` + strings.Repeat("0", 70) + `}`:    false,
		`{"a.b":1}`:                                 false,
		`{"a b":1}`:                                 false,
		`{"$a":1}`:                                  false,
		`{"a":{"$version":1}}`:                      false,
		`{"\u0007":1}`:                              false,
		`{"":1}`:                                    false,
		`{"a":1,"a":2}`:                             false,
		`{"a":1}x`:                                  false,
		`{"a":1`:                                    false,
		`{"a":}`:                                    false,
		`[1]`:                                       false,
		`null`:                                      false,
		``:                                          false,
		"{\"a\":\"\xff\"}":                          false,
	} {
		_, err := iothub.ParseSection("test", []byte(s))
		if (err == nil) != ok || err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%.80s: got %v, want ok %v", s, err, ok)
		}
	}
	if m := object(t, `{"$version":3,"$metadata":{},"a":1}`); len(m) != 1 {
		t.Errorf("got %v", m)
	}
}

func TestSectionSize(t *testing.T) {
	for s, want := range map[string]int{`{}`: 0, `{"ab":"cü"}`: 5, `{"a":1.5}`: 9, `{"a":true}`: 5, `{"a":{"b":[1,2,"x"]}}`: 19, `{"a":"x\u0007\u0085"}`: 2} {
		if got := iothub.SectionSize(object(t, s)); got != want {
			t.Errorf("%s: got %d, want %d", s, got, want)
		}
	}
	s := Section{Values: map[string]any{}, Meta: map[string]any{}, Version: 1}
	chunk := strings.Repeat("x", 4095)
	for i := range 9 {
		err := s.apply("reported properties", map[string]any{string(rune('a' + i)): chunk}, false, iothub.MaxSection, at, false)
		if (err == nil) != (i < 8) || err != nil && cradle.KindOf(err) != cradle.TooLarge {
			t.Errorf("chunk %d: got %v", i, err)
		}
	}
}

func TestMetadata(t *testing.T) {
	s := Section{Values: map[string]any{}, Meta: map[string]any{keyLastUpdated: wireZero}, Version: 1}
	for i, p := range []string{`{"a":{"b":1,"c":2},"d":3}`, `{"a":{"b":5},"d":null}`} {
		if err := s.apply("desired", object(t, p), false, 1000, at.Add(time.Duration(i)*time.Second), true); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"$metadata":{"$lastUpdated":"2026-03-04T05:06:08Z","$lastUpdatedVersion":3,"a":{"$lastUpdated":"2026-03-04T05:06:08Z","$lastUpdatedVersion":3,` +
		`"b":{"$lastUpdated":"2026-03-04T05:06:08Z","$lastUpdatedVersion":3},"c":{"$lastUpdated":"2026-03-04T05:06:07Z","$lastUpdatedVersion":2}}},"$version":3,"a":{"b":5,"c":2}}`
	if got := string(s.encode(true, true)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := s.apply("desired", object(t, `{"z":1}`), true, 1000, at, true); err != nil {
		t.Fatal(err)
	}
	want = `{"$metadata":{"$lastUpdated":"2026-03-04T05:06:07Z","$lastUpdatedVersion":4,"z":{"$lastUpdated":"2026-03-04T05:06:07Z","$lastUpdatedVersion":4}},"$version":4,"z":1}`
	if got := string(s.encode(true, true)); got != want {
		t.Errorf("replaced: got  %s\nwant %s", got, want)
	}
}

// sameShape reports whether the metadata name exactly the properties that are there.
func sameShape(values, meta map[string]any) bool {
	for k := range meta {
		if _, ok := values[k]; !ok && k[0] != '$' {
			return false
		}
	}
	for k, v := range values {
		m, ok := meta[k].(map[string]any)
		if !ok || m[keyLastUpdated] == nil {
			return false
		}
		if sub, isObject := v.(map[string]any); isObject {
			if !sameShape(sub, m) {
				return false
			}
		} else if len(m) != 1 {
			return false
		}
	}
	return true
}

// FuzzMerge holds what RFC 7396 promises: applying a patch twice changes nothing more, null deletes, what the
// patch does not name stays, and the patch that change makes leads from one document to the other.
func FuzzMerge(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1},"c":[1,null]}`), []byte(`{"a":{"b":null,"d":{"e":2}},"c":null}`))
	f.Add([]byte(`{"a":1}`), []byte(`{"a":{"b":null}}`))
	f.Add([]byte(`{}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		from, err := iothub.ParseSection("a", a)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		patch, err := iothub.ParseSection("b", b)
		if err != nil {
			return
		}
		if again, err := iothub.ParseSection("again", encodeJSON(patch)); err != nil || !equal(again, patch) {
			t.Fatalf("%s: encoded %s, %v", b, encodeJSON(patch), err)
		}
		st := newStamp(at, 0)
		doc, meta := map[string]any{}, map[string]any{}
		merge(doc, meta, from, st)
		base := object(t, string(encodeJSON(doc)))
		merge(doc, meta, patch, st)
		for k, v := range base {
			if _, named := patch[k]; !named && !equal(doc[k], v) {
				t.Fatalf("%q was not named and changed", k)
			}
		}
		for k, v := range patch {
			if _, there := doc[k]; there == (v == nil) {
				t.Fatalf("%q: patch %v, there %v", k, v, there)
			}
		}
		if !sameShape(doc, meta) {
			t.Fatalf("metadata %s of %s", encodeJSON(meta), encodeJSON(doc))
		}
		once := string(encodeJSON(doc))
		merge(doc, meta, patch, st)
		if twice := string(encodeJSON(doc)); twice != once {
			t.Fatalf("once %s, twice %s", once, twice)
		}
		diff := object(t, string(encodeJSON(change(base, doc))))
		merge(base, map[string]any{}, diff, st)
		if !equal(base, doc) || !json.Valid(encodeJSON(base)) {
			t.Fatalf("change made %s, led to %s, not %s", encodeJSON(diff), encodeJSON(base), encodeJSON(doc))
		}
	})
}
