package adminserver

import (
	"bytes"
	"net/http"
	"reflect"

	"github.com/cradle-iot/cradle"
)

// Decoders are those of the bodies of every route that takes one.
func Decoders() []func([]byte) (any, error) {
	s := New(Config{})
	var out []func([]byte) (any, error)
	for _, o := range s.ops {
		if o.in != reflect.TypeFor[none]() && o.method() != http.MethodGet && o.method() != http.MethodDelete {
			out = append(out, func(b []byte) (any, error) {
				v := reflect.New(o.in)
				err := strict(bytes.NewReader(b), v.Interface())
				if err != nil && cradle.KindOf(err) != cradle.Invalid {
					panic("a body is refused as " + cradle.KindOf(err).String())
				}
				return v.Interface(), err
			})
		}
	}
	return out
}
