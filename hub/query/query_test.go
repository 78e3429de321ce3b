package query_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub/query"
)

func TestPrint(t *testing.T) {
	for in, want := range map[string]string{
		"select * from devices":                                                                   "SELECT * FROM devices",
		"SELECT * FROM Devices ":                                                                  "SELECT * FROM devices",
		"SELECT deviceid, tags.location.region AS r FROM devices":                                 "SELECT deviceId, tags.location.region AS r FROM devices",
		"SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'":                             "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'",
		`SELECT * FROM devices WHERE tags.a = "it's" and (status<>'x' OR not 1 < version)`:        `SELECT * FROM devices WHERE tags.a = 'it\'s' AND (status != 'x' OR NOT 1 < version)`,
		`SELECT * FROM devices WHERE tags['odd name'].x in ('a', -1.5e3, true, null)`:             `SELECT * FROM devices WHERE tags['odd name'].x IN ['a', -1.5e3, true, null]`,
		"SELECT * FROM devices WHERE tags.a NOT IN ['it''s']":                                     `SELECT * FROM devices WHERE tags.a NOT IN ['it\'s']`,
		"SELECT * FROM devices WHERE (status = 'a' AND status = 'b') AND ((status = 'c'))":        "SELECT * FROM devices WHERE status = 'a' AND status = 'b' AND status = 'c'",
		"SELECT * FROM devices WHERE status = 'a' AND (status = 'b' AND status = 'c')":            "SELECT * FROM devices WHERE status = 'a' AND (status = 'b' AND status = 'c')",
		"SELECT * FROM devices WHERE NOT (NOT is_defined(tags.x)) AND starts_with(deviceId,'a')":  "SELECT * FROM devices WHERE NOT NOT IS_DEFINED(tags.x) AND STARTSWITH(deviceId, 'a')",
		"SELECT status, COUNT() AS n FROM devices GROUP BY status":                                "SELECT status, COUNT() AS n FROM devices GROUP BY status",
		"SELECT count(*) FROM devices WHERE capabilities.iotEdge = true":                          "SELECT COUNT() FROM devices WHERE capabilities.iotEdge = true",
		"SELECT properties.reported.$version FROM devices WHERE ENDSWITH(tags.a, '') or 1=tags.b": "SELECT properties.reported.$version FROM devices WHERE ENDSWITH(tags.a, '') OR 1 = tags.b",
	} {
		q, err := query.Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if q.String() != want {
			t.Errorf("%s\n got %s\nwant %s", in, q, want)
		}
	}
}

// Refused are the constructs that a page of the documentation names too; see TestPage.
var refused = map[string]string{
	"":                                                                           "at character 1: expected SELECT, found the end",
	"SELECT":                                                                     "expected a property, found the end",
	"SELECT * FROM":                                                              "expected devices or devices.modules",
	"SELECT * FROM devices.jobs":                                                 "at character 15: devices.jobs cannot be queried",
	"SELECT * FROM enrollments":                                                  "expected devices or devices.modules, found enrollments",
	"SELECT TOP 10 * FROM devices":                                               "at character 8: TOP is not served",
	"SELECT * FROM devices ORDER BY x":                                           "at character 23: ORDER is not served",
	"SELECT * FROM devices JOIN x":                                               "JOIN is not served",
	"SELECT DISTINCT status FROM devices":                                        "DISTINCT is not served",
	"SELECT AVG(tags.x) FROM devices":                                            "function AVG is not served here, only COUNT()",
	"SELECT *, status FROM devices":                                              "expected FROM, found ,",
	"SELECT * FROM devices GROUP BY tags.x":                                      "SELECT * cannot be grouped",
	"SELECT status, COUNT() FROM devices":                                        "status is selected but not in GROUP BY",
	"SELECT COUNT(), COUNT() AS n FROM devices":                                  "COUNT() stands there twice",
	"SELECT tags.x, properties.reported.x FROM devices":                          `two columns are named "x"`,
	"SELECT * FROM devices WHERE tag.x = 1":                                      `at character 29: devices have no "tag"`,
	"SELECT * FROM devices WHERE tags.x LIKE 'a%'":                               "LIKE is not served",
	"SELECT * FROM devices WHERE tags.x BETWEEN 1":                               "BETWEEN is not served",
	"SELECT * FROM devices WHERE tags.x = 1 + 2":                                 `at character 40: operator "+" is not served`,
	"SELECT * FROM devices WHERE tags.x = 'a":                                    "at character 38: this text has no closing quote",
	`SELECT * FROM devices WHERE tags.x = 'a\n'`:                                 "a backslash stands before",
	"SELECT * FROM devices WHERE tags.x = 1x":                                    "neither a number nor a name",
	"SELECT * FROM devices WHERE tags.x = 1e999":                                 "too large a number",
	"SELECT * FROM devices WHERE LENGTH(tags.x) = 1":                             "function LENGTH is not served",
	"SELECT * FROM devices WHERE tags.x[0] = 1":                                  "elements of arrays are not served",
	"SELECT * FROM devices WHERE 1 = 1":                                          "compares two literals",
	"SELECT * FROM devices WHERE 1 IN [1]":                                       "IN asks about a property",
	"SELECT * FROM devices WHERE tags.x IN []":                                   "expected a literal, found ]",
	"SELECT * FROM devices WHERE tags.x":                                         "expected a comparison, found the end",
	"SELECT * FROM devices WHERE (tags.x = 1":                                    "expected ), found the end",
	"SELECT * FROM devices WHERE STARTSWITH(tags.x, tags.y)":                     "expected a text in quotes, found tags",
	"SELECT * FROM devices; DROP TABLE devices":                                  `character ';' has no meaning here`,
	"SELECT * FROM devices WHERE tags.é = 1":                                     `character 'é' has no meaning here`,
	"SELECT * FROM devices WHERE " + strings.Repeat("(", 40) + "tags.x":          "nested deeper than 32",
	"SELECT * FROM devices WHERE " + strings.Repeat("NOT ", 40) + "x":            "nested deeper than 32",
	"SELECT * FROM devices WHERE tags" + strings.Repeat(".x", 40) + "=1":         "nested deeper than 32",
	"SELECT * FROM devices WHERE tags.x IN [1" + strings.Repeat(",1", 300) + "]": "at most 256 terms",
	"SELECT * FROM devices" + strings.Repeat(" ", query.MaxLen):                  "at most 16384",
	"SELECT * FROM devices WHERE tags.x = '\xff'":                                "not UTF-8",
}

func TestRefused(t *testing.T) {
	for in, want := range refused {
		_, err := query.Parse(in)
		if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%.100q: got %v, want %s", in, err, want)
		}
	}
}

// doc makes a device of a JSON object.
func doc(t *testing.T, s string) query.Doc {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var root any
	if err := d.Decode(&root); err != nil {
		t.Fatal(err)
	}
	return func(p query.Path) (any, bool) {
		v := root
		for _, n := range p {
			m, ok := v.(map[string]any)
			if !ok {
				return nil, false
			}
			if v, ok = m[n]; !ok {
				return nil, false
			}
		}
		return v, true
	}
}

const sample = `{"deviceId":"dev-1","status":"enabled","version":7,"tags":{"n":5,"big":4503599627370496,"s":"abc","t":true,"o":{"x":"y"},"a":[1],"odd name":1},
	"properties":{"reported":{"x":1.5,"nil":null}}}`

// TestMatch: what a condition says of one device. Each is asked together with its negation: true and false change
// places, undefined matches neither way.
func TestMatch(t *testing.T) {
	const yes, no, undefined = 1, 0, -1
	d := doc(t, sample)
	for cond, want := range map[string]int{
		"deviceId = 'dev-1'": yes, "deviceId = 'DEV-1'": no, "'dev-1' = deviceId": yes,
		"tags.n = 5": yes, "tags.n = 5.0": yes, "tags.n = '5'": no, "tags.n != '5'": yes, "tags.n < '6'": undefined,
		"tags.n > 4 AND tags.n <= 5": yes, "tags.n >= 5.1": no, "5 < tags.n": no, "tags.big = 4503599627370496": yes, "tags.big = 4503599627370497": no,
		"tags.s < 'abd'": yes, "tags.s >= 'abc'": yes, "tags.s > 'b'": no,
		"tags.t = true": yes, "tags.t = false": no, "tags.t < true": undefined, "tags.t = 1": no,
		"tags.o.x = 'y'": yes, "tags.o = 'y'": no, "tags.a = 1": no, "tags.n.x = 1": undefined,
		"tags['odd name'] = 1": yes,
		"tags.none = 1":        undefined, "tags.none != 1": undefined, "tags.none = tags.other": undefined, "tags.n = tags.none": undefined,
		"tags.none = null": yes, "tags.none != null": no, "tags.n = null": no, "tags.n != null": yes, "null = tags.none": yes, "properties.reported.nil = null": yes,
		"tags.n IN [1, 5]": yes, "tags.n IN ['5']": no, "tags.n NOT IN [1]": yes, "tags.none IN [1]": undefined, "tags.none NOT IN [1]": undefined,
		"IS_DEFINED(tags.n)": yes, "IS_DEFINED(tags.none)": no, "IS_DEFINED(tags.o)": yes, "is_defined(properties.reported.nil)": yes,
		"STARTSWITH(deviceId, 'dev')": yes, "ENDSWITH(deviceId, '-1')": yes, "CONTAINS(deviceId, 'ev')": yes, "STARTSWITH(deviceId, 'ev')": no,
		"STARTSWITH(tags.n, '5')": undefined, "ENDSWITH(tags.none, '')": undefined,
		"tags.none = 1 OR tags.n = 5": yes, "tags.n = 5 OR tags.none = 1": yes, "tags.none = 1 OR tags.n = 6": undefined, "tags.n = 6 OR tags.none = 1": undefined,
		"tags.none = 1 AND tags.n = 5": undefined, "tags.none = 1 AND tags.n = 6": no, "tags.n = 6 AND tags.none = 1": no, "tags.n = 5 AND tags.none = 1": undefined,
		"tags.n = 6 OR tags.n = 5 AND tags.t = true": yes, "(tags.n = 5 OR tags.n = 6) AND tags.t = false": no, "NOT tags.n = 6 AND tags.t = true": yes,
	} {
		for _, not := range []bool{false, true} {
			full := "SELECT * FROM devices WHERE " + cond
			expect := want == yes
			if not {
				full, expect = "SELECT * FROM devices WHERE NOT ("+cond+")", want == no
			}
			q, err := query.Parse(full)
			if err != nil {
				t.Errorf("%s: %v", full, err)
				continue
			}
			if got := q.Match(d); got != expect {
				t.Errorf("%s: got %v", full, got)
			}
		}
	}
}

func TestRows(t *testing.T) {
	q, err := query.Parse("SELECT deviceId, tags.n AS number, tags.none, tags.o FROM devices")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(q.Row(doc(t, sample)))
	if want := `{"deviceId":"dev-1","number":5,"o":{"x":"y"}}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
}

func TestGroups(t *testing.T) {
	docs := []string{`{"status":"enabled","tags":{"r":"a"}}`, `{"status":"enabled","tags":{"r":"b"}}`, `{"status":"disabled","tags":{}}`, `{"status":"enabled","tags":{"r":"a"}}`, `{"status":"enabled","tags":{"r":1}}`}
	for in, want := range map[string]string{
		"SELECT COUNT() AS n FROM devices":                                          `[{"n":5}]`,
		"SELECT COUNT() FROM devices WHERE status = 'none'":                         `[{"$1":0}]`,
		"SELECT status, COUNT() AS n FROM devices GROUP BY status":                  `[{"n":1,"status":"disabled"},{"n":4,"status":"enabled"}]`,
		"SELECT tags.r AS region, COUNT() AS n FROM devices GROUP BY tags.r":        `[{"n":1,"region":"b"},{"n":2,"region":"a"},{"n":1,"region":1},{"n":1}]`,
		"SELECT tags.r FROM devices WHERE status='disabled' GROUP BY tags.r":        `[{}]`,
		"SELECT COUNT() AS n FROM devices WHERE tags.r='a' GROUP BY status, tags.r": `[{"n":2}]`,
	} {
		q, err := query.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		g := q.Groups()
		for _, s := range docs {
			if d := doc(t, s); q.Match(d) {
				if err := g.Add(d, 1); err != nil {
					t.Fatal(err)
				}
			}
		}
		var got, expect any
		b, _ := json.Marshal(g.Rows())
		if json.Unmarshal(b, &got); json.Unmarshal([]byte(want), &expect) != nil || !sameRows(got, expect) {
			t.Errorf("%s\n got %s\nwant %s", in, b, want)
		}
	}
	q, _ := query.Parse("SELECT version FROM devices GROUP BY version")
	g := q.Groups()
	var err error
	for i := range query.MaxGroups + 1 {
		if err = g.Add(doc(t, fmt.Sprintf(`{"version":%d}`, i)), 1); err != nil && i < query.MaxGroups {
			t.Fatal(err)
		}
	}
	if cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("too many groups: %v", err)
	}
}

// sameRows compares without regard to order.
func sameRows(a, b any) bool {
	x, y := a.([]any), b.([]any)
	if len(x) != len(y) {
		return false
	}
	for _, v := range x {
		found := false
		for _, w := range y {
			found = found || reflect.DeepEqual(v, w)
		}
		if !found {
			return false
		}
	}
	return true
}

func TestBounds(t *testing.T) {
	for where, want := range map[string]string{
		"deviceId = 'a'":                          "a,-,false",
		"'a' = deviceId AND status = 'enabled'":   "a,enabled,false",
		"deviceId = 'a' OR status = 'enabled'":    "-,-,false",
		"NOT deviceId = 'a'":                      "-,-,false",
		"deviceId = 'a' AND deviceId = 'b'":       "b,-,true",
		"deviceId != 'a' AND (status='disabled')": "-,disabled,false",
		"deviceId = tags.x AND status = 1":        "-,-,false",
	} {
		q, err := query.Parse("SELECT * FROM devices WHERE " + where)
		if err != nil {
			t.Fatal(err)
		}
		b := q.Bounds()
		show := func(s *string) string {
			if s == nil {
				return "-"
			}
			return *s
		}
		if got := fmt.Sprintf("%s,%s,%v", show(b.DeviceID), show(b.Status), b.Never); got != want {
			t.Errorf("%s: got %s, want %s", where, got, want)
		}
	}
}

// FuzzParse: what is printed reads back as the same query, and it decides about a device the same way.
func FuzzParse(f *testing.F) {
	f.Add("SELECT deviceId, tags.a['b c'] AS x FROM devices.modules WHERE NOT (status = 'it''s' OR tags.x IN [1, -2e3, null]) AND STARTS_WITH(deviceId, \"a\\\"\")")
	f.Add("SELECT status, COUNT() AS n FROM devices WHERE properties.reported.x >= 1 GROUP BY status")
	for in := range refused {
		if len(in) < 200 {
			f.Add(in)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := query.Parse(s)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("kind %v: %v", cradle.KindOf(err), err)
			}
			return
		}
		printed := q.String()
		again, err := query.Parse(printed)
		if err != nil {
			t.Fatalf("%s was printed as %s: %v", s, printed, err)
		}
		if again.String() != printed || !reflect.DeepEqual(q, again) {
			t.Fatalf("%s was printed as %s, which is %s", s, printed, again)
		}
		if d := doc(t, sample); q.Match(d) != again.Match(d) {
			t.Fatal("they decide differently")
		}
	})
}
