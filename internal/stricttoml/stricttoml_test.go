package stricttoml_test

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/stricttoml"
)

type thing struct {
	Name    string             `toml:"name"`
	Count   int8               `toml:"count"`
	Share   float64            `toml:"share"`
	On      bool               `toml:"on"`
	Keys    []string           `toml:"keys"`
	From    time.Time          `toml:"from"`
	Life    time.Duration      `toml:"life"`
	Terms   struct{ Days int } `toml:"terms"`
	Several []struct{ X int }  `toml:"several"`
}

// What is wrong is said with line and key, and without a word of Go.
func TestReason(t *testing.T) {
	for text, want := range map[string]string{
		"name = 5":                      `line 1: "name": it is a whole number, not text in quotes`,
		"# a\nname = [1]":               `line 2: "name": it is a list, not text in quotes`,
		"name = 2026-01-01":             `line 1: "name": it is a date, not text in quotes`,
		"[name]\nx = 1":                 `line 1: "name": it is a table, not text in quotes`,
		`count = "5"`:                   `line 1: "count": it is text in quotes, not a whole number`,
		"count = 1.5":                   `line 1: "count": it is a number, not a whole number`,
		"count = 300":                   `line 1: "count": 300 is out of range`,
		"share = true":                  `line 1: "share": it is true or false, not a number`,
		"on = 1":                        `line 1: "on": it is a whole number, not true or false`,
		`keys = "a"`:                    `line 1: "keys": it is text in quotes, not a list`,
		"keys = [1]":                    `line 1: "keys": it is a whole number, not text in quotes`,
		"[[keys]]\nx = 1":               `line 1: "keys": it is a table, not text in quotes`,
		`life = "soon"`:                 `line 1: "life": invalid duration: "soon"`,
		"from = {}":                     `line 1: "from": it is a table, not text in quotes`,
		`from = "2027"`:                 `line 1: "from": "2027" is not a time; write it like 2027-12-31T00:00:00Z`,
		"terms = 5":                     `line 1: "terms": it is a whole number, not a table`,
		"\n[terms]\ndays = \"x\"":       `line 3: "terms.days": it is text in quotes, not a whole number`,
		"[[several]]\nx = 1\n[several]": `line 3: Key 'several' has already been defined.`,
		"several = [5]":                 `line 1: "several": it is a whole number, not a table`,
		"name = x":                      `line 1: "name": expected value but found "x" instead`,
		"name = ":                       `line 1: "name": unexpected EOF; expected value`,
		"other = 5":                     `unknown key "other"`,
		"[terms]\nother = 5":            `unknown key "terms.other"`,
	} {
		var x thing
		if err := stricttoml.Decode(text, &x); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
	var unknown *stricttoml.Unknown
	if err := stricttoml.Decode("x = 1", &thing{}); !errors.As(err, &unknown) || unknown.Key != "x" {
		t.Errorf("got %v", err)
	}
	var tables map[string]thing
	if err := stricttoml.Decode("[a]\nname = \"n\"\n\n[b]\n\non = \"yes\"", &tables); err == nil || err.Error() != `line 6: "b.on": it is text in quotes, not true or false` {
		t.Errorf("got %v", err)
	}
}

// FuzzDecode: whatever a file holds, no type of Go is named.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"name = 5", "[[several]]\nx = 'a'", "terms = [[1]]", "from = 1", "count = 1e9", "on = {a = [true]}", "life = 5.5"} {
		f.Add(s)
	}
	gone := regexp.MustCompile(`(?i)interface \{|map\[string|\[\]any|int64|float64|incompatible types|destination has|\bstruct\b`)
	f.Fuzz(func(t *testing.T, text string) {
		var x thing
		if err := stricttoml.Decode(text, &x); err != nil && gone.MatchString(err.Error()) && !gone.MatchString(text) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
