package dps_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
)

// Azure's example of a derived key (learn.microsoft.com, "symmetric key attestation": key and registration id of the sample).
func TestDeviceKey(t *testing.T) {
	group, err := dps.Base64("key", "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==")
	if err != nil {
		t.Fatal(err)
	}
	want, err := dps.Base64("key", "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=")
	if err != nil {
		t.Fatal(err)
	}
	if got := dps.DeviceKey(group, "SN-007-888-abc-MAC-a1-b2-c3-d4-e5-f6"); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestBearerBounds(t *testing.T) {
	now, key := time.Now(), []byte("key")
	for name, b := range map[string]dps.Bearer{
		"no right":      {Expiry: now.Add(time.Hour)},
		"unknown right": {Rights: []dps.Right{"root"}, Expiry: now.Add(time.Hour)},
		"over already":  {Rights: []dps.Right{dps.EnrollmentRead}, Expiry: now},
		"for ever":      {Rights: []dps.Right{dps.EnrollmentRead}, Expiry: now.Add(dps.MaxBearerLife + time.Second)},
		"long name":     {Rights: []dps.Right{dps.EnrollmentRead}, Expiry: now.Add(time.Hour), Name: strings.Repeat("x", 201)},
	} {
		if tok, err := b.Mint(key, now); cradle.KindOf(err) != cradle.Invalid || tok != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	tok, err := dps.Bearer{Name: "n", Rights: []dps.Right{dps.EnrollmentRead}, Expiry: now.Add(time.Hour)}.Mint(key, now)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := dps.VerifyBearer("bearer  "+tok, key, now); err != nil || b.Name != "n" || !dps.Allow(b.Rights, dps.EnrollmentRead) || dps.Allow(b.Rights, dps.EnrollmentWrite) {
		t.Errorf("got %+v %v", b, err)
	}
	if _, err := dps.VerifyBearer("Bearer "+tok, key, now.Add(time.Hour)); cradle.KindOf(err) != cradle.Unauthorized {
		t.Errorf("at its end: %v", err)
	}
}

// Only the very bytes that were minted are a token, and refusals never repeat them.
func FuzzVerifyBearer(f *testing.F) {
	now, key := time.Unix(1_700_000_000, 0), []byte("key")
	good, err := dps.Bearer{Name: "n", Rights: []dps.Right{dps.EnrollmentRead}, Expiry: now.Add(time.Hour)}.Mint(key, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("Bearer " + good)
	f.Add("Bearer " + good + ".")
	f.Add("Bearer cradle-dps-v1..")
	f.Add("Bearer x.y.z")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := dps.VerifyBearer(s, key, now)
		if err == nil {
			if _, text, _ := strings.Cut(s, " "); strings.TrimSpace(text) != good || b.Name != "n" {
				t.Fatalf("%q was taken for a token", s)
			}
			return
		}
		if cradle.KindOf(err) != cradle.Unauthorized || strings.Contains(err.Error(), good) {
			t.Fatalf("refusal %v", err)
		}
	})
}
