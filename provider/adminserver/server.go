// Package adminserver is the provider's admin API (package protocol/admin has the messages), the
// status feed, and the doors of the OEM's line.
//
// Who may call: /admin/v1 asks for a bearer token. The installation's token may do everything; an
// account's token only what touches that account. /status/v1/feed and /time/v1 are open: what they say is
// signed and holds no secret but device names; restrict them at the network where that matters.
// /oem/v1 carries no token: an accepted order and a closed lot are signed by the OEM's registered keys.
package adminserver

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/reqlog"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/shed"
)

// maxBody bounds a request's body: the largest is a lot's report.
const maxBody = 32 << 20

// Config is what a Server needs.
type Config struct {
	Provider *provider.Provider
	Key      []byte // makes tokens
	// OwnTokens takes tokens made by Key alone, not those of operators in the store: who writes to the store is not
	// an operator of a signer apart.
	OwnTokens bool
	Public    Public
	Log       *slog.Logger
	Gate      *shed.Gate          // nil: no limits
	Count     func(*reqlog.Event) // may be nil; gets every request
	// Status describes the running services.
	Status func(ctx context.Context) admin.Status
	// ServiceKey returns the connection string of "dps" or "hub".
	ServiceKey func(ctx context.Context, service string) (string, error)
	// OwnRegistrar gives this installation's own provisioning service and hubs a credential as registration authority; nil
	// where they are not in this process.
	OwnRegistrar func(ctx context.Context, ra ca.Registrar, life time.Duration) (*provider.Registrar, error)
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
	mux      *http.ServeMux
	ops      []op
	requests *reqlog.Log
}

// New makes the server's handler.
func New(c Config) *Server {
	s := &Server{Config: c, mux: http.NewServeMux(), requests: reqlog.New(c.Log, c.Count)}
	s.routes()
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	limit := int64(maxBody)
	if strings.HasPrefix(r.URL.Path, "/oem/") { // nobody is authenticated before the body is read
		limit = order.MaxBody
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	if err := front.CheckPath(r); err != nil {
		s.answer(w, r, &reqlog.Event{Service: "admin"}, func() error { return cmp.Or(s.Gate.Address(r), err) })
		return
	}
	if _, pattern := s.mux.Handler(r); pattern == "" {
		s.nothing(w, r)
		return
	}
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
	if s.OwnTokens {
		return caller{}, cradle.Errorf(cradle.Unauthorized, "no valid token of this signer").WithHint("use the context.json that the signer wrote to its data folder")
	}
	o, err := s.Provider.Authenticate(r.Context(), tok)
	return caller{name: o.Name, role: o.Role, account: o.Account}, err
}

// answer serves one request and says so: what serve returns becomes the answer, unless one has begun.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, e *reqlog.Event, serve func() error) {
	e.Start, e.Trace, e.Status = time.Now(), reqlog.Trace(), http.StatusOK
	done := false
	defer func() {
		if !done { // a panic goes on to net/http, which cuts the connection
			e.Err = errors.New("the answer was cut off")
			s.requests.Done(r, e)
		}
	}()
	err := serve()
	if late, ok := err.(unsent); ok {
		e.WriteErr = late
	} else if err != nil {
		e.Err, e.Shed = err, errors.Is(err, shed.ErrLimit)
		if r.Context().Err() != nil && cradle.KindOf(err) == cradle.Internal {
			e.Err = &cradle.Error{Kind: cradle.Busy, Detail: "the client went away", Err: err}
		}
		e.Status = s.refuse(w, e)
	}
	done = true
	s.requests.Done(r, e)
}

// refuse answers with a Problem.
func (s *Server) refuse(w http.ResponseWriter, e *reqlog.Event) int {
	kind := cradle.KindOf(e.Err)
	status := admin.StatusOf(kind)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set(reqlog.Header, e.Trace)
	if wait := cradle.RetryAfter(e.Err); wait > 0 {
		h.Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	} else if kind == cradle.Busy {
		h.Set("Retry-After", "2")
	}
	if e.Shed {
		status = http.StatusTooManyRequests
	}
	var not *notAllowed
	if errors.As(e.Err, &not) {
		status = http.StatusMethodNotAllowed
		h.Set("Allow", not.allow)
	}
	detail, hint := cradle.Public(e.Err)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(admin.Problem{Kind: kind.String(), Detail: detail, Hint: hint})
	return status
}

// notAllowed is the cause of a refusal of a method.
type notAllowed struct{ allow string }

func (n *notAllowed) Error() string { return "allowed: " + n.allow }

// nothing answers a request for which there is no route.
func (s *Server) nothing(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		other := *r
		other.Method = m
		if _, pattern := s.mux.Handler(&other); pattern != "" {
			allow = append(allow, m)
		}
	}
	s.answer(w, r, &reqlog.Event{Service: "admin"}, func() error {
		if err := s.Gate.Address(r); err != nil {
			return err
		}
		if allow != nil {
			list := strings.Join(allow, ", ")
			return &cradle.Error{Kind: cradle.Invalid, Detail: "this method is not for this resource", Hint: "use " + list, Err: &notAllowed{list}}
		}
		return cradle.Errorf(cradle.NotFound, "there is no such resource").WithHint("what there is: %s/openapi.json", admin.Prefix)
	})
}
