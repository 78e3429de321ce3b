package ca_test

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// docs/profiles.md has every key with its default, and examples that are accepted.
func TestProfileDoc(t *testing.T) {
	b, err := os.ReadFile("../../docs/profiles.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	examples := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(doc, -1)
	if len(examples) < 3 {
		t.Errorf("%d examples", len(examples))
	}
	for _, m := range examples {
		if _, err := ca.ParseProfiles(m[1]); err != nil {
			t.Errorf("example refused: %v\n%s", err, m[1])
		}
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| (.*?) \\|").FindAllStringSubmatch(doc, -1) {
		rows[m[1]] = m[2]
	}
	operational, idevid := reflect.ValueOf(ca.DefaultProfile(cradle.Operational)), reflect.ValueOf(ca.DefaultProfile(cradle.IDevID))
	var walk func(prefix string, op, id reflect.Value)
	walk = func(prefix string, op, id reflect.Value) {
		for i := range op.NumField() {
			f := op.Type().Field(i)
			key := prefix + f.Tag.Get("toml")
			row, there := rows[key]
			delete(rows, key)
			switch {
			case f.Type == reflect.TypeFor[ca.WishRules]():
				walk(key+".", op.Field(i), id.Field(i))
				continue
			case !there:
				t.Errorf("no row for %s", key)
			case f.Type == reflect.TypeFor[[]ca.Extension]():
				walk(key+".", reflect.ValueOf(ca.Extension{}), reflect.ValueOf(ca.Extension{}))
			case prefix == "extension." || key == "kind":
			default:
				if want := "`" + tomlValue(op.Field(i)) + "`"; !strings.HasPrefix(row, want) {
					t.Errorf("%s: default %s, want %s", key, row, want)
				}
				if key == "subject" {
					continue // told as what it has more
				}
				if want := "`" + tomlValue(id.Field(i)) + "`"; !strings.Contains(row, want) {
					t.Errorf("%s: default %s, want %s for idevid", key, row, want)
				}
			}
		}
	}
	walk("", operational, idevid)
	for key := range rows {
		t.Errorf("a row for %s, which is no key", key)
	}
}

func tomlValue(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		var parts []string
		for i := range v.Len() {
			parts = append(parts, tomlValue(v.Index(i)))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Bool, reflect.Float64:
		return fmt.Sprint(v.Interface())
	}
	return fmt.Sprintf("%q", fmt.Sprint(v.Interface()))
}
