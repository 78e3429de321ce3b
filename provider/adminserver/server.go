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
	"log/slog"
	"net/http"
	"strconv"
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
	ops []op
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

// caller authenticates: a token of the installation or an account (cradle1), or an operator's (cradle2).
func (s *Server) caller(r *http.Request) (caller, error) {
	tok, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || len(tok) > 512 {
		tok = ""
	}
	part := strings.Split(tok, ".")
	if len(part) == 3 && part[0] == "cradle1" {
		name, err1 := base64.RawURLEncoding.Strict().DecodeString(part[1])
		mac, err2 := base64.RawURLEncoding.Strict().DecodeString(part[2])
		if err1 == nil && err2 == nil && hmac.Equal(mac, tokenMAC(s.Key, cradle.AccountID(name))) {
			return caller{role: admin.Owner, account: cradle.AccountID(name)}, nil
		}
	}
	o, err := s.Provider.Authenticate(r.Context(), tok)
	return caller{name: o.Name, role: o.Role, account: o.Account}, err
}

// refuse answers with a Problem.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	kind := cradle.KindOf(err)
	if kind == cradle.Internal && r.Context().Err() == nil {
		id := make([]byte, 6)
		rand.Read(id)
		s.Log.Error("admin request", "method", r.Method, "path", r.URL.Path, "err", err, "trace", base64.RawURLEncoding.EncodeToString(id))
	} else if kind != cradle.NotFound {
		s.Log.Info("admin request refused", "method", r.Method, "path", r.URL.Path, "kind", kind, "reason", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if wait := cradle.RetryAfter(err); wait > 0 {
		h.Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	} else if kind == cradle.Busy {
		h.Set("Retry-After", "2")
	}
	detail, hint := cradle.Public(err)
	w.WriteHeader(admin.StatusOf(kind))
	_ = json.NewEncoder(w).Encode(admin.Problem{Kind: kind.String(), Detail: detail, Hint: hint})
}
