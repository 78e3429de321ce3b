// Package stricttoml reads TOML files as people write them: a key that nobody knows is an error, and errors are in the words of
// TOML, with the line and the key. Package toml, which it reads by, names Go's types to whoever wrote the file.
package stricttoml

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/BurntSushi/toml"
)

// Unknown is a key that the reader does not know.
type Unknown struct{ Key string }

func (u *Unknown) Error() string { return fmt.Sprintf("unknown key %q", u.Key) }

// Decode reads text, whole, into a pointer. An error may be shown to whoever wrote it.
func Decode(text string, into any) error {
	m, err := toml.Decode(text, into)
	if err != nil {
		return reason(err)
	}
	if u := m.Undecoded(); len(u) > 0 {
		return &Unknown{u[0].String()}
	}
	return nil
}

// The package gives no other access to what it says of types.
var (
	size  = regexp.MustCompile(`out of range for u?int\d*$`)
	date  = regexp.MustCompile(`^parsing time ("[^"]*") as `)
	place = regexp.MustCompile(`^toml: (?:line (\d+) )?(?:\(last key (".*?")\): )?`)
	kinds = regexp.MustCompile(`(?:incompatible types: TOML value has type (.+); destination has type (.+)|type mismatch for .+: expected (table) but found (.+))$`)
)

func reason(err error) error {
	var at toml.ParseError
	if errors.As(err, &at) {
		what := size.ReplaceAllString(at.Message, "out of range")
		if when := date.FindStringSubmatch(what); when != nil {
			what = when[1] + " is not a time; write it like 2027-12-31T00:00:00Z"
		}
		return said(fmt.Sprint(at.Position.Line), fmt.Sprintf("%q", at.LastKey), what)
	}
	found := place.FindStringSubmatch(err.Error())
	if found == nil {
		return err
	}
	what := err.Error()[len(found[0]):]
	if k := kinds.FindStringSubmatch(what); k != nil {
		what = fmt.Sprintf("it is %s, not %s", word(k[1]+k[4]), word(k[2]+k[3]))
	}
	return said(found[1], found[2], what)
}

// said puts line and key before a text, if they are known.
func said(line, key, what string) error {
	if key != "" && key != `""` {
		what = key + ": " + what
	}
	if line != "" && line != "0" {
		what = "line " + line + ": " + what
	}
	return errors.New(what)
}

// word is how TOML names a type.
func word(kind string) string {
	switch kind {
	case "string", "primitive (string-like)":
		return "text in quotes"
	case "integer", "int64":
		return "a whole number"
	case "float", "float64":
		return "a number"
	case "boolean", "bool":
		return "true or false"
	case "time.Time":
		return "a date"
	case "table", "map", "map[string]any":
		return "a table"
	case "[]map[string]any":
		return "a list of tables"
	case "slice", "[]any":
		return "a list"
	}
	return "another kind of value"
}
