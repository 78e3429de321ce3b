// Package estserver is EST (RFC 7030 with RFC 8951 and 9908) over net/http for a Provider: cacerts, csrattrs,
// simpleenroll, simplereenroll, serverkeygen, the nonce resource of draft-ietf-lamps-attestation-freshness, and
// GlobalSign's tpmenroll. fullcmc is 501.
//
// A request goes through Server.ServeHTTP: path -> operation and label; TLS server name and label ->
// Endpoint (Provider.Resolve); what the client brought; method, media type and body; the provider's decision; one
// answer. Each operation returns (answer, error) and one place writes to the wire, so nothing is answered twice.
//
// What it trusts: that TLS proved possession of the client certificate's key (r.TLS). It verifies neither that
// certificate, nor a password, nor the CSR: all are the provider's, but for a challengePassword in the CSR, which
// binds it to the connection. For serverkeygen it encrypts the key that the provider made.
//
// Refusals are text/plain, the reason on the first line and what to do on the second. Kinds map so:
//
//	Invalid 400   Unauthorized 403 or 401   Forbidden 403   NotFound 404
//	Conflict 409  TooLarge 413       Busy 503, Pending 202, both with Retry-After   Internal 500
//
// A request over a limit of package shed is 429 with Retry-After: then nothing was read and nobody asked. Each request
// is one log line (package reqlog); a refusal carries its trace.
//
// Unauthorized is 401 where HTTP Basic is accepted (Endpoint.Realm). Elsewhere it is 403, because 401 demands a
// WWW-Authenticate challenge (RFC 9110 §15.5.2), of which there is none for a TLS certificate; RFC 7030 asks for any
// 4xx. A 401 has no content, since Bouncy Castle drops one that has, and neither has the 400 of a bad nonce request, as
// its draft has it; the reason is then in the header est.ReasonHeader.
package estserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/front"
	"github.com/cradle-iot/cradle/internal/reqlog"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/provider/shed"
)

// Config of a Server. Only Provider is required.
type Config struct {
	Provider Provider
	Log      *slog.Logger        // one line per request; nil means slog.Default()
	Count    func(*reqlog.Event) // gets every request; may be nil
	Gate     *shed.Gate          // sheds requests over a limit with 429; nil takes all

	// Timeout bounds one call of the provider, which goes on when the client has gone. 0 means 20 s: clients
	// such as aziot-certd are given up on by their callers after 30 s.
	Timeout time.Duration
	// MaxInFlight bounds the provider calls that run at once; 0 means 256. A call waits for a place up to
	// MaxWait (0 means 2 s) and is then shed with 503.
	MaxInFlight int
	MaxWait     time.Duration
	// RetryAfter is the least number of seconds told to a client that is shed; each is told a little
	// more at random, up to twice as many, so that they do not come back together. 0 means 3.
	RetryAfter int
}

// Server is an http.Handler for every path under est.WellKnown. It starts no goroutine.
type Server struct {
	c        Config
	slots    chan struct{}
	requests *reqlog.Log
}

// New returns a Server. It panics without a provider.
func New(c Config) *Server {
	if c.Provider == nil {
		panic("internal error: estserver without a provider")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Timeout <= 0 {
		c.Timeout = 20 * time.Second
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = 256
	}
	if c.MaxWait <= 0 {
		c.MaxWait = 2 * time.Second
	}
	if c.RetryAfter <= 0 {
		c.RetryAfter = 3
	}
	return &Server{c: c, slots: make(chan struct{}, c.MaxInFlight), requests: reqlog.New(c.Log, c.Count)}
}

// answer is a response ready for the wire.
type answer struct {
	status      int
	contentType string
	body        []byte
	base64      bool
	allow       string // of a 405
	retryAfter  int    // seconds; 0 for none
	reason      string // for est.ReasonHeader
	realm       string // of a 401
}

// refusal is an error with a status that no cradle.Kind stands for, or a form that the usual one does not have.
type refusal struct {
	error
	status    int    // 0: by the kind
	allow     string // of a 405
	noContent bool   // the reason goes into a header
	retry     bool   // with Retry-After
}

func (r *refusal) Unwrap() error { return r.error }

// event is the one log line of a request, filled on the way.
type event struct {
	reqlog.Event
	realm string // the endpoint's
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ev := event{Event: reqlog.Event{Service: "est", Trace: reqlog.Trace(), Start: time.Now()}}
	a, err := s.handle(w, r, &ev)
	if err != nil {
		a = s.refuse(err, ev.realm)
		ev.Err, ev.Shed = err, errors.Is(err, shed.ErrLimit)
		if ev.Shed {
			a.status = http.StatusTooManyRequests
		}
		w.Header().Set(reqlog.Header, ev.Trace)
	}
	ev.Status, ev.Issued = a.status, issuing[ev.Operation]
	if ev.Issued && err == nil { // it was authenticated
		s.c.Gate.Served(r, ev.Profile)
	}
	ev.WriteErr = s.write(w, r, a)
	s.requests.Done(r, &ev.Event)
}

// issuing are the operations whose answer is a certificate.
var issuing = map[string]bool{est.OpSimpleEnroll: true, est.OpSimpleReenroll: true, est.OpServerKeyGen: true, est.OpTPMEnroll: true}

// handle does everything but writing the answer. A panic below it becomes an internal error: one
// request's bug does not take a shared connection, or the log line, with it.
func (s *Server) handle(w http.ResponseWriter, r *http.Request, ev *event) (a answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if r.TLS == nil {
		return a, cradle.Errorf(cradle.Forbidden, "EST is served over TLS only").WithHint("use an https URL (RFC 7030 §3.3)")
	}
	op, label, err := splitPath(r.URL)
	ev.Operation, ev.Label = op, label
	var e Endpoint
	if err == nil {
		e, err = s.c.Provider.Resolve(r.Context(), serverName(r), label)
	}
	if limit := s.c.Gate.EST(r, e.Account, e.Profile); limit != nil {
		ev.Account, ev.Profile = e.Account, e.Profile
		return a, limit
	}
	if err != nil {
		return a, err
	}
	ev.Account, ev.Profile, ev.Label, ev.realm = e.Account, e.Profile, e.Label, e.Realm
	c, err := clientOf(r)
	if err != nil {
		return a, err
	}
	if c.Basic != nil {
		ev.User = c.Basic.User
	}
	switch op {
	case est.OpCACerts:
		return s.caCerts(r, e)
	case est.OpCSRAttrs:
		return s.csrAttributes(r, e, c)
	case est.OpNonce:
		return s.nonce(w, r, e, c)
	case est.OpServerKeyGen:
		return s.serverKeyGen(w, r, e, c)
	case est.OpTPMEnroll:
		return s.tpmEnroll(w, r, e, c)
	case est.OpFullCMC:
		return s.fullCMC(r)
	default:
		return s.enroll(w, r, e, c, Operation(op))
	}
}

// call runs fn under the concurrency limit, with a context that outlives the client: a certificate is not
// left half made because a connection broke. The handler's goroutine waits for fn, so http.Server.Shutdown
// waits for the issuance.
func (s *Server) call(r *http.Request, fn func(ctx context.Context) error) error {
	select {
	case s.slots <- struct{}{}:
	default:
		t := time.NewTimer(s.c.MaxWait)
		defer t.Stop()
		select {
		case s.slots <- struct{}{}:
		case <-t.C:
			return cradle.Errorf(cradle.Busy, "the server is at its limit of requests").WithHint("come again after the time in Retry-After")
		case <-r.Context().Done(): // gone before anything was begun
			return cradle.Errorf(cradle.Busy, "the client went away while it waited")
		}
	}
	defer func() { <-s.slots }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), s.c.Timeout)
	defer cancel()
	err := fn(ctx)
	if err != nil && ctx.Err() != nil && cradle.KindOf(err) == cradle.Internal {
		return &cradle.Error{Kind: cradle.Busy, Detail: "the request took too long", Hint: "send the same request again", Err: err}
	}
	return err
}

// refuse makes the answer of an error; realm is that of the endpoint, if one was found.
func (s *Server) refuse(err error, realm string) answer {
	detail, hint := cradle.Public(err)
	a := answer{contentType: "text/plain; charset=utf-8", status: http.StatusInternalServerError}
	switch cradle.KindOf(err) {
	case cradle.Invalid:
		a.status = http.StatusBadRequest
	case cradle.Unauthorized, cradle.Forbidden:
		a.status = http.StatusForbidden
	case cradle.NotFound:
		a.status = http.StatusNotFound
	case cradle.Conflict:
		a.status = http.StatusConflict
	case cradle.TooLarge:
		a.status = http.StatusRequestEntityTooLarge
	case cradle.Busy:
		a.status = http.StatusServiceUnavailable
		a.retryAfter = s.retryAfter(err)
	case cradle.Pending: // RFC 7030 §4.2.3
		a.status = http.StatusAccepted
		a.retryAfter = s.retryAfter(err)
	}
	noContent := false
	if f, ok := err.(*refusal); ok {
		if f.status != 0 {
			a.status = f.status
		}
		if f.retry {
			a.retryAfter = s.retryAfter(err)
		}
		a.allow = f.allow
		noContent = f.noContent && a.status == http.StatusBadRequest
	}
	if cradle.KindOf(err) == cradle.Unauthorized && realm != "" {
		a.status, a.realm, noContent = http.StatusUnauthorized, realm, true
	}
	if noContent {
		a.contentType, a.reason = "", headerText(detail)
		return a
	}
	text := detail + "\n"
	if hint != "" {
		text += hint + "\n"
	}
	a.body = []byte(text)
	return a
}

// retryAfter is what the error says, else the usual with some chance.
func (s *Server) retryAfter(err error) int {
	if d := cradle.RetryAfter(err); d > 0 {
		return int((d + time.Second - 1) / time.Second)
	}
	return s.c.RetryAfter + rand.IntN(s.c.RetryAfter+1)
}

// headerText keeps a reason within what a header value may hold, in a head of less than 1024 bytes.
func headerText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 400)]
}

// oneWrite is the size up to which net/http sends head and body in one write by itself: its buffer is
// 4 KiB, of which the head takes some 300 bytes.
const oneWrite = 3 << 10

// write sends the answer. Head and body leave in one write, hence one TLS record up to 16 KiB, with a
// Content-Length: strongSwan reads the head in one read and the rest in one more.
func (s *Server) write(w http.ResponseWriter, r *http.Request, a answer) error {
	h := w.Header()
	if a.contentType != "" {
		h["Content-Type"] = []string{a.contentType}
	}
	if a.base64 {
		h["Content-Transfer-Encoding"] = []string{"base64"} // void by RFC 8951; estclient v1.0.6 insists
	}
	if a.allow != "" {
		h["Allow"] = []string{a.allow}
	}
	if a.retryAfter > 0 {
		h["Retry-After"] = []string{strconv.Itoa(a.retryAfter)}
	}
	if a.reason != "" {
		h[est.ReasonHeader] = []string{a.reason}
	}
	if a.realm != "" { // so spelled: libest compares case
		h["WWW-Authenticate"] = []string{"Basic realm=" + strconv.Quote(a.realm)}
	}
	if a.status != http.StatusNoContent {
		h["Content-Length"] = []string{strconv.Itoa(len(a.body))}
	}
	h["Cache-Control"] = []string{"no-store"}
	// net/http takes a request with both Content-Length and Transfer-Encoding by the latter; RFC 9112 §6.1 has the
	// connection closed after one, as after HTTP/1.0 with a Transfer-Encoding. Which it was is not told any more.
	if len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1) {
		h["Connection"] = []string{"close"}
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(a.status)
		return nil
	}
	if len(a.body) <= oneWrite {
		w.WriteHeader(a.status)
		_, err := w.Write(a.body)
		return err
	}
	release := front.Hold(r.Context())
	w.WriteHeader(a.status)
	_, err := w.Write(a.body)
	if f, ok := w.(http.Flusher); ok {
		f.Flush() // so that all of it is there when it is released
	}
	return errors.Join(err, release())
}
