// Package dpsserver speaks Azure DPS for a provisioning.Service: the device API (register, poll, status lookup)
// over HTTPS (ServeHTTP) and, but for the lookup and TPMs, over MQTT 3.1.1 (ServeMQTT, behind mqttserve); and the
// service API: individual enrolments, groups, registrations.
//
// It trusts the TLS listener for one thing: that who presents r.TLS.PeerCertificates[0] holds its key.
// The listener asks for a client certificate without requiring one and without naming CAs; whether
// the certificate is believed is decided here, per request, by provisioning.Authenticate.
//
// Where we differ from the real service: a poll is held back for a moment until the registration is
// decided (Config.Hold), so that a device needs one, and so is a register call of a device that can read its outcome
// there; deleting an enrolment or a group leaves its registrations;
// caReferences are refused; there are groups of units (TPMUnits) and bearer tokens of our own (dps.Bearer).
// Messages of refusals say which check failed and what mends it.
package dpsserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
)

// Config of a Handler.
type Config struct {
	Service *provisioning.Service
	Log     *slog.Logger // nil: slog.Default()
	// Hold is how long a poll waits for a decision; default 2 s, negative: not at all. Clients give up
	// on a single request after 30 s at the earliest.
	Hold time.Duration
	// Wait is how long a register call waits for its outcome, of a device that can read it there; default 500 ms,
	// negative: not at all.
	Wait time.Duration
	// RetryAfter is the pause, in whole seconds, that a device is asked to make before its first poll.
	// 0 is right as long as polls are held.
	RetryAfter int
	// RetryBusy is the pause while the hub does not answer, and in refusals with 503; default 5.
	RetryBusy int
	// Admit decides whether a device's request is taken at all, by its address ("host:port"), its certificate (DER; nil:
	// none) and the registration id it gives; nil: always. A refusal of kind Busy that has RetryAfter is answered with 429.
	Admit func(remote string, certificate []byte, id string) error
	// Stranger is how long an MQTT connection may last before a request of it was of a device that is known; default 1 min.
	Stranger time.Duration
	// TokenNow tells the time for SAS tokens; nil: the real clock.
	TokenNow func() time.Time
}

// Handler serves both APIs. It is safe for concurrent use.
type Handler struct {
	c   Config
	svc *provisioning.Service
	log *slog.Logger

	waiting chan struct{} // register calls that wait for their outcome
}

// New makes a Handler.
func New(c Config) *Handler {
	if c.Hold == 0 {
		c.Hold = 2 * time.Second
	}
	if c.Wait == 0 {
		c.Wait = 500 * time.Millisecond
	}
	if c.RetryBusy <= 0 {
		c.RetryBusy = 5
	}
	if c.Stranger <= 0 {
		c.Stranger = time.Minute
	}
	if c.TokenNow == nil {
		c.TokenNow = time.Now
	}
	h := &Handler{c: c, svc: c.Service, log: c.Log, waiting: make(chan struct{}, maxWaiting)}
	if h.log == nil {
		h.log = slog.Default()
	}
	return h
}

// Owns reports whether a path is of this package's APIs, for a listener that serves several by path.
func Owns(path string) bool {
	seg := strings.Split(strings.TrimPrefix(path, "/"), "/")
	switch strings.ToLower(seg[0]) {
	case "enrollments", "enrollmentgroups", "registrations", "linkedhubs", "webhookkey":
		return true
	}
	return len(seg) >= 3 && seg[1] == "registrations"
}

// request is one call on its way through.
type request struct {
	*http.Request
	now  time.Time
	seg  []string // decoded path segments
	id   string   // registration or group, for the log
	body []byte

	bulky bool // an import, whose body may be larger
}

// reply is what a request or a call answers.
type reply struct {
	status     int
	body       any         // nil: none
	retryAfter string      // seconds; empty: not said
	operation  string      // path at which the operation that began is polled; empty: none
	header     http.Header // further ones of HTTP
}

type endpoint func(context.Context, *request) (*reply, error)

// ServeHTTP writes every answer, and one log line for every refusal.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{Request: r, now: h.c.TokenNow()}
	tracking := newUUID()
	w.Header().Set("x-ms-request-id", tracking)
	rep, err := h.serve(w, q)
	if err != nil {
		if r.Context().Err() != nil {
			return // nobody listens any more
		}
		h.refuse(w, q, tracking, err)
		return
	}
	write(w, rep)
}

// device makes a call of an HTTP request.
func (h *Handler) device(o operation) endpoint {
	return func(ctx context.Context, q *request) (*reply, error) {
		query := q.URL.Query()
		c := &call{operation: o, scope: q.seg[0], id: q.seg[2], token: q.Header.Get("Authorization"), remote: q.RemoteAddr,
			apiVersion: query.Get("api-version"), client: q.UserAgent(), prefer: q.Header.Get(dps.HeaderPrefer), force: strings.EqualFold(query.Get("forceRegistration"), "true"), body: q.body}
		if q.TLS != nil {
			c.chain = q.TLS.PeerCertificates
		}
		if o == poll {
			c.asked = q.seg[4]
		}
		rep, err := h.answer(ctx, c)
		if err == nil && rep.operation != "" {
			rep.header = http.Header{"Location": {"https://" + q.Host + rep.operation + "?api-version=" + c.apiVersion}}
		}
		return rep, err
	}
}

func (h *Handler) serve(w http.ResponseWriter, q *request) (*reply, error) {
	for s := range strings.SplitSeq(strings.Trim(q.URL.EscapedPath(), "/"), "/") {
		v, err := url.PathUnescape(s)
		if err != nil || v == "" {
			return nil, cradle.Errorf(cradle.Invalid, "path %.200q is not well formed", q.URL.Path)
		}
		q.seg = append(q.seg, v)
	}
	f, allow := h.route(q)
	if f == nil && allow == "" {
		return nil, cradle.Errorf(cradle.NotFound, "no such resource %.200q", q.URL.Path)
	}
	if f == nil {
		w.Header().Set("Allow", allow)
		return nil, &methodError{q.Method, allow}
	}
	if err := checkAPIVersion(q.URL.Query().Get("api-version")); err != nil {
		return nil, err
	}
	if q.Method == http.MethodPut || q.Method == http.MethodPost {
		var err error
		limit := int64(dps.MaxBody)
		if q.bulky { // read for those alone who may
			if err := h.may(q, dps.EnrollmentWrite); err != nil {
				return nil, err
			}
			limit = dps.MaxImport
		}
		if q.body, err = io.ReadAll(http.MaxBytesReader(w, q.Body, limit)); err != nil {
			var tooLarge *http.MaxBytesError
			if errors.As(err, &tooLarge) {
				return nil, cradle.Errorf(cradle.TooLarge, "body is larger than %d bytes", limit)
			}
			return nil, cradle.Errorf(cradle.Invalid, "body could not be read: %v", err)
		}
	}
	return f(q.Context(), q)
}

// route returns the endpoint, or the methods that the path allows. The device API comes first: an id
// scope is never named like the service API's collections.
func (h *Handler) route(q *request) (f endpoint, allow string) {
	if f, allow, ok := h.linkRoute(q); ok {
		return f, allow
	}
	choose := func(m map[string]endpoint, allow string) (endpoint, string) { return m[q.Method], allow }
	seg, n := q.seg, len(q.seg)
	// crud are the three methods of a thing that stands alone.
	crud := func(put, get, del endpoint, read, write dps.Right) (endpoint, string) {
		m, allow := map[string]endpoint{"GET": h.owner(read, get), "DELETE": h.owner(write, del)}, "GET, DELETE"
		if put != nil {
			m["PUT"], allow = h.owner(write, put), "GET, PUT, DELETE"
		}
		return choose(m, allow)
	}
	post := func(right dps.Right, f endpoint) (endpoint, string) {
		return choose(map[string]endpoint{"POST": h.owner(right, f)}, "POST")
	}
	switch first := strings.ToLower(seg[0]); {
	case first == "enrollments" && n == 1:
		return post(dps.EnrollmentWrite, h.bulkEnrollments)
	case first == "enrollments" && n == 2 && strings.EqualFold(seg[1], "query") && q.Method == http.MethodPost:
		return post(dps.EnrollmentRead, h.queryEnrollments)
	case first == "enrollments" && n == 2 && seg[1] == "import" && q.Method == http.MethodPost:
		q.bulky = true
		return post(dps.EnrollmentWrite, h.importEnrollments)
	case first == "enrollments" && n == 2:
		return crud(h.putEnrollment, h.getEnrollment, h.deleteEnrollment, dps.EnrollmentRead, dps.EnrollmentWrite)
	case first == "enrollments" && n == 3 && strings.EqualFold(seg[2], "attestationmechanism"):
		return post(dps.EnrollmentWrite, h.enrollmentKeys)
	case first == "enrollmentgroups" && n == 1:
		return post(dps.EnrollmentWrite, h.bulkGroups)
	case first == "enrollmentgroups" && n == 2 && strings.EqualFold(seg[1], "query") && q.Method == http.MethodPost:
		return post(dps.EnrollmentRead, h.queryGroups)
	case first == "enrollmentgroups" && n == 2:
		return crud(h.putGroup, h.getGroup, h.deleteGroup, dps.EnrollmentRead, dps.EnrollmentWrite)
	case first == "enrollmentgroups" && n == 3 && strings.EqualFold(seg[2], "attestationmechanism"):
		return post(dps.EnrollmentWrite, h.groupKeys)
	case first == "registrations" && n == 2:
		return crud(nil, h.getRegistration, h.deleteRegistration, dps.RegistrationStatusRead, dps.RegistrationStatusWrite)
	case first == "registrations" && n == 3 && strings.EqualFold(seg[2], "query"):
		return post(dps.RegistrationStatusRead, h.queryRegistrations)
	case n >= 3 && seg[1] == "registrations":
		q.id = seg[2]
		switch {
		case n == 3:
			return choose(map[string]endpoint{"POST": h.device(lookup)}, "POST")
		case n == 4 && seg[3] == "register":
			return choose(map[string]endpoint{"PUT": h.device(register)}, "PUT")
		case n == 5 && seg[3] == "operations":
			return choose(map[string]endpoint{"GET": h.device(poll)}, "GET")
		}
	}
	return nil, ""
}

// checkAPIVersion accepts every version since the first; versions are dates, perhaps with "-preview".
func checkAPIVersion(v string) error {
	if v == "" {
		return cradle.Errorf(cradle.Invalid, "api-version is missing").WithHint("add ?api-version=%s", dps.DeviceAPIVersion)
	}
	date, _, _ := strings.Cut(v, "-preview")
	if _, err := time.Parse(time.DateOnly, date); err != nil || date < dps.FirstAPIVersion {
		return cradle.Errorf(cradle.Invalid, "api-version %.40q is not supported", v).WithHint("use %s or a later one", dps.FirstAPIVersion)
	}
	return nil
}

// write sends a reply by HTTP.
func write(w http.ResponseWriter, rep *reply) {
	for k, v := range rep.header {
		w.Header()[k] = v
	}
	if rep.retryAfter != "" {
		w.Header().Set("Retry-After", rep.retryAfter)
	}
	if rep.body == nil {
		w.WriteHeader(rep.status)
		return
	}
	b := encode(rep.body)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(rep.status)
	w.Write(b) // who hung up does not read it
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: " + err.Error()) // our own types
	}
	return b
}

// decode reads a body that must be one JSON value; empty stands for {}.
func (q *request) decode(v any) error { return decode(q.body, v) }

func decode(body []byte, v any) error {
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return cradle.Errorf(cradle.Invalid, "body is not the JSON that is expected here: %v", strictjson.Reason(err))
	}
	return nil
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
