// Package strictjson reads JSON that means the same to every reader. The standard package takes a member's name in any
// case, takes the last of two members of one name, and passes over members that it does not know; another
// reader of the same bytes may take the first, or another. What was checked is then not what is used. Here names are
// exact, single and known, and nothing follows the value. What is wrong is said in JSON's words (Reason), not in Go's.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// maxDepth bounds the nesting of what is read.
const maxDepth = 64

// Unmarshal reads b into the value that v points to.
func Unmarshal(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := value(d, reflect.TypeOf(v).Elem(), 0); err != nil {
		return Reason(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	s := json.NewDecoder(bytes.NewReader(b))
	s.DisallowUnknownFields()
	return Reason(s.Decode(v))
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value checks one value against its type; nil where any JSON goes, as in a json.RawMessage.
func value(d *json.Decoder, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	for t != nil && t.Kind() == reflect.Pointer && !t.Implements(unmarshaler) {
		t = t.Elem()
	}
	if t != nil && (t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler)) {
		t = nil
	}
	tok, err := d.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('{'):
		return object(d, t, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for d.More() {
			if err := value(d, elem, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
		return err
	}
	return nil
}

func object(d *json.Decoder, t reflect.Type, depth int) error {
	var fields map[string]reflect.Type
	var elem reflect.Type
	if t != nil {
		switch t.Kind() {
		case reflect.Struct:
			fields = members(t)
		case reflect.Map:
			elem = t.Elem()
		}
	}
	seen := map[string]bool{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok {
			return errors.New("a member without a name")
		}
		if seen[name] {
			return fmt.Errorf("%.40q is there twice", name)
		}
		seen[name] = true
		of := elem
		if fields != nil {
			if of, ok = fields[name]; !ok {
				return fmt.Errorf("unknown field %.40q", name)
			}
		}
		if err := value(d, of, depth+1); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// members are the names of a struct's fields as package encoding/json writes them.
func members(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || tag == "-" || f.Anonymous && tag == "" {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		out[tag] = f.Type
	}
	return out
}
