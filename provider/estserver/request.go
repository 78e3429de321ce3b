package estserver

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
)

// operations says which operations there are; none of them is ever a label (RFC 7030 §3.2.2).
var operations = map[string]bool{
	est.OpCACerts: true, est.OpSimpleEnroll: true, est.OpSimpleReenroll: true, est.OpNonce: true, est.OpCSRAttrs: true,
	est.OpServerKeyGen: true, est.OpFullCMC: true, est.OpTPMEnroll: true,
}

// splitPath reads /.well-known/est[/label]/operation (RFC 7030 §3.2.2). It takes the path as it was sent: an encoded
// slash is part of a segment, and no segment that we have holds one.
func splitPath(u *url.URL) (op, label string, err error) {
	path, ours := strings.CutPrefix(u.EscapedPath(), est.WellKnown)
	label, op, labelled := strings.Cut(path, "/")
	if !labelled {
		label, op = "", label
	}
	if op, err = url.PathUnescape(op); err != nil || !ours || !operations[op] {
		return "", "", noSuch()
	}
	if label, err = url.PathUnescape(label); err != nil || labelled && !isLabel(label) {
		return "", "", noSuch()
	}
	return op, label, nil
}

func noSuch() error {
	return cradle.Errorf(cradle.NotFound, "there is no such EST resource").
		WithHint("use %s[label/]{cacerts,csrattrs,simpleenroll,simplereenroll,serverkeygen,nonce}", est.WellKnown)
}

// isLabel: what cradle.Label can make, so that nothing else comes near a log or a store.
func isLabel(s string) bool {
	if s == "" || len(s) > 2*cradle.MaxIDLen || operations[s] {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

// serverName is what the client called us: in TLS, else (a client that sends no server name there) in HTTP.
func serverName(r *http.Request) string {
	name := r.TLS.ServerName
	if name == "" {
		name = r.Host
		if h, _, err := net.SplitHostPort(name); err == nil {
			name = h
		}
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// clientOf collects what the client authenticates itself with. An Authorization that is not HTTP Basic is
// refused rather than overlooked: who sends it believes to be authenticated by it.
func clientOf(r *http.Request) (Client, error) {
	c := Client{Chain: r.TLS.PeerCertificates}
	if len(c.Chain) > 0 {
		c.Peer = c.Chain[0]
	}
	if len(r.Header["Authorization"]) == 0 {
		return c, nil
	}
	user, password, ok := r.BasicAuth()
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	if !ok || len(r.Header["Authorization"]) > 1 || len(user)+len(password) > 1024 || strings.ContainsFunc(user+password, control) {
		return c, cradle.Errorf(cradle.Unauthorized, "the Authorization header is not HTTP Basic (RFC 7617)")
	}
	c.Basic = &Basic{user, password}
	return c, nil
}

// authenticated refuses who brought nothing; what was brought is the provider's to judge.
func authenticated(e Endpoint, c Client, op string) error {
	switch {
	case c.Peer != nil || c.Basic != nil:
		return nil
	case e.Realm != "":
		return cradle.Errorf(cradle.Unauthorized, "neither a TLS client certificate nor a user and password were presented").
			WithHint("%s is authenticated by a TLS client certificate of this account, or by HTTP Basic", op)
	}
	return cradle.Errorf(cradle.Unauthorized, "no TLS client certificate was presented").
		WithHint("%s is authenticated by a TLS client certificate of this account", op)
}

func allow(r *http.Request, methods ...string) error {
	if slices.Contains(methods, r.Method) {
		return nil
	}
	list := strings.Join(methods, ", ")
	return &refusal{
		error:  cradle.Errorf(cradle.Invalid, "method %.20q is not for this resource", r.Method).WithHint("use %s", list),
		status: http.StatusMethodNotAllowed,
		allow:  list,
	}
}

// mediaType compares type and subtype without regard to case and ignores parameters (RFC 9110 §8.3.1).
func mediaType(r *http.Request, want string) error {
	list := r.Header["Content-Type"]
	got := strings.Join(list, ", ")
	if mt, _, err := mime.ParseMediaType(got); len(list) == 1 && (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter)) && mt == want {
		return nil
	}
	return &refusal{
		error:  cradle.Errorf(cradle.Invalid, "content type %.100q is not %s", got, want).WithHint("send the header Content-Type: %s", want),
		status: http.StatusUnsupportedMediaType,
	}
}

// readBody reads at most est.MaxBody; net/http closes the connection of a client that sends more.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > est.MaxBody {
		w.Header()["Connection"] = []string{"close"} // the rest of the body is not read
		return nil, tooLarge()
	}
	body := new(bytes.Buffer)
	body.Grow(int(max(r.ContentLength, 0)) + bytes.MinRead)
	_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, est.MaxBody))
	if err == nil {
		return body.Bytes(), nil
	}
	if over := new(http.MaxBytesError); errors.As(err, &over) {
		return nil, tooLarge()
	}
	return nil, &cradle.Error{Kind: cradle.Invalid, Detail: "the body is not complete", Hint: "send it again", Err: err}
}

func tooLarge() error {
	return cradle.Errorf(cradle.TooLarge, "the body has more than %d bytes", est.MaxBody)
}

// wants tells whether an object identifier is in the list.
func wants(a est.CSRAttributes, oid asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(a.OIDs, oid.Equal)
}
