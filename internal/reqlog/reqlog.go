// Package reqlog is what a service says of each request that it answered: an Event, filled on the way, becomes one
// log line and is counted. Services that log in the same words can be searched with the same words.
//
// Refusals because of a limit are many when there are any: ten a second are logged, and the next line says how
// many were not. They are all counted.
package reqlog

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/cradle-iot/cradle"
)

// Event is one request. Operation has few values: it names a metric. What the client wrote goes
// into the other fields.
type Event struct {
	Service   string // "est", "admin"
	Operation string // empty: the request names none that there is
	Account   cradle.AccountID
	Profile   cradle.Profile
	Label     string
	User      string // that the client named, not authenticated
	Actor     string // who asked, where a name was authenticated
	Trace     string // from Trace
	Start     time.Time

	Status   int
	Err      error // why it was refused; nil
	Issued   bool  // a certificate, if it was not refused
	Shed     bool  // refused because of a limit, before it was looked at
	WriteErr error // why the answer did not get out; nil
	Took     time.Duration
}

// Outcome is "ok", "shed", or the kind of the refusal.
func (e *Event) Outcome() string {
	switch {
	case e.Shed:
		return "shed"
	case e.Err == nil:
		return "ok"
	}
	return cradle.KindOf(e.Err).String()
}

// Log writes events.
type Log struct {
	log    *slog.Logger
	count  func(*Event)
	shed   *rate.Limiter
	hidden atomic.Int64
}

// New makes a Log. count (may be nil) gets every event, and must not keep it.
func New(l *slog.Logger, count func(*Event)) *Log {
	return &Log{log: l, count: count, shed: rate.NewLimiter(10, 10)}
}

// Done says that e was answered.
func (l *Log) Done(r *http.Request, e *Event) {
	e.Took = time.Since(e.Start)
	if l.count != nil {
		l.count(e)
	}
	level := slog.LevelInfo
	if e.Err != nil {
		switch cradle.KindOf(e.Err) {
		case cradle.Internal:
			level = slog.LevelError
		case cradle.Pending:
		default:
			level = slog.LevelWarn
		}
	}
	ctx := context.WithoutCancel(r.Context())
	if !l.log.Enabled(ctx, level) {
		return
	}
	var hidden int64
	if e.Shed {
		if !l.shed.Allow() {
			l.hidden.Add(1)
			return
		}
		hidden = l.hidden.Swap(0)
	}
	attrs := make([]slog.Attr, 0, 20)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	attrs = append(attrs, slog.Int("status", e.Status), slog.String("outcome", e.Outcome()))
	text("op", e.Operation)
	if e.Operation == "" {
		text("method", r.Method[:min(len(r.Method), 20)])
		text("path", r.URL.Path[:min(len(r.URL.Path), 200)])
	}
	text("label", e.Label)
	text("account", string(e.Account))
	text("profile", string(e.Profile))
	text("by", e.Actor)
	text("user", e.User[:min(len(e.User), 64)])
	text("remote", r.RemoteAddr)
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		p := r.TLS.PeerCertificates[0]
		digest := sha256.Sum256(p.Raw)
		attrs = append(attrs, slog.String("peer", p.Subject.CommonName), slog.String("client", hex.EncodeToString(digest[:])))
	}
	text("trace", e.Trace)
	attrs = append(attrs, slog.Duration("took", e.Took))
	if e.Err != nil {
		detail, _ := cradle.Public(e.Err)
		attrs = append(attrs, slog.String("kind", cradle.KindOf(e.Err).String()), slog.String("reason", detail))
		if cause := private(e.Err); cause != detail && !e.Shed {
			text("cause", cause)
		}
	}
	if hidden > 0 {
		attrs = append(attrs, slog.Int64("not_logged", hidden))
	}
	if e.WriteErr != nil {
		text("write_error", e.WriteErr.Error())
	}
	line := slog.NewRecord(time.Now(), level, e.Service, 0) // without the caller, which is always this line
	line.AddAttrs(attrs...)
	_ = l.log.Handler().Handle(ctx, line)
}

// private is what the log may know and the client not.
func private(err error) string {
	var e *cradle.Error
	if !errors.As(err, &e) || e.Kind == cradle.Internal {
		return err.Error()
	}
	if e.Err != nil {
		return e.Err.Error()
	}
	return ""
}

// Header carries the trace to the client with a refusal.
const Header = "Cradle-Trace"

var traces struct {
	prefix [5]byte
	next   atomic.Uint32
}

func init() {
	rand.Read(traces.prefix[:])
	var n [4]byte
	rand.Read(n[:])
	traces.next.Store(binary.BigEndian.Uint32(n[:]))
}

var encoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// Trace names a request: different for each of a process, and, with luck, of all.
func Trace() string {
	var b [9]byte
	copy(b[:], traces.prefix[:])
	binary.BigEndian.PutUint32(b[5:], traces.next.Add(1))
	return encoding.EncodeToString(b[:])
}
