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

// Route is an op for tests, in words.
type Route struct{ Pattern, Need, Scope string }

// Routes are those that need a token.
func Routes() []Route {
	var out []Route
	for _, o := range New(Config{}).ops {
		if o.need != anyone {
			out = append(out, Route{o.pattern, [...]string{know: "know", follow: "follow", view: "view", work: "work", own: "own"}[o.need],
				[...]string{everywhere: "everywhere", installation: "installation", named: "named", found: "found"}[o.scope]})
		}
	}
	return out
}
