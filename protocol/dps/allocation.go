package dps

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/strictjson"
)

// AllocationRequest is what a provisioning service posts to a custom allocation webhook (Azure's contract). Exactly one
// of the enrolments is there.
type AllocationRequest struct {
	IndividualEnrollment *AllocationEnrollment `json:"individualEnrollment,omitempty"`
	EnrollmentGroup      *AllocationEnrollment `json:"enrollmentGroup,omitempty"`
	DeviceRuntimeContext RuntimeContext        `json:"deviceRuntimeContext"`
	LinkedHubs           []string              `json:"linkedHubs"` // hosts that may be the answer
}

// AllocationEnrollment is the enrolment that admitted the device; it holds no key and no certificate.
type AllocationEnrollment struct {
	EnrollmentGroupID          string            `json:"enrollmentGroupId,omitempty"`
	RegistrationID             string            `json:"registrationId,omitempty"` // of an individual enrolment
	Attestation                Attestation       `json:"attestation"`              // the type alone
	Capabilities               *Capabilities     `json:"capabilities,omitempty"`
	InitialTwin                json.RawMessage   `json:"initialTwin,omitempty"`
	ETag                       string            `json:"etag,omitempty"`
	ProvisioningStatus         string            `json:"provisioningStatus"`
	ReprovisionPolicy          *ReprovisionRule  `json:"reprovisionPolicy,omitempty"`
	AllocationPolicy           string            `json:"allocationPolicy"`
	IotHubs                    []string          `json:"iotHubs,omitempty"`
	CustomAllocationDefinition *CustomAllocation `json:"customAllocationDefinition,omitempty"` // the URL without its query
}

// RuntimeContext is what is known of the device that registers. One of the attestations is there.
type RuntimeContext struct {
	RegistrationID        string            `json:"registrationId"`
	CurrentIotHubHostName string            `json:"currentIotHubHostName,omitempty"` // empty at the first assignment
	CurrentDeviceID       string            `json:"currentDeviceId,omitempty"`
	X509                  *RuntimeX509      `json:"x509,omitempty"`
	SymmetricKey          *struct{}         `json:"symmetricKey,omitempty"`
	TPM                   *struct{}         `json:"tpm,omitempty"`
	Payload               json.RawMessage   `json:"payload,omitempty"`  // as the device sent it
	Attested              map[string]string `json:"attested,omitempty"` // ours only: facts that the attestation proved
}

// RuntimeX509 describes the device's certificate.
type RuntimeX509 struct {
	ClientCertificates X509Certificates `json:"clientCertificates"`
}

// AllocationResponse is a webhook's answer.
type AllocationResponse struct {
	IotHubHostName string          `json:"iotHubHostName"`        // one of LinkedHubs
	InitialTwin    json.RawMessage `json:"initialTwin,omitempty"` // in place of the enrolment's
	Payload        json.RawMessage `json:"payload,omitempty"`     // for the device
}

// SignatureHeader carries "t=<unix seconds>,v1=<hex of HMAC-SHA256(key, t "." body)>".
const SignatureHeader = "X-Cradle-Signature"

const (
	maxAllocationAnswer = 64 << 10
	signatureAge        = 5 * time.Minute
)

// SignWebhook makes the value of SignatureHeader.
func SignWebhook(key, body []byte, now time.Time) string {
	t := strconv.FormatInt(now.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(webhookMAC(key, t, body))
}

func webhookMAC(key []byte, t string, body []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(t + "."))
	m.Write(body)
	return m.Sum(nil)
}

// VerifyWebhook is the check of a receiver: the body was signed with the key, at most five minutes ago. The error is
// Unauthorized.
func VerifyWebhook(key []byte, header string, body []byte, now time.Time) error {
	refuse := func(why string) error {
		return cradle.Errorf(cradle.Unauthorized, "webhook's caller is not believed: %s", why).
			WithHint("compare the key with what cradle provisioning webhook-key shows for exactly this URL")
	}
	ts, mac, ok := strings.Cut(header, ",")
	seconds, isTime := strings.CutPrefix(ts, "t=")
	digits, isMAC := strings.CutPrefix(mac, "v1=")
	if !ok || !isTime || !isMAC {
		return refuse("no signature")
	}
	at, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return refuse("its time is no number")
	}
	got, err := hex.DecodeString(digits)
	if err != nil || !hmac.Equal(got, webhookMAC(key, seconds, body)) {
		return refuse("wrong signature")
	}
	if age := now.Sub(time.Unix(at, 0)); age > signatureAge || age < -signatureAge {
		return refuse("the signature is too old")
	}
	return nil
}

// CheckWebhookURL accepts https URLs without credentials and fragment, of at most 2048 bytes.
func CheckWebhookURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > 2048 || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return cradle.Errorf(cradle.Invalid, "webhook URL %.100q is not usable", WithoutQuery(s)).WithHint("use https://host/path[?query]")
	}
	return nil
}

// WithoutQuery is a URL that may be shown: queries of webhooks hold keys.
func WithoutQuery(s string) string {
	s, _, _ = strings.Cut(s, "?")
	return s
}

// Webhook calls custom allocation webhooks. It follows no redirect: who answers must be who was named.
type Webhook struct {
	Transport http.RoundTripper // nil: http.DefaultTransport
	Timeout   time.Duration     // of one call; default 5 s, as Azure's
}

// Ask posts a request, signed with key. Errors: Forbidden when the webhook refuses the device (4xx), Busy when it is out
// of reach, too slow, throttled or out of order, Invalid when its answer is not one.
func (w *Webhook) Ask(ctx context.Context, target string, key []byte, q *AllocationRequest) (*AllocationResponse, error) {
	if err := CheckWebhookURL(target); err != nil {
		return nil, err
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	timeout := w.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "webhook %s: cannot be asked", WithoutQuery(target))
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("Accept", "application/json")
	req.Header.Set(SignatureHeader, SignWebhook(key, body, time.Now()))
	c := http.Client{Transport: w.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	busy := func(err error) error {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL and its query
		}
		return cradle.Errorf(cradle.Busy, "webhook %s does not answer: %v", WithoutQuery(target), err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, busy(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAllocationAnswer+1))
	switch s := resp.StatusCode; {
	case err != nil:
		return nil, busy(err)
	case s/100 == 3:
		return nil, cradle.Errorf(cradle.Invalid, "webhook %s redirects, which is not followed", WithoutQuery(target)).WithHint("name the final URL in the enrolment")
	case s == http.StatusTooManyRequests || s == http.StatusRequestTimeout || s >= 500:
		wait, _ := retryAfter(resp.Header)
		return nil, cradle.Errorf(cradle.Busy, "webhook %s answers %d", WithoutQuery(target), s).After(min(wait, time.Hour))
	case s/100 == 4:
		return nil, cradle.Errorf(cradle.Forbidden, "webhook %s refuses the device with %d", WithoutQuery(target), s)
	case s/100 != 2:
		return nil, cradle.Errorf(cradle.Invalid, "webhook %s answers %d", WithoutQuery(target), s)
	case len(b) > maxAllocationAnswer:
		return nil, cradle.Errorf(cradle.Invalid, "webhook %s answers more than %d bytes", WithoutQuery(target), maxAllocationAnswer)
	}
	return ParseAllocationResponse(b)
}

// ParseAllocationResponse reads a webhook's answer; an error is Invalid.
func ParseAllocationResponse(b []byte) (*AllocationResponse, error) {
	out := new(AllocationResponse)
	if err := json.Unmarshal(b, out); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "webhook's answer is not an allocation: %v", strictjson.Reason(err))
	}
	if out.IotHubHostName == "" || len(out.IotHubHostName) > 255 {
		return nil, cradle.Errorf(cradle.Invalid, "webhook's answer names no hub").WithHint("iotHubHostName must be one of linkedHubs")
	}
	for _, raw := range []*json.RawMessage{&out.InitialTwin, &out.Payload} {
		if string(*raw) == "null" {
			*raw = nil
		}
	}
	return out, nil
}
