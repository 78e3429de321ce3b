package hub

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func TestAuthFromWire(t *testing.T) {
	b64 := func(n int) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, n)) }
	thumb := strings.Repeat("aB", 32)
	for name, c := range map[string]struct {
		in      iothub.Authentication
		want    string // type
		refused string
	}{
		"empty":              {iothub.Authentication{}, iothub.SAS, ""},
		"a thumbprint":       {iothub.Authentication{X509Thumbprint: iothub.X509Thumbprint{SecondaryThumbprint: thumb}}, iothub.SelfSigned, ""},
		"keys":               {iothub.Authentication{Type: "sas", SymmetricKey: iothub.SymmetricKey{PrimaryKey: b64(16), SecondaryKey: b64(64)}}, iothub.SAS, ""},
		"authority":          {iothub.Authentication{Type: "certificateAuthority"}, iothub.CertificateAuthority, ""},
		"none":               {iothub.Authentication{Type: "none"}, iothub.AuthNone, ""},
		"unknown":            {iothub.Authentication{Type: "SAS"}, "", "not known"},
		"short key":          {iothub.Authentication{SymmetricKey: iothub.SymmetricKey{PrimaryKey: b64(15)}}, "", "16 to 64"},
		"long key":           {iothub.Authentication{SymmetricKey: iothub.SymmetricKey{SecondaryKey: b64(65)}}, "", "16 to 64"},
		"very long key":      {iothub.Authentication{SymmetricKey: iothub.SymmetricKey{SecondaryKey: b64(100)}}, "", "longer"},
		"key not base64":     {iothub.Authentication{SymmetricKey: iothub.SymmetricKey{PrimaryKey: "?secret?"}}, "", "not base64"},
		"thumbprint too odd": {iothub.Authentication{Type: "selfSigned", X509Thumbprint: iothub.X509Thumbprint{PrimaryThumbprint: thumb[1:]}}, "", "64 hex digits"},
	} {
		a, primary, secondary, err := authFromWire(&c.in)
		if c.refused != "" {
			if cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.refused) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if err != nil || a.Type != c.want {
			t.Errorf("%s: got %v %v", name, a, err)
			continue
		}
		a.keys(Auth{})
		if (a.Primary != nil) != (a.Type == iothub.SAS) || (a.Secondary != nil) != (a.Type == iothub.SAS) {
			t.Errorf("%s: got %d and %d bytes of keys", name, len(a.Primary), len(a.Secondary))
		}
		// What a client reads and sends back means the same.
		w := authWire(a, primary, secondary)
		b, p2, s2, err := authFromWire(&w)
		if err != nil || !reflect.DeepEqual(a, b) || p2 != primary || s2 != secondary {
			t.Errorf("%s: back again: %v", name, err)
		}
	}
}

// TestKeysStay: an update that gives no keys leaves those there are.
func TestKeysStay(t *testing.T) {
	a := Auth{Type: iothub.SAS, Primary: []byte("new primary key!")}
	a.keys(Auth{Type: iothub.SAS, Primary: []byte("p"), Secondary: []byte("s")})
	if string(a.Primary) != "new primary key!" || string(a.Secondary) != "s" {
		t.Errorf("got %q %q", a.Primary, a.Secondary)
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	d := Device{ID: "d", Auth: Auth{Type: iothub.SAS, Primary: []byte("hush"), Secondary: []byte("hush")}}
	w := d.wire(false, d.Created)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "device", d, "wire", w, "auth", d.Auth, "key", w.Authentication.SymmetricKey)
	for _, s := range []string{log.String(), fmt.Sprintf("%v %+v %#v %s", d, d, d, d.Auth), fmt.Sprintf("%v %+v %#v", *w, *w, *w)} {
		for _, secret := range []string{"hush", "104 117 115 104", "0x68", "aHVzaA"} {
			if strings.Contains(s, secret) {
				t.Errorf("%q is in %s", secret, s)
			}
		}
	}
}
