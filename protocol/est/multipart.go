package est

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
)

// TypeMultipart is the media type of answers and requests of several parts.
const TypeMultipart = "multipart/mixed"

// Part is one part of a multipart message.
type Part struct {
	ContentType string
	Body        []byte // DER
}

// EncodeParts makes a multipart/mixed body of base64 parts; boundary is at most 68 characters, which is what libest
// takes. Header names are spelled, and parameters spaced, as libest compares them. lines is as in EncodeBody.
func EncodeParts(boundary string, lines bool, parts ...Part) (contentType string, body []byte) {
	var b bytes.Buffer
	for _, p := range parts {
		b.WriteString("--" + boundary + "\r\nContent-Type: " + p.ContentType + "\r\nContent-Transfer-Encoding: base64\r\n\r\n")
		b.Write(bytes.TrimSuffix(EncodeBody(p.Body, lines), []byte("\n")))
		b.WriteString("\r\n")
	}
	b.WriteString("--" + boundary + "--\r\n")
	return TypeMultipart + "; boundary=" + boundary, b.Bytes()
}

// DecodeParts reads a multipart/mixed body of exactly n base64 parts, in their order. Parts have no
// headers that matter but Content-Type.
func DecodeParts(contentType string, body []byte, n int) ([]Part, error) {
	bad := func(format string, args ...any) ([]Part, error) {
		return nil, cradle.Errorf(cradle.Invalid, "multipart message: "+format, args...)
	}
	if len(body) > MaxBody {
		return nil, cradle.Errorf(cradle.TooLarge, "the body has more than %d bytes", MaxBody)
	}
	mt, params, err := mime.ParseMediaType(contentType)
	if err != nil || mt != TypeMultipart || params["boundary"] == "" || len(params["boundary"]) > 70 {
		return bad("content type %.100q is not %s with a boundary", contentType, TypeMultipart)
	}
	r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	var out []Part
	for {
		p, err := r.NextRawPart()
		if err == io.EOF { // not wrapped: that is a message without its end
			break
		}
		if err != nil {
			return bad("it does not consist of whole parts between its boundaries")
		}
		if len(out) == n {
			return bad("more than %d parts", n)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			return bad("part %d is not whole", len(out)+1)
		}
		der, err := DecodeBody(b)
		if err != nil {
			return bad("part %d: %w", len(out)+1, err)
		}
		out = append(out, Part{p.Header.Get("Content-Type"), der})
	}
	if len(out) != n {
		return bad("%d parts instead of %d", len(out), n)
	}
	return out, nil
}

// is compares media types without regard to case, and the smime-type, "" standing for none, when some are given.
func (p Part) is(want string, smime ...string) bool {
	mt, params, err := mime.ParseMediaType(p.ContentType)
	if err != nil || mt != want {
		return false
	}
	return len(smime) == 0 || slices.ContainsFunc(smime, func(s string) bool { return strings.EqualFold(s, params["smime-type"]) })
}
