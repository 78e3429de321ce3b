package dps_test

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// answer is what a service says to one request; the last one repeats.
type answer struct {
	status int
	retry  string
	body   string
}

func serve(t *testing.T, answers ...answer) (*dps.Client, *[]string) {
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := answers[min(len(seen), len(answers)-1)]
		seen = append(seen, r.Method+" "+r.URL.RequestURI())
		w.Header().Set("Content-Type", "application/json")
		if a.retry != "" {
			w.Header().Set("Retry-After", a.retry)
		}
		w.WriteHeader(a.status)
		fmt.Fprint(w, a.body)
	}))
	t.Cleanup(s.Close)
	return &dps.Client{HTTP: s.Client(), Endpoint: s.URL + "/", IDScope: "0ne1", Wait: time.Millisecond}, &seen
}

const (
	assigning = `{"operationId":"5.1","status":"assigning"}`
	assigned  = `{"operationId":"5.1","status":"assigned","registrationState":{"x509":{},"registrationId":"d","assignedHub":"h:1","deviceId":"d","status":"assigned","unknown":1}}`
)

func TestClientRegisters(t *testing.T) {
	for name, answers := range map[string][]answer{
		"azure":                {{202, "0", assigning}, {202, "0", assigning}, {200, "", assigned}},
		"at once":              {{200, "", assigned}},
		"operation id only":    {{202, "", `{"operationId":"5.1"}`}, {200, "", assigned}},
		"retry-after nonsense": {{202, "soon", assigning}, {200, "", assigned}},
	} {
		c, seen := serve(t, answers...)
		a, err := c.Register(t.Context(), "d")
		if err != nil || a.Hub != "h:1" || a.DeviceID != "d" {
			t.Errorf("%s: %+v %v", name, a, err)
		}
		if (*seen)[0] != "PUT /0ne1/registrations/d/register?api-version=2021-06-01" {
			t.Errorf("%s: %v", name, *seen)
		}
		for _, s := range (*seen)[1:] {
			if s != "GET /0ne1/registrations/d/operations/5.1?api-version=2021-06-01" {
				t.Errorf("%s: %v", name, s)
			}
		}
	}
}

func TestClientRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		a    answer
		kind cradle.Kind
		text string
	}{
		{"unauthorized", answer{401, "", `{"errorCode":401002,"trackingId":"t-1","message":"CA not registered","timestampUtc":"2026-01-02T03:04:05.1234567Z"}`}, cradle.Unauthorized, "CA not registered"},
		{"busy", answer{503, "7", `{"errorCode":503001,"message":"later"}`}, cradle.Busy, "later"},
		{"throttled", answer{429, "7", ``}, cradle.Busy, "429"},
		{"no body", answer{404, "", ``}, cradle.NotFound, "404"},
		{"HTML", answer{502, "", `<html>`}, cradle.Busy, "502"},
		{"failed", answer{200, "", `{"operationId":"5.1","status":"failed","registrationState":{"registrationId":"d","status":"failed","errorCode":400000,"errorMessage":"superseded"}}`}, cradle.Forbidden, "superseded"},
		{"disabled", answer{200, "", `{"operationId":"5.1","status":"disabled"}`}, cradle.Forbidden, "disabled"},
		{"assigned nowhere", answer{200, "", `{"operationId":"5.1","status":"assigned"}`}, cradle.Invalid, "no hub"},
		{"no operation", answer{202, "", `{"status":"assigning"}`}, cradle.Invalid, "operationId"},
		{"not JSON", answer{200, "", `ok`}, cradle.Invalid, "not its JSON"},
	} {
		client, seen := serve(t, c.a)
		_, err := client.Register(t.Context(), "d")
		if cradle.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (%v)", c.name, err, cradle.KindOf(err))
		}
		if len(*seen) != 1 {
			t.Errorf("%s: asked %d times", c.name, len(*seen))
		}
		if want := 7 * time.Second; c.a.retry != "" && dps.RetryAfter(err) != want {
			t.Errorf("%s: retry after %v", c.name, dps.RetryAfter(err))
		}
	}
	client, _ := serve(t, answer{202, "3600", assigning})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Register(ctx, "d"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled while waiting: %v", err)
	}
}

func TestTimeOnTheWire(t *testing.T) {
	b, err := json.Marshal(dps.RegistrationState{RegistrationID: "d", Status: dps.Assigned, CreatedDateTimeUTC: dps.Time{Time: time.Date(2026, 1, 2, 4, 4, 5, 6000, time.FixedZone("", 3600))}})
	if want := `{"registrationId":"d","createdDateTimeUtc":"2026-01-02T03:04:05.0000060Z","status":"assigned"}`; err != nil || string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
}

func certificate(t testing.TB) *x509.Certificate {
	t.Helper()
	tmpl := testca.CA("ca")
	tmpl.SerialNumber = big.NewInt(10)
	return testca.New(t, tmpl, nil).Cert
}

func TestCertificateForms(t *testing.T) {
	c := certificate(t)
	b64 := base64.StdEncoding.EncodeToString(c.Raw)
	for name, s := range map[string]string{"PEM": dps.PEM(c), "CRLF": strings.ReplaceAll(dps.PEM(c), "\n", "\r\n"), "base64": b64, "wrapped": b64[:64] + "\n" + b64[64:] + "\n"} {
		got, err := (&dps.X509Certificate{Certificate: s}).Parse()
		if err != nil || !got.Equal(c) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]string{"empty": "", "nonsense": "%", "two": dps.PEM(c) + dps.PEM(c), "not DER": "AAAA", "key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"} {
		if _, err := (&dps.X509Certificate{Certificate: s}).Parse(); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if i := dps.Info(c); i.SerialNumber != "A" || i.Version != 3 || len(i.SHA1Thumbprint) != 40 {
		t.Errorf("info %+v", i)
	}
}

func FuzzCertificateParse(f *testing.F) {
	f.Add(dps.PEM(certificate(f)))
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := (&dps.X509Certificate{Certificate: s}).Parse()
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("error without kind: %v", err)
			}
			return
		}
		again, err := (&dps.X509Certificate{Certificate: dps.PEM(c)}).Parse()
		if err != nil || !again.Equal(c) {
			t.Fatalf("does not survive: %v", err)
		}
	})
}
