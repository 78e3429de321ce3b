package est

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strconv"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
)

// Bounds of a nonce in bytes (draft-ietf-lamps-attestation-freshness).
const (
	MinNonce = 8
	MaxNonce = 64
)

// TypeActivation is cradle.OIDActivation as the JSON of the nonce resource names it.
var TypeActivation = cradle.OIDActivation.String()

// NonceRequest is the body of a POST to the nonce resource. All of it is optional.
type NonceRequest struct {
	Len     int             `json:"len,omitempty"`     // wished length in bytes, MinNonce..MaxNonce; 0 when absent
	Type    string          `json:"type,omitempty"`    // dotted OID that defines ReqInfo
	ReqInfo json.RawMessage `json:"reqInfo,omitempty"` // only together with Type
}

// NonceResponse is the answer of the nonce resource.
type NonceResponse struct {
	Nonce    Nonce           `json:"nonce"`              // empty, or MinNonce..MaxNonce bytes
	Expiry   int             `json:"expiry,omitempty"`   // seconds from now for which the nonce can be used; 0 when not told
	Type     string          `json:"type,omitempty"`     // dotted OID that defines RespInfo
	RespInfo json.RawMessage `json:"respInfo,omitempty"` // only together with Type
}

// Encode is the answer's JSON. RespInfo is taken as it stands: it must be JSON, and Type an object identifier.
func (r NonceResponse) Encode() []byte {
	out := make([]byte, 0, 160+len(r.Type)+len(r.RespInfo))
	out = append(base64.RawURLEncoding.AppendEncode(append(out, `{"nonce":"`...), r.Nonce), '"')
	if r.Expiry != 0 {
		out = strconv.AppendInt(append(out, `,"expiry":`...), int64(r.Expiry), 10)
	}
	if r.Type != "" {
		out = append(append(append(out, `,"type":"`...), r.Type...), '"')
	}
	if len(r.RespInfo) > 0 {
		out = append(append(out, `,"respInfo":`...), r.RespInfo...)
	}
	return append(out, '}')
}

// Nonce is bytes that are base64url without padding in JSON.
type Nonce []byte

// MarshalText implements encoding.TextMarshaler.
func (n Nonce) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, n), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Nonce) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	if err != nil {
		return cradle.Errorf(cradle.Invalid, "nonce is not unpadded base64url: %w", err)
	}
	*n = b
	return nil
}

// ParseNonceRequest reads and checks a request. Unknown members are ignored: the draft may grow.
func ParseNonceRequest(body []byte) (NonceRequest, error) {
	var r struct {
		NonceRequest
		Len *int `json:"len"` // tells 0 from absent
	}
	if err := parseJSON(body, &r); err != nil {
		return NonceRequest{}, err
	}
	if r.Len != nil {
		if *r.Len < MinNonce || *r.Len > MaxNonce {
			return NonceRequest{}, cradle.Errorf(cradle.Invalid, "nonce request: len %d is not %d to %d", *r.Len, MinNonce, MaxNonce)
		}
		r.NonceRequest.Len = *r.Len
	}
	if err := checkInfo("nonce request", r.Type, r.ReqInfo); err != nil {
		return NonceRequest{}, err
	}
	return r.NonceRequest, nil
}

// ParseNonceResponse reads and checks an answer.
func ParseNonceResponse(body []byte) (NonceResponse, error) {
	var r NonceResponse
	if err := parseJSON(body, &r); err != nil {
		return NonceResponse{}, err
	}
	if n := len(r.Nonce); n != 0 && (n < MinNonce || n > MaxNonce) {
		return NonceResponse{}, cradle.Errorf(cradle.Invalid, "nonce answer: a nonce of %d bytes is not %d to %d", n, MinNonce, MaxNonce)
	}
	if r.Expiry < 0 {
		return NonceResponse{}, cradle.Errorf(cradle.Invalid, "nonce answer: negative expiry")
	}
	if err := checkInfo("nonce answer", r.Type, r.RespInfo); err != nil {
		return NonceResponse{}, err
	}
	return r, nil
}

func checkInfo(what, typ string, info json.RawMessage) error {
	if typ == "" {
		if len(info) > 0 {
			return cradle.Errorf(cradle.Invalid, "%s: info without a type", what)
		}
		return nil
	}
	if typ == TypeActivation {
		return nil
	}
	if len(typ) > 256 {
		return cradle.Errorf(cradle.Invalid, "%s: type is too long", what)
	}
	if _, err := x509.ParseOID(typ); err != nil {
		return cradle.Errorf(cradle.Invalid, "%s: type %q is not an object identifier", what, typ)
	}
	return nil
}

// parseJSON reads exactly one JSON object.
func parseJSON(body []byte, v any) error {
	if len(body) > MaxBody {
		return cradle.Errorf(cradle.TooLarge, "the body has more than %d bytes", MaxBody)
	}
	if trimmed := bytes.TrimLeft(body, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return cradle.Errorf(cradle.Invalid, "the body is not a JSON object")
	}
	if err := json.Unmarshal(body, v); err != nil { // also when something follows the object
		return cradle.Errorf(cradle.Invalid, "the body is not the expected JSON object: %w", strictjson.Reason(err))
	}
	return nil
}
