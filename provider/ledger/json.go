package ledger

import (
	"encoding"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// appendEntry writes what json.Marshal makes of an entry. A leaf is made in every transaction, and its body is nearly
// always a map of strings, which reflection and sorting by encoding/json made several times as dear.
func appendEntry(b []byte, log string, kind Kind, at time.Time, body map[string]any) (_ []byte, err error) {
	b = appendString(append(b, `{"log":`...), log)
	b = appendString(append(b, `,"kind":`...), string(kind))
	if b, err = at.AppendText(append(b, `,"time":"`...)); err != nil {
		return nil, err
	}
	if b, err = appendObject(append(b, `","body":`...), body); err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// appendObject writes an object, its members sorted by name.
func appendObject[V any](b []byte, m map[string]V) (_ []byte, err error) {
	names := slices.AppendSeq(make([]string, 0, 32), maps.Keys(m)) // seldom more
	slices.Sort(names)
	b = append(b, '{')
	for i, n := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, n), ':')
		if b, err = appendValue(b, m[n]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendValue(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return appendString(b, v), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case map[string]string:
		if v != nil {
			return appendObject(b, v)
		}
	case []string:
		if v != nil {
			b = append(b, '[')
			for i, s := range v {
				if i > 0 {
					b = append(b, ',')
				}
				b = appendString(b, s)
			}
			return append(b, ']'), nil
		}
	case json.Number, json.Marshaler, encoding.TextMarshaler: // have a form of their own
	default:
		if r := reflect.ValueOf(v); r.Kind() == reflect.String { // ids
			return appendString(b, r.String()), nil
		}
	}
	raw, err := json.Marshal(v)
	return append(b, raw...), err
}

// appendString quotes; what is not plain ASCII is left to encoding/json.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			raw, err := json.Marshal(s)
			if err != nil {
				panic("internal error: " + err.Error())
			}
			return append(b, raw...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
