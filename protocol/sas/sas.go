// Package sas is Azure's SharedAccessSignature: the token by which a service tool, or a device with
// a symmetric key, proves that it holds a key, and the connection strings that carry such keys.
//
// A token reads
//
//	SharedAccessSignature sr=<resource>&sig=<base64 HMAC-SHA256>&se=<unix seconds>&skn=<key name>
//
// with the fields in any order. The signature covers the resource exactly as it stands in the
// token: most clients percent-encode it and sign the encoded form, some leave it as it is and sign
// that (protocols of the SDKs, seen). So Token keeps the received form for Verify and decodes it
// only to compare it. A token is a bearer secret until it expires; never log one.
package sas

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

const (
	scheme = "SharedAccessSignature"
	// MaxLen bounds a token in bytes; real ones have some 200.
	MaxLen = 4096
)

// Token is a parsed, not yet verified token.
type Token struct {
	RawResource string    // sr exactly as received; what the signature covers
	Resource    string    // sr percent-decoded
	KeyName     string    // skn, decoded; empty when a device signs with its own key
	Expiry      time.Time // se, whole seconds

	expiry    string // se as received; signed
	signature []byte
}

// Parse reads the value of an Authorization header or an MQTT password. Errors are of kind
// cradle.Unauthorized and never repeat the token.
func Parse(s string) (*Token, error) {
	if len(s) > MaxLen {
		return nil, refuse("SAS token is longer than %d bytes", MaxLen)
	}
	word, fields, ok := strings.Cut(strings.TrimSpace(s), " ")
	if !ok || !strings.EqualFold(word, scheme) {
		return nil, refuse("authorization is not a %s", scheme)
	}
	t := new(Token)
	seen := map[string]bool{}
	for f := range strings.SplitSeq(strings.TrimSpace(fields), "&") {
		name, raw, ok := strings.Cut(f, "=")
		if !ok {
			return nil, refuse("SAS token has a field without '='")
		}
		if seen[name] {
			return nil, refuse("SAS token has two fields %q", name)
		}
		seen[name] = true
		value, err := url.PathUnescape(raw) // not QueryUnescape: a bare '+' is a base64 digit here
		if err != nil {
			return nil, refuse("SAS token field %q is not percent-encoded well", name)
		}
		switch name {
		case "sr":
			t.RawResource, t.Resource = raw, value
		case "sig":
			if t.signature, err = base64.StdEncoding.DecodeString(value); err != nil {
				return nil, refuse("SAS token signature is not base64")
			}
		case "se":
			sec, err := strconv.ParseInt(value, 10, 64)
			if err != nil || sec < 0 {
				return nil, refuse("SAS token expiry is not a number of seconds")
			}
			t.expiry, t.Expiry = raw, time.Unix(sec, 0)
		case "skn":
			t.KeyName = value
		}
	}
	if t.RawResource == "" || t.signature == nil || t.expiry == "" {
		return nil, refuse("SAS token lacks sr, sig or se")
	}
	return t, nil
}

// Verify checks signature and expiry against one key. It does not look at the resource: see Covers.
func (t *Token) Verify(key []byte, now time.Time) error {
	if !t.Signed(key) {
		return refuse("SAS token signature does not match the key").
			WithHint("sign with the key of policy %q as the connection string gives it", t.KeyName)
	}
	return t.InTime(now)
}

// Signed reports whether the signature is by key. Expiry and resource are not looked at; an empty key signs nothing.
func (t *Token) Signed(key []byte) bool {
	return len(key) > 0 && hmac.Equal(mac(key, t.RawResource, t.expiry), t.signature)
}

// InTime refuses a token that has expired.
func (t *Token) InTime(now time.Time) error {
	if !now.Before(t.Expiry) {
		return refuse("SAS token expired at %s", t.Expiry.UTC().Format(time.RFC3339)).
			WithHint("make a new token; check this machine's clock, the server's says %s", now.UTC().Format(time.RFC3339))
	}
	return nil
}

// Covers reports whether the token's resource is the given one or a parent of it, compared without
// regard to case: a token for "host" covers "host/devices/a", one for "host/devices/a" does not
// cover "host/devices/ab".
func (t *Token) Covers(resource string) bool {
	have := strings.ToLower(strings.TrimSuffix(t.Resource, "/"))
	want := strings.ToLower(strings.TrimSuffix(resource, "/"))
	rest, ok := strings.CutPrefix(want, have)
	return ok && have != "" && (rest == "" || rest[0] == '/')
}

// Sign makes a token for a resource (given plain, for example "hub-1/devices/a"), percent-encoded
// as most SDKs do. An empty keyName leaves skn out.
func Sign(resource, keyName string, key []byte, expiry time.Time) string {
	sr := escape(resource)
	se := strconv.FormatInt(expiry.Unix(), 10)
	var b strings.Builder
	b.WriteString(scheme + " sr=" + sr)
	b.WriteString("&sig=" + escape(base64.StdEncoding.EncodeToString(mac(key, sr, se))))
	b.WriteString("&se=" + se)
	if keyName != "" {
		b.WriteString("&skn=" + escape(keyName))
	}
	return b.String()
}

// NewKey makes a random key of 32 bytes.
func NewKey() []byte {
	k := make([]byte, 32)
	rand.Read(k) // never fails (Go 1.24)
	return k
}

func mac(key []byte, sr, se string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(sr + "\n" + se))
	return h.Sum(nil)
}

// escape is JavaScript's encodeURIComponent for the characters that occur: space is %20, not '+'.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func refuse(format string, args ...any) *cradle.Error {
	return cradle.Errorf(cradle.Unauthorized, format, args...)
}
