package iothub

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/cradle-iot/cradle"
)

// maxNumber bounds the text of a number.
const maxNumber = 64

// ParseSection reads a section or a patch of one: a JSON object within the limits that hold for both. $version
// and $metadata at the top are left out. What names the section in errors, which are Invalid. Values are maps, slices,
// strings, json.Number, booleans, and nil.
func ParseSection(what string, b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, cradle.Errorf(cradle.Invalid, "%s: not UTF-8", what)
	}
	p := sectionParser{json.NewDecoder(bytes.NewReader(b)), what}
	p.d.UseNumber()
	tok, err := p.d.Token()
	if err != nil || tok != json.Delim('{') {
		return nil, p.bad("not a JSON object")
	}
	m, err := p.object(1)
	if err != nil {
		return nil, err
	}
	if _, err := p.d.Token(); err != io.EOF {
		return nil, p.bad("something follows the JSON object")
	}
	return m, nil
}

type sectionParser struct {
	d    *json.Decoder
	what string
}

func (p *sectionParser) bad(format string, args ...any) error {
	return cradle.Errorf(cradle.Invalid, p.what+": "+format, args...)
}

func (p *sectionParser) object(depth int) (map[string]any, error) {
	if depth > MaxTwinDepth {
		return nil, p.bad("nested deeper than %d", MaxTwinDepth)
	}
	m := map[string]any{}
	for p.d.More() {
		tok, err := p.d.Token()
		if err != nil {
			return nil, p.bad("not JSON: %v", err)
		}
		key := tok.(string) // the decoder gives nothing else here
		if depth == 1 && (key == "$version" || key == "$metadata") {
			var skip json.RawMessage
			if err := p.d.Decode(&skip); err != nil {
				return nil, p.bad("not JSON: %v", err)
			}
			continue
		}
		if err := p.key(key); err != nil {
			return nil, err
		}
		if _, twice := m[key]; twice {
			return nil, p.bad("property %.100q stands there twice", key)
		}
		if m[key], err = p.value(depth); err != nil {
			return nil, err
		}
	}
	_, err := p.d.Token()
	if err != nil {
		return nil, p.bad("not JSON: %v", err)
	}
	return m, nil
}

func (p *sectionParser) key(k string) error {
	switch {
	case k == "" || len(k) > MaxTwinKey:
		return p.bad("property name of %d bytes, not 1 to %d", len(k), MaxTwinKey)
	case strings.ContainsAny(k, ".$ ") || strings.ContainsFunc(k, isControl):
		return p.bad("property name %.100q: dots, dollar signs, spaces and control characters are not allowed", k)
	}
	return nil
}

// isControl reports Unicode's C0 and C1 characters.
func isControl(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }

func (p *sectionParser) value(depth int) (any, error) {
	tok, err := p.d.Token()
	if err != nil {
		return nil, p.bad("not JSON: %v", err)
	}
	switch v := tok.(type) {
	case json.Delim:
		if v == '{' {
			return p.object(depth + 1)
		}
		return p.array(depth + 1)
	case string:
		if len(v) > MaxTwinString {
			return nil, p.bad("string of %d bytes, at most %d", len(v), MaxTwinString)
		}
	case json.Number:
		if len(v) > maxNumber {
			return nil, p.bad("number of %d digits, at most %d", len(v), maxNumber)
		}
	}
	return tok, nil
}

func (p *sectionParser) array(depth int) (any, error) {
	if depth > MaxTwinDepth {
		return nil, p.bad("nested deeper than %d", MaxTwinDepth)
	}
	a := []any{}
	for p.d.More() {
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		a = append(a, v)
	}
	if _, err := p.d.Token(); err != nil {
		return nil, p.bad("not JSON: %v", err)
	}
	return a, nil
}

// SectionSize counts as Azure does: keys and strings in bytes without control characters, numbers 8, booleans 4.
func SectionSize(v any) int {
	switch v := v.(type) {
	case map[string]any:
		n := 0
		for k, e := range v {
			n += len(k) + SectionSize(e)
		}
		return n
	case []any:
		n := 0
		for _, e := range v {
			n += SectionSize(e)
		}
		return n
	case string:
		n := len(v)
		for _, r := range v {
			if isControl(r) {
				n -= utf8.RuneLen(r)
			}
		}
		return n
	case json.Number:
		return 8
	}
	return 4 // a boolean, or null inside an array
}
