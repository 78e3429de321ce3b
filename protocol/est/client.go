package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cradle-iot/cradle"
)

// Client calls one EST server. It keeps nothing; the connection, its trust anchors, its client
// certificate and its timeouts are those of HTTP. It never follows a redirect: a client
// certificate is shown to the server that was named and to no other. Safe for concurrent use.
type Client struct {
	HTTP *http.Client // required
	URL  string       // base, for example "https://host/.well-known/est/acme-ldevid"; a final slash is optional
}

// StatusError is an answer other than 200.
type StatusError struct {
	Code       int           // HTTP status; 202 when the server wants the request again later
	RetryAfter time.Duration // 0 when the server did not say
	Reason     string        // what was wrong, as the server put it; printable, at most 1024 bytes; may be empty
	Hint       string        // what to do about it, as the server put it; may be empty
}

// AttestAfresh stands in the hint of a refusal (403) of a certificate that works no more, while its device may have another: who
// asks next with a credential that came before it is heard.
const AttestAfresh = "attest afresh: enrol with the LDevID or IDevID"

// Afresh reports whether the server asks for AttestAfresh.
func (e *StatusError) Afresh() bool { return strings.Contains(e.Hint, AttestAfresh) }

func (e *StatusError) Error() string {
	s := fmt.Sprintf("EST server answered %d", e.Code)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// Unwrap lets cradle.KindOf and cradle.Public see the answer's kind, reason and hint.
func (e *StatusError) Unwrap() error {
	return &cradle.Error{Kind: e.kind(), Detail: e.Error(), Hint: e.Hint, RetryAfter: e.RetryAfter}
}

// kind is the inverse of the server's mapping. 5xx and 429 are Busy.
func (e *StatusError) kind() cradle.Kind {
	switch {
	case e.Code == http.StatusUnauthorized:
		return cradle.Unauthorized
	case e.Code == http.StatusForbidden:
		return cradle.Forbidden
	case e.Code == http.StatusNotFound:
		return cradle.NotFound
	case e.Code == http.StatusConflict:
		return cradle.Conflict
	case e.Code == http.StatusRequestEntityTooLarge:
		return cradle.TooLarge
	case e.Code == http.StatusAccepted:
		return cradle.Pending
	case e.Code == http.StatusTooManyRequests, e.Code >= 500:
		return cradle.Busy
	}
	return cradle.Invalid
}

// CACerts fetches the CA certificates (RFC 7030 §4.1) in the order in which they are encoded. They
// are not verified.
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	body, _, err := c.do(ctx, http.MethodGet, OpCACerts, "", nil, TypePKCS7)
	if err != nil {
		return nil, err
	}
	return decodeCertsBody(body)
}

// Nonce asks for a nonce. With a zero typ it asks for a bare one; else claim, as JSON, is the request's
// reqInfo, defined by typ, and the answer is of the same type.
func (c *Client) Nonce(ctx context.Context, typ x509.OID, claim any) (NonceResponse, error) {
	method, contentType := http.MethodGet, ""
	var body []byte
	var want string
	if !typ.Equal(x509.OID{}) {
		want = typ.String()
		info, err := json.Marshal(claim)
		if err != nil {
			return NonceResponse{}, fmt.Errorf("encoding the nonce request: %w", err)
		}
		if body, err = json.Marshal(NonceRequest{Type: want, ReqInfo: info}); err != nil {
			return NonceResponse{}, fmt.Errorf("encoding the nonce request: %w", err)
		}
		method, contentType = http.MethodPost, TypeNonce
	}
	answer, _, err := c.do(ctx, method, OpNonce, contentType, body, TypeNonce)
	if err != nil {
		return NonceResponse{}, err
	}
	r, err := ParseNonceResponse(answer)
	if err != nil {
		return NonceResponse{}, err
	}
	if r.Type != want {
		return NonceResponse{}, cradle.Errorf(cradle.Invalid, "nonce answer: type %q for a request of type %q", r.Type, want)
	}
	return r, nil
}

// SimpleEnroll sends a PKCS#10 request in DER (RFC 7030 §4.2.1) and returns the one certificate of the
// answer, which holds the request's public key. Issuer and content are not verified.
func (c *Client) SimpleEnroll(ctx context.Context, csr []byte) (*x509.Certificate, error) {
	return c.enroll(ctx, OpSimpleEnroll, csr)
}

// SimpleReenroll is SimpleEnroll for the certificate with which the TLS connection is authenticated
// (RFC 7030 §4.2.2); subject and alternative names of the request are those of that certificate.
func (c *Client) SimpleReenroll(ctx context.Context, csr []byte) (*x509.Certificate, error) {
	return c.enroll(ctx, OpSimpleReenroll, csr)
}

func (c *Client) enroll(ctx context.Context, op string, csr []byte) (*x509.Certificate, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "certificate request: %w", err)
	}
	body, _, err := c.do(ctx, http.MethodPost, op, TypePKCS10, EncodeBody(csr, true), TypePKCS7)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCertsBody(body)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, cradle.Errorf(cradle.Invalid, "%s answer: %d certificates instead of one", op, len(certs))
	}
	if !bytes.Equal(certs[0].RawSubjectPublicKeyInfo, req.RawSubjectPublicKeyInfo) {
		return nil, cradle.Errorf(cradle.Invalid, "%s answer: the certificate is for another key", op)
	}
	return certs[0], nil
}

// CSRAttributes asks what the server wants in a CSR (RFC 7030 §4.5). 204 and 404, by which a server says that it
// wants nothing special, are an empty answer.
func (c *Client) CSRAttributes(ctx context.Context) (CSRAttributes, error) {
	body, _, err := c.do(ctx, http.MethodGet, OpCSRAttrs, "", nil, TypeCSRAttrs)
	var status *StatusError
	if errors.As(err, &status) && (status.Code == http.StatusNoContent || status.Code == http.StatusNotFound) {
		return CSRAttributes{}, nil
	}
	if err != nil {
		return CSRAttributes{}, err
	}
	der, err := DecodeBody(body)
	if err != nil {
		return CSRAttributes{}, fmt.Errorf("EST answer: %w", err)
	}
	return ParseCSRAttributes(der)
}

// GeneratedKey is the answer of serverkeygen: the certificate, and its key either as PKCS#8 or, when the request's
// KeyWish asked for encryption, as a CMS EnvelopedData of a SignedData of a key package.
type GeneratedKey struct {
	Cert  *x509.Certificate
	PKCS8 []byte // nil when Sealed is set
	// Sealed is opened by internal/cms with the client's key; who signed the package inside is the caller's to judge.
	Sealed []byte
}

// ServerKeyGen has the server make the key (RFC 7030 §4.4). The request's own key and signature are ignored by
// the server. A key that comes in the clear must be that of the certificate; one that comes so against the wish of
// the request is refused.
func (c *Client) ServerKeyGen(ctx context.Context, csr []byte) (*GeneratedKey, error) {
	wish, err := ParseKeyWish(csr)
	if err != nil {
		return nil, err
	}
	body, typ, err := c.do(ctx, http.MethodPost, OpServerKeyGen, TypePKCS10, EncodeBody(csr, true), TypeMultipart)
	if err != nil {
		return nil, err
	}
	parts, err := DecodeParts(typ, body, 2)
	if err != nil {
		return nil, err
	}
	if parts[1].is(TypePKCS8) || parts[1].is(TypePKCS7, "server-generated-key") {
		parts[0], parts[1] = parts[1], parts[0] // either order (§4.4.2)
	}
	if !parts[1].is(TypePKCS7, "certs-only", "") {
		return nil, cradle.Errorf(cradle.Invalid, "serverkeygen answer: no certificate, but a part of content type %.100q", parts[1].ContentType)
	}
	certs, err := DecodeCerts(parts[1].Body)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, cradle.Errorf(cradle.Invalid, "serverkeygen answer: %d certificates instead of one", len(certs))
	}
	out := &GeneratedKey{Cert: certs[0]}
	switch sealed := parts[0].is(TypePKCS7, "server-generated-key"); {
	case sealed != wish.Encrypted() || !sealed && !parts[0].is(TypePKCS8):
		return nil, cradle.Errorf(cradle.Invalid, "serverkeygen answer: a key of content type %.100q for a request that asks encryption: %v", parts[0].ContentType, wish.Encrypted())
	case sealed:
		out.Sealed = parts[0].Body
	default:
		key, err := x509.ParsePKCS8PrivateKey(parts[0].Body)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "serverkeygen answer: the key is not PKCS#8")
		}
		if s, ok := key.(crypto.Signer); !ok || !sameKey(s, certs[0]) {
			return nil, cradle.Errorf(cradle.Invalid, "serverkeygen answer: the certificate is for another key")
		}
		out.PKCS8 = parts[0].Body
	}
	return out, nil
}

func sameKey(s crypto.Signer, c *x509.Certificate) bool {
	spki, err := x509.MarshalPKIXPublicKey(s.Public())
	return err == nil && bytes.Equal(spki, c.RawSubjectPublicKeyInfo)
}

func decodeCertsBody(body []byte) ([]*x509.Certificate, error) {
	der, err := DecodeBody(body, PEMPKCS7...)
	if err != nil {
		return nil, fmt.Errorf("EST answer: %w", err)
	}
	return DecodeCerts(der)
}

// do makes one request and returns body and content type of a 200 of media type accept.
func (c *Client) do(ctx context.Context, method, op, contentType string, body []byte, accept string) (answer []byte, typ string, err error) {
	if c.HTTP == nil {
		return nil, "", cradle.Errorf(cradle.Invalid, "EST client without an HTTP client")
	}
	if u, err := url.Parse(c.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, "", cradle.Errorf(cradle.Invalid, "EST URL %q: use https://host[:port]%s[label]", c.URL, WellKnown)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+"/"+op, bytes.NewReader(body))
	if err != nil {
		return nil, "", fmt.Errorf("EST %s: %w", op, err)
	}
	req.Header.Set("Accept", accept)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if contentType == TypePKCS10 {
		req.Header.Set("Content-Transfer-Encoding", "base64") // RFC 8951 made it void; older servers insist
	}
	hc := *c.HTTP
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := hc.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("EST %s: %w", op, err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if resp.StatusCode != http.StatusOK {
		return nil, "", statusError(resp, answer)
	}
	if err != nil {
		return nil, "", fmt.Errorf("EST %s: reading the answer: %w", op, err)
	}
	if len(answer) > MaxBody {
		return nil, "", cradle.Errorf(cradle.TooLarge, "EST %s: the answer has more than %d bytes", op, MaxBody)
	}
	typ = resp.Header.Get("Content-Type")
	got, params, err := mime.ParseMediaType(typ)
	if smime, ok := params["smime-type"]; err != nil || got != accept || ok && !strings.EqualFold(smime, "certs-only") {
		return nil, "", cradle.Errorf(cradle.Invalid, "EST %s: the answer has content type %q instead of %s", op, typ, accept)
	}
	return answer, typ, nil
}

// ReasonHeader carries the reason of an answer that must have no content (a nonce request's 400).
const ReasonHeader = "Cradle-Reason"

func statusError(resp *http.Response, body []byte) *StatusError {
	e := &StatusError{Code: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode/100 == 3:
		e.Reason = "redirected to " + printable(resp.Header.Get("Location"))
		e.Hint = "redirects are not followed: put the right address into the settings"
	case mt == "text/plain" || mt == "":
		reason, hint, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		e.Reason, e.Hint = printable(reason), printable(hint)
	}
	if e.Reason == "" {
		e.Reason = printable(resp.Header.Get(ReasonHeader))
	}
	return e
}

// retryAfter reads delay seconds or a date (RFC 9110 §10.2.3), at most a day.
func retryAfter(s string) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		d = time.Duration(min(max(n, 0), 86400)) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = time.Until(t)
	}
	return min(max(d, 0), 24*time.Hour)
}

// printable makes a text from outside safe for a log line and a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 1024 {
		s = strings.ToValidUTF8(s[:1024], "")
	}
	return s
}
