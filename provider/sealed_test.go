package provider_test

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/provider"
)

// fill gives every field below v a value of its own.
func fill(v reflect.Value, n *int) {
	*n++
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(0, 1795464000123456789)))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case v.Kind() == reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case v.Type() == reflect.TypeFor[[]byte]():
		v.SetBytes(fmt.Appendf(nil, "bytes %d", *n))
	case v.Type() == reflect.TypeFor[[]string]():
		v.Set(reflect.ValueOf([]string{"first", "second"}))
	default:
		panic(v.Type().String())
	}
}

// TestSealedForm: every field of a challenge comes back, and one that is cut anywhere is refused.
func TestSealedForm(t *testing.T) {
	var full provider.SealedChallenge
	fill(reflect.ValueOf(&full).Elem(), new(int))
	bare := provider.SealedChallenge{}
	bare.Account, bare.Label, bare.Nonce, bare.Expiry = "acme", "acme-ldevid", make([]byte, 32), time.Unix(1795464000, 0)
	for name, want := range map[string]provider.SealedChallenge{"full": full, "bare": bare} {
		b, err := provider.EncodeChallenge(&want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := provider.DecodeChallenge(b)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
		for i := range b {
			if c, err := provider.DecodeChallenge(b[:i]); err == nil && len(c.EK.Issuers) == len(want.EK.Issuers) {
				t.Errorf("%s: %d of %d bytes are taken", name, i, len(b))
			}
		}
	}
	long := full
	long.Serial = string(make([]byte, 1<<16))
	many := full
	many.EK.Issuers = make([]string, 17)
	for name, c := range map[string]*provider.SealedChallenge{"a long field": &long, "many issuers": &many} {
		if _, err := provider.EncodeChallenge(c); err == nil {
			t.Errorf("%s is encoded", name)
		}
	}
}

// FuzzSealed: what is read is written the same again.
func FuzzSealed(f *testing.F) {
	var full provider.SealedChallenge
	fill(reflect.ValueOf(&full).Elem(), new(int))
	b, err := provider.EncodeChallenge(&full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:60])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := provider.DecodeChallenge(b)
		if err != nil {
			return
		}
		if again, err := provider.EncodeChallenge(c); err != nil || !bytes.Equal(again, b) {
			t.Errorf("got %x, %v; want %x", again, err, b)
		}
	})
}
