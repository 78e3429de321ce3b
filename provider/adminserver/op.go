package adminserver

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/reqlog"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/provider"
)

// op describes a route: for the mux, for authorize and for the OpenAPI document.
type op struct {
	pattern string // "POST /orders/{id}/withdraw": below admin.Prefix, or with the right anyone the whole path
	does    string // one sentence
	need    right
	scope   scope

	in, out reflect.Type // filled in by handle
	stream  string       // media type of an answer that is no JSON
}

func (o *op) method() string {
	m, _, _ := strings.Cut(o.pattern, " ")
	return m
}

// none is the In or Out of a route that takes or gives nothing.
type none struct{}

// call is one authorized request.
type call struct {
	caller
	r *http.Request
}

func (c *call) ctx() context.Context      { return c.r.Context() }
func (c *call) path(name string) string   { return c.r.PathValue(name) }
func (c *call) account() cradle.AccountID { return cradle.AccountID(c.r.PathValue("account")) }

// handle registers a route. In comes from the JSON body, unknown members refused, or for GET and DELETE
// from the query: its fields' tags `query:"name"`.
func handle[In, Out any](s *Server, o op, h func(c *call, in In) (Out, error)) {
	o.in, o.out = reflect.TypeFor[In](), reflect.TypeFor[Out]()
	s.register(o, func(w http.ResponseWriter, c *call) error {
		in, err := input[In](c.r)
		if err != nil {
			return err
		}
		out, err := h(c, in)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		if o.out != reflect.TypeFor[none]() {
			return sent(json.NewEncoder(w).Encode(out))
		}
		return nil
	})
}

// unsent is an error of a client that did not take its answer.
type unsent struct{ error }

func sent(err error) error {
	if err != nil {
		return unsent{err}
	}
	return nil
}

// handleStream registers a route that writes its answer itself. What h returns before it wrote anything is answered
// as a refusal; a failure in the middle h must end with panic(http.ErrAbortHandler), so that a half is not taken for the whole.
func handleStream(s *Server, o op, mediaType string, h func(w http.ResponseWriter, c *call) error) {
	o.in, o.stream = reflect.TypeFor[none](), mediaType
	s.register(o, func(w http.ResponseWriter, c *call) error {
		w.Header().Set("Content-Type", mediaType)
		return h(w, c)
	})
}

// register puts a route behind its limits and its authorization.
func (s *Server) register(o op, serve func(w http.ResponseWriter, c *call) error) {
	s.ops = append(s.ops, o)
	s.mux.HandleFunc(o.method()+" "+o.path(), func(w http.ResponseWriter, r *http.Request) {
		c := &call{r: r}
		e := &reqlog.Event{Service: "admin", Operation: o.pattern, Account: requestAccount(r)}
		s.answer(w, r, e, func() error {
			if err := s.admit(c, &o, e); err != nil {
				return err
			}
			return serve(w, c)
		})
	})
}

// admit sheds, authenticates and authorizes.
func (s *Server) admit(c *call, o *op, e *reqlog.Event) error {
	if err := s.Gate.Address(c.r); err != nil {
		return err
	}
	if o.need == anyone {
		return nil
	}
	var err error
	if c.caller, err = s.caller(c.r); err != nil {
		return err
	}
	e.Actor = c.actor()
	if e.Account == "" {
		e.Account = c.caller.account
	}
	if err := s.Gate.Operator(c.caller.account, c.name); err != nil {
		return err
	}
	c.r = c.r.WithContext(provider.WithActor(c.r.Context(), e.Actor))
	return authorize(c.caller, o.need, o.scope, requestAccount(c.r))
}

// requestAccount is the account that a route of the scope named is about.
func requestAccount(r *http.Request) cradle.AccountID {
	if a := r.PathValue("account"); a != "" {
		return cradle.AccountID(a)
	}
	return cradle.AccountID(r.URL.Query().Get("account"))
}

func input[In any](r *http.Request) (In, error) {
	var in In
	switch {
	case reflect.TypeFor[In]() == reflect.TypeFor[none]():
		return in, nil
	case r.Method == http.MethodGet || r.Method == http.MethodDelete:
		return in, query(r.URL.RawQuery, reflect.ValueOf(&in).Elem())
	}
	return in, strict(r.Body, &in)
}

// strict decodes a request's JSON into v (package strictjson).
func strict(r io.Reader, v any) error {
	b, err := io.ReadAll(r)
	if err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return cradle.Errorf(cradle.TooLarge, "request body is over %d bytes", big.Limit)
		}
		return &cradle.Error{Kind: cradle.Invalid, Detail: "request body: it is not complete", Err: err}
	}
	if err := strictjson.Unmarshal(b, v); err != nil {
		return cradle.Errorf(cradle.Invalid, "request body: %v", err)
	}
	return nil
}

// query fills the fields of v from a query string; unknown and repeated names are refused.
func query(raw string, v reflect.Value) error {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "query: %v", err)
	}
	for _, f := range reflect.VisibleFields(v.Type()) {
		name := f.Tag.Get("query")
		if name == "" {
			continue
		}
		got, ok := q[name]
		delete(q, name)
		if !ok {
			continue
		}
		if len(got) > 1 {
			return cradle.Errorf(cradle.Invalid, "query: %s is given %d times", name, len(got))
		}
		switch field := v.FieldByIndex(f.Index); field.Kind() {
		case reflect.String:
			field.SetString(got[0])
		case reflect.Int, reflect.Int64:
			n, err := strconv.ParseInt(got[0], 10, 64)
			if err != nil || n < 0 {
				return cradle.Errorf(cradle.Invalid, "query: %s must be a whole number, 0 or more", name)
			}
			field.SetInt(n)
		case reflect.Bool:
			b, err := strconv.ParseBool(got[0])
			if err != nil {
				return cradle.Errorf(cradle.Invalid, "query: %s must be true or false", name)
			}
			field.SetBool(b)
		default:
			panic("internal error: query field " + f.Name)
		}
	}
	for name := range q {
		return cradle.Errorf(cradle.Invalid, "query: unknown name %.40q", name)
	}
	return nil
}
