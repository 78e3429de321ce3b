package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// Reason says in the words of JSON why package encoding/json, or this one, refused a value: its own texts name Go's types to
// whoever sent it.
func Reason(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	var when *time.ParseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &kind):
		got := kind.Value // "number 300" where it does not fit
		switch got {
		case "bool":
			got = "a boolean"
		case "array", "object":
			got = "an " + got
		default:
			got = "a " + got
		}
		field := "it"
		if kind.Field != "" { // only the end of the path: before it there may be names of embedded types
			field = fmt.Sprintf("%.80q", kind.Field[strings.LastIndexByte(kind.Field, '.')+1:])
		}
		return fmt.Errorf("%s is %.40s, not %s", field, got, word(kind.Type))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it ends before the value does")
	case errors.As(err, &syntax):
		return fmt.Errorf("after %d bytes: %w", syntax.Offset, syntax)
	case errors.As(err, &when):
		return fmt.Errorf("%.60q is not a time as RFC 3339 has it", when.Value)
	}
	if text, ok := strings.CutPrefix(err.Error(), "json: "); ok {
		return errors.New(text)
	}
	return err
}

// word is what JSON calls the values that a type holds.
func word(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "a string of base64"
		}
		return "an array"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number that fits"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that fits, of 0 or more"
	case reflect.Float32, reflect.Float64:
		return "a number that fits"
	}
	return "an object"
}
