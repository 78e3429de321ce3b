package est

import (
	"bytes"
	"encoding/base64"
	"slices"

	"github.com/cradle-iot/cradle"
)

// PEM types that DecodeBody may be told to tolerate.
var (
	PEMRequest = []string{"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"}
	PEMPKCS7   = []string{"PKCS7", "CMS"}
)

// lineLen is the length of a base64 line. 64 suits old OpenSSL, which does not read longer lines.
const lineLen = 64

// EncodeBody returns the base64 of der. With lines it is broken by LF after every 64 characters and
// ends with LF, as libest needs for more than 1 KiB; without, it has no white space at all, as strongSwan before
// 5.9.11 needs. RFC 8951 §3.1 allows both. LF, not CRLF, since base64 -d of coreutils takes no CR.
func EncodeBody(der []byte, lines bool) []byte {
	n := base64.StdEncoding.EncodedLen(len(der))
	if !lines {
		return base64.StdEncoding.AppendEncode(make([]byte, 0, n), der)
	}
	out := make([]byte, 0, n+n/lineLen+1)
	for line := range slices.Chunk(der, lineLen/4*3) {
		out = append(base64.StdEncoding.AppendEncode(out, line), '\n')
	}
	return out
}

// DecodeBody reads a base64 body: CR, LF, space and tab may stand anywhere (RFC 8951 §3.1); otherwise it is
// strict, so that one message has one base64 form. PEM armour of one of the named types is tolerated, since
// clients send the file as it lies on disk. A body over MaxBody is cradle.TooLarge; any other fault is
// cradle.Invalid with a hint.
func DecodeBody(body []byte, pemTypes ...string) ([]byte, error) {
	const hint = "send the base64 of the DER (RFC 8951); openssl makes it with: openssl req -in FILE -outform DER | base64"
	if len(body) > MaxBody {
		return nil, cradle.Errorf(cradle.TooLarge, "the body has more than %d bytes", MaxBody)
	}
	text := bytes.TrimSpace(body)
	if inner, typ, found, ok := unarmour(text); found {
		if !ok {
			return nil, cradle.Errorf(cradle.Invalid, "the body begins like PEM but is not one complete PEM block").WithHint(hint)
		}
		if !slices.Contains(pemTypes, typ) {
			return nil, cradle.Errorf(cradle.Invalid, "the body is PEM of type %q", typ).WithHint(hint)
		}
		text = inner
	}
	flat := make([]byte, 0, len(text))
	for _, c := range text {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			flat = append(flat, c)
		}
	}
	if len(flat) == 0 {
		return nil, cradle.Errorf(cradle.Invalid, "the body is empty").WithHint(hint)
	}
	n, err := base64.StdEncoding.Strict().Decode(flat, flat) // in place: the output never overtakes the input
	if err != nil {
		if body[0] == 0x30 && len(body) > 1 && body[1] >= 0x80 {
			return nil, cradle.Errorf(cradle.Invalid, "the body is raw DER, not base64").WithHint(hint)
		}
		return nil, cradle.Errorf(cradle.Invalid, "the body is not base64: %w", err).WithHint(hint)
	}
	return flat[:n], nil
}

// unarmour takes the armour off a single PEM block that is the whole text. Headers inside the block
// (RFC 1421) make it not base64, which the caller then finds. encoding/pem is not used because it
// skips what it does not like and would find a block in the middle of anything.
func unarmour(text []byte) (inner []byte, typ string, found, ok bool) {
	rest, found := bytes.CutPrefix(text, []byte("-----BEGIN "))
	if !found {
		return nil, "", false, false
	}
	name, rest, ok := bytes.Cut(rest, []byte("-----"))
	if !ok || len(name) > 64 || bytes.ContainsAny(name, "\r\n") {
		return nil, "", true, false
	}
	inner, ok = bytes.CutSuffix(rest, []byte("-----END "+string(name)+"-----"))
	return inner, string(name), true, ok
}
