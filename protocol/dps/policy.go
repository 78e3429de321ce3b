package dps

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// Right is what a policy or a bearer token allows in the service API, by Azure's names.
type Right string

// The rights. Writing includes reading.
const (
	EnrollmentRead          Right = "enrollmentRead"
	EnrollmentWrite         Right = "enrollmentWrite"
	RegistrationStatusRead  Right = "registrationStatusRead"
	RegistrationStatusWrite Right = "registrationStatusWrite"
	ServiceConfig           Right = "serviceConfig" // everything
)

// Rights lists all of them.
var Rights = []Right{EnrollmentRead, EnrollmentWrite, RegistrationStatusRead, RegistrationStatusWrite, ServiceConfig}

// ParseRight finds a right by its name, in any case.
func ParseRight(s string) (Right, error) {
	for _, r := range Rights {
		if strings.EqualFold(string(r), s) {
			return r, nil
		}
	}
	return "", cradle.Errorf(cradle.Invalid, "no such right %.60q", s).WithHint("use %s", join(Rights))
}

func join(rs []Right) string {
	var out []string
	for _, r := range rs {
		out = append(out, string(r))
	}
	return strings.Join(out, ", ")
}

// Allow reports whether any of the rights held includes the one wanted.
func Allow(held []Right, want Right) bool {
	for _, r := range held {
		if r == want || r == ServiceConfig || r == EnrollmentWrite && want == EnrollmentRead || r == RegistrationStatusWrite && want == RegistrationStatusRead {
			return true
		}
	}
	return false
}

// PolicyRights returns what the holder of a policy's key may do. There is one policy for each right, named like it, and
// Policy, which may do everything.
func PolicyRights(policy string) ([]Right, error) {
	if policy == Policy {
		return []Right{ServiceConfig}, nil
	}
	r, err := ParseRight(policy)
	if err != nil {
		return nil, cradle.Errorf(cradle.Unauthorized, "policy %.60q does not exist", policy).WithHint("use %s, or one of %s", Policy, join(Rights))
	}
	return []Right{r}, nil
}

// PolicyKey derives a policy's key from the owner's: who has the owner's can make every other one, not the reverse.
func PolicyKey(owner []byte, policy string) []byte {
	if policy == Policy {
		return owner
	}
	return derive(owner, "policy/"+strings.ToLower(policy))
}

func derive(owner []byte, what string) []byte {
	h := hmac.New(sha256.New, owner)
	h.Write([]byte("cradle-dps-v1/" + what))
	return h.Sum(nil)
}

// Bearer is a token for the service API that is not tied to a host: "cradle-dps-v1." + base64url of its JSON +
// "." + base64url of an HMAC-SHA256 over both. It is a secret until it expires; it cannot be withdrawn before but
// with the owner's key, so give it a short life.
type Bearer struct {
	Name   string    `json:"name"` // for the log: who, or what for
	Rights []Right   `json:"rights"`
	Expiry time.Time `json:"expiry"`
}

const (
	bearerPrefix = "cradle-dps-v1."
	maxBearer    = 2048 // bytes
)

// MaxBearerLife bounds how long a bearer token may live.
const MaxBearerLife = 90 * 24 * time.Hour

// IsBearer reports whether an Authorization header is one of a bearer token, whosever.
func IsBearer(authorization string) bool {
	word, _, _ := strings.Cut(authorization, " ")
	return strings.EqualFold(word, "Bearer")
}

// Mint writes a token with the owner's key.
func (b Bearer) Mint(owner []byte, now time.Time) (string, error) {
	if len(b.Rights) == 0 {
		return "", cradle.Errorf(cradle.Invalid, "a token needs a right").WithHint("use %s", join(Rights))
	}
	for _, r := range b.Rights {
		if !slices.Contains(Rights, r) {
			return "", cradle.Errorf(cradle.Invalid, "no such right %.60q", r).WithHint("use %s", join(Rights))
		}
	}
	if life := b.Expiry.Sub(now); life <= 0 || life > MaxBearerLife {
		return "", cradle.Errorf(cradle.Invalid, "a token lives for %s, not up to %s", life, MaxBearerLife)
	}
	if len(b.Name) > 200 {
		return "", cradle.Errorf(cradle.Invalid, "the name of a token has at most 200 bytes")
	}
	b.Expiry = b.Expiry.UTC().Truncate(time.Second)
	body, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	text := bearerPrefix + base64.RawURLEncoding.EncodeToString(body)
	return text + "." + base64.RawURLEncoding.EncodeToString(bearerMAC(owner, text)), nil
}

func bearerMAC(owner []byte, text string) []byte {
	h := hmac.New(sha256.New, derive(owner, "bearer"))
	h.Write([]byte(text))
	return h.Sum(nil)
}

// VerifyBearer reads the value of an Authorization header. Errors are cradle.Unauthorized and never repeat the token.
func VerifyBearer(authorization string, owner []byte, now time.Time) (*Bearer, error) {
	bad := func(format string, args ...any) (*Bearer, error) {
		return nil, cradle.Errorf(cradle.Unauthorized, "bearer token "+format, args...).WithHint("make one with cradle service-token --service dps")
	}
	if len(authorization) > maxBearer || !IsBearer(authorization) {
		return bad("is too long, or none")
	}
	_, text, _ := strings.Cut(authorization, " ")
	text = strings.TrimSpace(text)
	dot := strings.LastIndexByte(text, '.')
	if !strings.HasPrefix(text, bearerPrefix) || dot < len(bearerPrefix) {
		return bad("is not one of this service")
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(text[dot+1:])
	if err != nil || !hmac.Equal(mac, bearerMAC(owner, text[:dot])) {
		return bad("was not made with this service's key")
	}
	body, err := base64.RawURLEncoding.Strict().DecodeString(text[len(bearerPrefix):dot])
	b := new(Bearer)
	if err != nil || json.Unmarshal(body, b) != nil {
		return bad("does not parse")
	}
	if !now.Before(b.Expiry) {
		return bad("expired at %s", b.Expiry.UTC().Format(time.RFC3339))
	}
	return b, nil
}
