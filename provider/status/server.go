// Package status serves what others ask about certificates: CRL shards under /crl/, OCSP (RFC 6960) under /ocsp, and the
// CAs' own certificates under /ca/. Everything it says is signed by the issuing CA or by its delegated responder, so it
// may be served over plain HTTP, and by any replica; nobody has to say who he is.
//
// It decides nothing and keeps nothing but caches. An OCSP answer is signed once and given again, byte for byte, while
// the certificate's standing in the store is still the one it speaks of and it is young enough: the store is asked for every
// answer (one row by its key), so that no replica says good a moment after another one revoked. An answer to
// a nonce is made fresh. One answer costs the same whatever the number of certificates. An unknown issuer is answered "unauthorized"
// (RFC 5019 §2.2.3), a serial number that was never issued "unknown".
package status

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// Source is what the server asks; provider.Provider is one. Errors carry a cradle.Kind.
type Source interface {
	// StatusIssuers lists the authorities.
	StatusIssuers() []provider.StatusIssuer
	// CertStatus returns the standing of a certificate that one of the issuers signed; NotFound: none did.
	CertStatus(ctx context.Context, issuers []string, serial cradle.CertSerial) (provider.CertStatus, error)
	// OCSPKey returns the responder of an authority.
	OCSPKey(ctx context.Context, authority string) (*provider.OCSPKey, error)
	// CRL returns the newest CRL of a shard; NotFound.
	CRL(ctx context.Context, authority string, shard int64) (provider.Shard, []byte, error)
	// ShardURLs lists an authority's CRLs.
	ShardURLs(ctx context.Context, authority string) ([]string, error)
}

// How long what is said here holds.
const (
	ocspLife  = time.Hour        // nextUpdate of an answer
	httpCache = time.Minute      // how long a proxy may keep it: a revocation is not seen by it for so long
	backdate  = time.Minute      // of thisUpdate, for clocks that are behind
	ocspRenew = 30 * time.Minute // age from which an answer is signed anew
)

// Config is what a Server needs.
type Config struct {
	Source Source
	Log    *slog.Logger
	Now    func() time.Time // default time.Now
	// Admit takes or refuses a request before it costs anything; nil takes all.
	Admit func(*http.Request) error
}

// Server is an http.Handler for /crl/, /ocsp, /ocsp/ and /ca/.
type Server struct {
	Config
	issuers issuers
	cache   answers
}

// New makes the handler.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Server{Config: c}
}

// Paths are the prefixes that it serves, as a router needs them.
var Paths = []string{"/crl/", "/ocsp", "/ocsp/", "/ca/"}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Admit != nil {
		if err := s.Admit(r); err != nil {
			detail, hint := cradle.Public(err)
			w.Header().Set("Retry-After", strconv.Itoa(int(max(1, cradle.RetryAfter(err).Seconds()))))
			http.Error(w, detail+"\n"+hint, http.StatusTooManyRequests)
			return
		}
	}
	p := r.URL.Path
	switch {
	case strings.HasPrefix(p, "/crl/"):
		s.get(w, r, s.crl)
	case strings.HasPrefix(p, "/ca/"):
		s.get(w, r, s.authority)
	case p == "/ocsp" || strings.HasPrefix(p, "/ocsp/"):
		s.ocsp(w, r, strings.TrimPrefix(strings.TrimPrefix(p, "/ocsp"), "/"))
	default:
		http.NotFound(w, r)
	}
}

// document is an answer to GET.
type document struct {
	body     []byte
	kind     string // Content-Type
	etag     string
	modified time.Time
	maxAge   time.Duration
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, find func(r *http.Request) (*document, error)) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "use GET", http.StatusMethodNotAllowed)
		return
	}
	d, err := find(r)
	if err != nil {
		code := map[cradle.Kind]int{cradle.NotFound: http.StatusNotFound, cradle.Busy: http.StatusServiceUnavailable}[cradle.KindOf(err)]
		if code == 0 {
			s.Log.Error("status request", "path", r.URL.Path, "err", err)
			code = http.StatusInternalServerError
		}
		if code == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "2")
		}
		detail, _ := cradle.Public(err)
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, detail, code)
		return
	}
	s.send(w, r, d)
}

// send answers with caching headers (RFC 5019 §6.2, RFC 9111).
func (s *Server) send(w http.ResponseWriter, r *http.Request, d *document) {
	h := w.Header()
	h.Set("Content-Type", d.kind)
	h.Set("ETag", d.etag)
	h.Set("Cache-Control", fmt.Sprintf("public, no-transform, must-revalidate, max-age=%d", int(d.maxAge.Seconds())))
	h.Set("Expires", s.Now().Add(d.maxAge).UTC().Format(http.TimeFormat))
	http.ServeContent(w, r, "", d.modified, bytes.NewReader(d.body))
}

// crl serves /crl/<authority>/<shard>.crl, and at /crl/<authority>/ the list of them.
func (s *Server) crl(r *http.Request) (*document, error) {
	name, file, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/crl/"), "/")
	if file == "" && strings.HasSuffix(r.URL.Path, "/") {
		return s.shards(r, name)
	}
	text, ok := strings.CutSuffix(file, ".crl")
	n, err := strconv.ParseInt(text, 10, 64)
	authority := s.issuers.named(s.Source, name, s.Now())
	if !ok || err != nil || n < 1 || strconv.FormatInt(n, 10) != text || authority == nil {
		return nil, cradle.Errorf(cradle.NotFound, "no such CRL")
	}
	shard, body, err := s.Source.CRL(r.Context(), authority.ID, n)
	if err != nil {
		return nil, err
	}
	return &document{body, "application/pkix-crl", fmt.Sprintf(`"%s-%d-%d"`, name, n, shard.CRLNumber), shard.ThisUpdate,
		bounded(httpCache, shard.NextUpdate.Sub(s.Now()))}, nil
}

// shards lists where an authority's CRLs are, as text/uri-list (RFC 2483 §5), for brokers that take them all in one file.
func (s *Server) shards(r *http.Request, name string) (*document, error) {
	a := s.issuers.named(s.Source, name, s.Now())
	if a == nil {
		return nil, cradle.Errorf(cradle.NotFound, "no such CRL")
	}
	urls, err := s.Source.ShardURLs(r.Context(), a.ID)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, u := range urls {
		b.WriteString(u + "\r\n")
	}
	sum := sha256.Sum256(b.Bytes())
	return &document{b.Bytes(), "text/uri-list", `"` + hex.EncodeToString(sum[:16]) + `"`, time.Time{}, httpCache}, nil
}

// authority serves /ca/<authority>.cer.
func (s *Server) authority(r *http.Request) (*document, error) {
	name, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/ca/"), ".cer")
	a := s.issuers.named(s.Source, name, s.Now())
	if !ok || a == nil {
		return nil, cradle.Errorf(cradle.NotFound, "no such CA certificate")
	}
	return &document{a.Cert.Raw, "application/pkix-cert", `"` + a.ID + `"`, a.Cert.NotBefore, 24 * time.Hour}, nil
}

func bounded(d, most time.Duration) time.Duration { return max(0, min(d, most)) }

// ocsp serves one OCSP exchange: POST of DER, or GET of base64 below the path (RFC 6960 appendix A.1). Below by-name/ the answer
// names its responder by name.
func (s *Server) ocsp(w http.ResponseWriter, r *http.Request, tail string) {
	f := byKey
	if rest, ok := strings.CutPrefix(tail+"/", "by-name/"); ok {
		f, tail = byName, strings.TrimSuffix(rest, "/")
	}
	var b []byte
	var err error
	switch {
	case r.Method == http.MethodPost && tail == "":
		if b, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest)); err != nil {
			var big *http.MaxBytesError
			if !errors.As(err, &big) {
				return // the client went away
			}
			err = cradle.Errorf(cradle.TooLarge, "OCSP request has over %d bytes", maxRequest)
		}
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && tail != "":
		b, err = decodeGET(tail)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "POST an OCSP request here, or GET this path with the request in base64 behind it (RFC 6960 appendix A.1)", http.StatusMethodNotAllowed)
		return
	}
	var a *signed
	if err == nil {
		a, err = s.Answer(r.Context(), b, f)
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	if err != nil {
		if result := resultOf(err); result == InternalError {
			s.Log.Error("OCSP request", "err", err)
		} else {
			s.Log.Debug("OCSP request refused", "result", int(result), "reason", err)
		}
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(refusal(resultOf(err))) // HTTP 200: the refusal is OCSP's (RFC 6960 §2.3)
		return
	}
	left := bounded(httpCache, a.next.Sub(s.Now()))
	if !a.shared || r.Method == http.MethodPost {
		w.Header().Set("Cache-Control", "no-store")
		if r.Method == http.MethodPost && a.shared { // RFC 9111 has no caching of POST; a client may yet keep it for so long
			w.Header().Set("Cache-Control", fmt.Sprintf("private, max-age=%d", int(left.Seconds())))
		}
		_, _ = w.Write(a.body)
		return
	}
	sum := sha256.Sum256(a.body)
	s.send(w, r, &document{a.body, "application/ocsp-response", `"` + hex.EncodeToString(sum[:16]) + `"`, a.this, left})
}

// decodeGET reads base64 of a URL path, already unescaped once. Some clients escape twice, some not at all, which turns
// '+' into what a form would read as a space.
func decodeGET(text string) ([]byte, error) {
	if len(text) > 2*maxRequest {
		return nil, cradle.Errorf(cradle.TooLarge, "OCSP request is over %d bytes", maxRequest)
	}
	if strings.Contains(text, "%") {
		if again, err := url.PathUnescape(text); err == nil {
			text = again
		}
	}
	text = strings.TrimRight(strings.ReplaceAll(text, " ", "+"), "=")
	enc := base64.RawStdEncoding
	if strings.ContainsAny(text, "-_") {
		enc = base64.RawURLEncoding
	}
	b, err := enc.DecodeString(text)
	if err != nil {
		return nil, malformed("the path is not base64")
	}
	return b, nil
}

// signed is an answer ready to be sent.
type signed struct {
	body       []byte
	this, next time.Time
	shared     bool // says the same to everybody: no nonce, nothing unknown
}

// Answer answers one request.
func (s *Server) Answer(ctx context.Context, request []byte, f form) (*signed, error) {
	req, err := ParseRequest(request)
	if err != nil {
		return nil, err
	}
	now := s.Now()
	var issuer []provider.StatusIssuer
	certs := make([]standing, len(req.Certs))
	for i, id := range req.Certs {
		found := s.issuers.of(s.Source, id, now)
		if len(found) == 0 {
			return nil, cradle.Errorf(cradle.NotFound, "the issuer is not one of ours")
		}
		if issuer == nil {
			issuer = found
		} else if issuer[0].ID != found[0].ID {
			// The responder of one CA may not speak for another (RFC 6960 §4.2.2.2).
			return nil, cradle.Errorf(cradle.Forbidden, "one request may ask for certificates of one issuer")
		}
		if certs[i], err = s.standing(ctx, id, found); err != nil {
			return nil, err
		}
	}
	alone := len(certs) == 1 && req.Nonce == nil && certs[0].known
	if alone {
		if a := s.cache.get(f, &certs[0], now); a != nil {
			return a, nil
		}
	}
	key, err := s.key(ctx, issuer)
	if err != nil {
		return nil, err
	}
	produced := now.Truncate(time.Second)
	a := &signed{this: produced.Add(-backdate), next: produced.Add(ocspLife), shared: alone}
	if end := key.Cert.NotAfter; a.next.After(end) {
		a.next = end
	}
	if a.body, err = answer(key, f, certs, req.Nonce, produced, a.this, a.next); err != nil {
		return nil, err
	}
	if alone {
		s.cache.put(f, &certs[0], a)
	}
	return a, nil
}

// standing asks the store.
func (s *Server) standing(ctx context.Context, id CertID, issuer []provider.StatusIssuer) (standing, error) {
	out := standing{id: id}
	if id.Serial.Sign() <= 0 {
		return out, nil
	}
	ids := make([]string, len(issuer))
	for i := range issuer {
		ids[i] = issuer[i].ID
	}
	c, err := s.Source.CertStatus(ctx, ids, ca.SerialString(id.Serial))
	if cradle.KindOf(err) == cradle.NotFound {
		return out, nil
	}
	out.known, out.revoked, out.code = true, c.Revoked, c.Code
	return out, err
}

// key finds the responder: of the first of the authorities of one name and key that has one.
func (s *Server) key(ctx context.Context, issuer []provider.StatusIssuer) (k *provider.OCSPKey, err error) {
	for _, a := range issuer {
		if k, err = s.Source.OCSPKey(ctx, a.ID); err == nil {
			return k, nil
		}
	}
	return nil, err
}
