package sas_test

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/sas"
)

var key = []byte("0123456789abcdef0123456789abcdef")

// The tokens below were made by an independent implementation (openssl dgst -sha256 -mac HMAC) over
// the encoded and over the plain form of the resource, in both field orders that SDKs send.
const (
	encoded = "SharedAccessSignature sr=0ne00000001%2Fregistrations%2Fdev-1&sig=JYVdUZHp2bcwQWHzAR7%2BpAH5dtC%2BGbpj2AI%2BWOspEM4%3D&se=1900000000&skn=registration"
	plain   = "SharedAccessSignature sr=0ne00000001/registrations/dev-1&sig=3GejtPuP894KL6okiPidwmzPDdVjKD1xVlYYVoV8za4%3D&skn=registration&se=1900000000"
)

func TestVerifyAsReceived(t *testing.T) {
	now := time.Unix(1800000000, 0)
	for name, s := range map[string]string{"encoded": encoded, "plain": plain} {
		tok, err := sas.Parse(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := tok.Verify(key, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !tok.Covers("0NE00000001/registrations/DEV-1") || tok.KeyName != "registration" {
			t.Errorf("%s: resource %q, key name %q", name, tok.Resource, tok.KeyName)
		}
		if err := tok.Verify([]byte("another"), now); cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("%s: other key: %v", name, err)
		}
		if err := tok.Verify(key, time.Unix(1900000000, 0)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%s: at expiry: %v", name, err)
		}
	}
}

func TestSignParses(t *testing.T) {
	tok, err := sas.Parse(sas.Sign("localhost:8443", "a b+c", key, time.Unix(1900000000, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Verify(key, time.Unix(1, 0)); err != nil {
		t.Error(err)
	}
	if tok.Resource != "localhost:8443" || tok.KeyName != "a b+c" {
		t.Errorf("got %q %q", tok.Resource, tok.KeyName)
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		have, want string
		ok         bool
	}{
		{"hub", "hub/devices/a", true}, {"hub", "HUB", true}, {"hub/devices/a", "hub/devices/a", true},
		{"hub/devices/a", "hub/devices/ab", false}, {"hub/devices/a", "hub", false}, {"hu", "hub", false},
		{"hub/", "hub/devices/a", true},
	} {
		tok, err := sas.Parse(sas.Sign(c.have, "", key, time.Unix(1, 0)))
		if err != nil {
			t.Fatal(err)
		}
		if got := tok.Covers(c.want); got != c.ok {
			t.Errorf("%q covers %q: got %v, want %v", c.have, c.want, got, c.ok)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "Bearer x", "SharedAccessSignature", "SharedAccessSignature sr=a", "SharedAccessSignature sr=a&sig=!!&se=1",
		"SharedAccessSignature sr=a&sig=AAAA&se=x", "SharedAccessSignature sr=a&sr=b&sig=AAAA&se=1",
		"SharedAccessSignature sr=%zz&sig=AAAA&se=1", "SharedAccessSignature sr=a&sig=AAAA&se=-1",
		"SharedAccessSignature sr=a&sig=AAAA&se=1&" + strings.Repeat("x", sas.MaxLen),
	} {
		if _, err := sas.Parse(s); cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("%.60q: got %v", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encoded)
	f.Add(plain)
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := sas.Parse(s)
		if err != nil {
			if cradle.KindOf(err) != cradle.Unauthorized {
				t.Fatalf("error without kind: %v", err)
			}
			return
		}
		if !strings.Contains(s, tok.RawResource) {
			t.Fatalf("resource %q is not in %q", tok.RawResource, s)
		}
	})
}

func TestConnectionString(t *testing.T) {
	s := "HostName=localhost:8443;SharedAccessKeyName=provisioningserviceowner;SharedAccessKey=" + base64.StdEncoding.EncodeToString(key)
	c, err := sas.ParseConnectionString(s + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.String() != s || c.BaseURL() != "https://localhost:8443" {
		t.Errorf("got %q", c.String())
	}
	tok, err := sas.Parse(c.Token(time.Unix(100, 0), time.Hour))
	if err != nil || tok.Verify(key, time.Unix(101, 0)) != nil || !tok.Covers("localhost:8443") {
		t.Errorf("token: %v", err)
	}
	for _, bad := range []string{
		"", "x", "HostName=a", "HostName=a;SharedAccessKey=AAAA", "HostName=a/b;SharedAccessKeyName=p;SharedAccessKey=AAAA",
		"HostName=a;SharedAccessKeyName=p;SharedAccessKey=?",
	} {
		if _, err := sas.ParseConnectionString(bad); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}
