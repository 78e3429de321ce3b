// Package adminserver is the provider's admin API (package protocol/admin has the messages), the
// status feed, and the doors of the OEM's line.
//
// Who may call: /admin/v1 asks for a bearer token. The installation's token may do everything; an
// account's token only what touches that account. /status/v1/feed and /time/v1 are open: what they say is
// signed and holds no secret but device names; restrict them at the network where that matters.
// /oem/v1 carries no token: an accepted order and a closed lot are signed by the OEM's registered keys.
package adminserver

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

// maxBody bounds a request's body: the largest is a lot's report.
const maxBody = 32 << 20

// Config is what a Server needs.
type Config struct {
	Provider *provider.Provider
	Key      []byte // makes tokens
	Public   Public
	Log      *slog.Logger
	// Status describes the running services.
	Status func(ctx context.Context) admin.Status
	// ServiceKey returns the connection string of "dps" or "hub".
	ServiceKey func(ctx context.Context, service string) (string, error)
	// Followed waits until provisioning and hub have applied the feed up to seq, or ctx ends, and says when
	// each did; nil where one did not or is not in this process.
	Followed func(ctx context.Context, seq int64) (provisioning, hub *time.Time)
}

// Public says under which names the provider is reached.
type Public struct {
	URL     string                                // https://host:port
	ESTHost func(account cradle.AccountID) string // host name of an account's EST
}

// Server is the admin API.
type Server struct {
	Config
	mux *http.ServeMux
}

// New makes the server's handler.
func New(c Config) *Server {
	s := &Server{Config: c, mux: http.NewServeMux()}
	s.routes()
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.mux.ServeHTTP(w, r)
}

// caller is who asks: the installation's operator (account empty) or one account's.
type caller struct{ account cradle.AccountID }

// name is under which the log records what the caller does.
func (c caller) name() string {
	if c.account == "" {
		return "operator"
	}
	return "account " + string(c.account)
}

// may refuses an account's token for another account.
func (c caller) may(a cradle.AccountID) error {
	if c.account == "" || c.account == a {
		return nil
	}
	// The same answer as for an account that does not exist: no call of one account can see another.
	return cradle.Errorf(cradle.NotFound, "no account %q", a)
}

func (c caller) operator() error {
	if c.account == "" {
		return nil
	}
	return cradle.Errorf(cradle.Forbidden, "this is for the installation's operator, not for account %s", c.account).
		WithHint("use the context.json that serve wrote to its data folder")
}

// Token returns the bearer token of an account, or with an empty name the installation's.
func Token(key []byte, account cradle.AccountID) string {
	body := base64.RawURLEncoding.EncodeToString([]byte(account))
	return "cradle1." + body + "." + base64.RawURLEncoding.EncodeToString(tokenMAC(key, account))
}

func tokenMAC(key []byte, account cradle.AccountID) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("cradle-admin-token-v1\n" + string(account)))
	return m.Sum(nil)
}

func (s *Server) caller(r *http.Request) (caller, error) {
	refuse := cradle.Errorf(cradle.Unauthorized, "the token is missing or wrong").WithHint("use the context.json that was written for you, with --context")
	tok, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || len(tok) > 512 {
		return caller{}, refuse
	}
	part := strings.Split(tok, ".")
	if len(part) != 3 || part[0] != "cradle1" {
		return caller{}, refuse
	}
	name, err1 := base64.RawURLEncoding.DecodeString(part[1])
	mac, err2 := base64.RawURLEncoding.DecodeString(part[2])
	if err1 != nil || err2 != nil || !hmac.Equal(mac, tokenMAC(s.Key, cradle.AccountID(name))) {
		return caller{}, refuse
	}
	return caller{cradle.AccountID(name)}, nil
}

type handler func(r *http.Request, c caller) (any, error)

// handle registers a route that needs a token.
func (s *Server) handle(pattern string, h handler) {
	method, path, _ := strings.Cut(pattern, " ")
	s.mux.HandleFunc(method+" "+admin.Prefix+path, func(w http.ResponseWriter, r *http.Request) {
		c, err := s.caller(r)
		var out any
		if err == nil {
			out, err = h(r.WithContext(provider.WithActor(r.Context(), c.name())), c)
		}
		s.answer(w, r, out, err)
	})
}

// open registers a route without a token.
func (s *Server) open(pattern string, h func(r *http.Request) (any, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out, err := h(r)
		s.answer(w, r, out, err)
	})
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		kind := cradle.KindOf(err)
		if kind == cradle.Internal && r.Context().Err() == nil {
			id := make([]byte, 6)
			rand.Read(id)
			s.Log.Error("admin request", "method", r.Method, "path", r.URL.Path, "err", err, "trace", base64.RawURLEncoding.EncodeToString(id))
		} else if kind != cradle.NotFound {
			s.Log.Info("admin request refused", "method", r.Method, "path", r.URL.Path, "kind", kind, "reason", err)
		}
		if kind == cradle.Busy {
			w.Header().Set("Retry-After", "2")
		}
		detail, hint := cradle.Public(err)
		w.WriteHeader(admin.StatusOf(kind))
		_ = json.NewEncoder(w).Encode(admin.Problem{Kind: kind.String(), Detail: detail, Hint: hint})
		return
	}
	if out != nil {
		_ = json.NewEncoder(w).Encode(out)
	}
}

// body decodes a request's JSON; unknown members are refused.
func body[T any](r *http.Request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			return v, cradle.Errorf(cradle.TooLarge, "request body is over %d bytes", big.Limit)
		}
		return v, cradle.Errorf(cradle.Invalid, "request body: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return v, cradle.Errorf(cradle.Invalid, "request body: something follows the JSON object")
	}
	return v, nil
}
