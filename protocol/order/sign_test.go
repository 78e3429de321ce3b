package order_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/jws"
	"github.com/cradle-iot/cradle/internal/testca"
	"github.com/cradle-iot/cradle/protocol/order"
)

type envelope struct {
	Payload    string `json:"payload"`
	Signatures []struct {
		Protected string `json:"protected"`
		Signature string `json:"signature"`
	} `json:"signatures"`
}

var b64 = base64.RawURLEncoding

// edit changes a document and leaves its signatures as they were.
func edit(t testing.TB, doc []byte, change func(*envelope)) []byte {
	t.Helper()
	var e envelope
	if err := json.Unmarshal(doc, &e); err != nil {
		t.Fatal(err)
	}
	change(&e)
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func editPayload(t testing.TB, doc []byte, old, new string) []byte {
	t.Helper()
	return edit(t, doc, func(e *envelope) {
		p, err := b64.DecodeString(e.Payload)
		if err != nil || !strings.Contains(string(p), old) {
			t.Fatalf("payload %s has no %s", p, old)
		}
		e.Payload = b64.EncodeToString([]byte(strings.Replace(string(p), old, new, 1)))
	})
}

// signPayload signs any payload in the account's place.
func signPayload(t testing.TB, payload string, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	doc, err := jws.Sign([]byte(payload), order.TypeAccount, key)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestVerifyRefuses(t *testing.T) {
	o := good(t)
	doc, account, oem := signed(t, o)
	onlyAccount, err := order.Sign(o, account)
	if err != nil {
		t.Fatal(err)
	}
	other, otherAccount, otherOEM := signed(t, good(t))
	payload, _ := o.Encode()
	countersign := func(d []byte, key *ecdsa.PrivateKey) []byte {
		d, err := order.Countersign(d, key)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	noneHeader := b64.EncodeToString([]byte(`{"alg":"none","kid":"` + order.KeyID(&account.PublicKey) + `","typ":"` + order.TypeAccount + `"}`))

	for name, c := range map[string]struct {
		doc  []byte
		kind cradle.Kind
		want string
	}{
		"not countersigned":         {onlyAccount, cradle.Unauthorized, "not countersigned"},
		"by another account":        {other, cradle.Unauthorized, "the account has key"},
		"countersigned by another":  {countersign(onlyAccount, otherOEM), cradle.Unauthorized, "the OEM has key"},
		"account countersigns":      {countersign(onlyAccount, account), cradle.Unauthorized, "the OEM has key"},
		"quantity raised":           {editPayload(t, doc, `"quantity":100`, `"quantity":500`), cradle.Unauthorized, "does not fit the content"},
		"anchors changed":           {editPayload(t, doc, `"id_scope":"0ne00000001"`, `"id_scope":"0ne00000002"`), cradle.Unauthorized, "does not fit"},
		"signatures swapped":        {edit(t, doc, func(e *envelope) { e.Signatures[0], e.Signatures[1] = e.Signatures[1], e.Signatures[0] }), cradle.Unauthorized, "signature of type"},
		"countersignature of other": {edit(t, doc, func(e *envelope) { e.Signatures[1].Signature = e.Signatures[0].Signature }), cradle.Unauthorized, "the OEM does not fit"},
		"third signature":           {edit(t, doc, func(e *envelope) { e.Signatures = append(e.Signatures, e.Signatures[1]) }), cradle.Invalid, "3 signatures"},
		"algorithm none":            {edit(t, doc, func(e *envelope) { e.Signatures[0].Protected, e.Signatures[0].Signature = noneHeader, "" }), cradle.Invalid, "only ES256"},
		"header with jwk": {edit(t, doc, func(e *envelope) {
			e.Signatures[0].Protected = b64.EncodeToString([]byte(`{"alg":"ES256","jwk":{},"kid":"x","typ":"y"}`))
		}), cradle.Invalid, "protected header"},
		"header twice": {edit(t, doc, func(e *envelope) {
			e.Signatures[0].Protected = b64.EncodeToString([]byte(`{"alg":"ES256","alg":"ES256","kid":"x","typ":"y"}`))
		}), cradle.Invalid, "protected header"},
		"no signature":           {edit(t, doc, func(e *envelope) { e.Signatures = nil }), cradle.Invalid, "0 signatures"},
		"flattened form":         {[]byte(`{"payload":"e30","protected":"e30","signature":"e30"}`), cradle.Invalid, "JWS"},
		"unprotected header":     {[]byte(strings.Replace(string(doc), `"protected"`, `"header":{"alg":"ES256"},"protected"`, 1)), cradle.Invalid, "JWS"},
		"member twice":           {[]byte(strings.Replace(string(doc), `{"payload"`, `{"payload":"e30","payload"`, 1)), cradle.Invalid, "JWS"},
		"member in capitals":     {[]byte(strings.Replace(string(doc), `{"payload"`, `{"PAYLOAD"`, 1)), cradle.Invalid, "unknown field"},
		"truncated":              {doc[:len(doc)/2], cradle.Invalid, "JWS"},
		"trailing":               {append(bytes.Clone(doc), "{}"...), cradle.Invalid, "JWS"},
		"empty":                  {nil, cradle.Invalid, "JWS"},
		"huge":                   {bytes.Repeat([]byte(" "), jws.MaxSize+1), cradle.TooLarge, "over"},
		"payload padded":         {edit(t, doc, func(e *envelope) { e.Payload += "=" }), cradle.Invalid, "base64url"},
		"payload with new lines": {edit(t, doc, func(e *envelope) { e.Payload = e.Payload[:8] + "\n" + e.Payload[8:] }), cradle.Invalid, "base64url"},
		"report as order":        {countersign(mustSign(t, payload, "cradle-lot-report-v1", account), oem), cradle.Unauthorized, "signature of type"},

		"signed but unknown field": {countersign(signPayload(t, strings.Replace(string(payload), `{"version"`, `{"waiver":true,"version"`, 1), account), oem), cradle.Invalid, "waiver"},
		"signed but not canonical": {countersign(signPayload(t, string(payload)+" ", account), oem), cradle.Invalid, "canonical"},
		"signed but field twice":   {countersign(signPayload(t, strings.Replace(string(payload), `{"version"`, `{"quantity":9,"version"`, 1), account), oem), cradle.Invalid, "canonical"},
		"signed but invalid":       {countersign(signPayload(t, strings.Replace(string(payload), `"quantity":100`, `"quantity":0`, 1), account), oem), cradle.Invalid, "quantity"},
		"signed but other key named": {countersign(signPayload(t, strings.Replace(string(payload), base64.StdEncoding.EncodeToString(o.AccountKey),
			base64.StdEncoding.EncodeToString(spki(t, otherAccount)), 1), account), oem), cradle.Invalid, "another account key"},
		"signed but huge": {countersign(signPayload(t, strings.Repeat("x", order.MaxSize+1), account), oem), cradle.TooLarge, "over"},
	} {
		_, err := order.Verify(c.doc, &account.PublicKey, &oem.PublicKey)
		if err == nil || !strings.Contains(err.Error(), c.want) || cradle.KindOf(err) != c.kind {
			t.Errorf("%s: got %v (%v), want %q (%v)", name, err, cradle.KindOf(err), c.want, c.kind)
		}
		if err != nil && c.kind == cradle.Unauthorized && cli.Hint(err) == "" {
			t.Errorf("%s: no hint", name)
		}
	}
	// Before the countersignature is asked for, it is not looked at.
	if _, err := order.Verify(onlyAccount, &account.PublicKey, nil); err != nil {
		t.Error(err)
	}
}

func mustSign(t testing.TB, payload []byte, typ string, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	doc, err := jws.Sign(payload, typ, key)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func spki(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	p, err := order.EncodePublic(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(strings.TrimSpace(string(p)), "\n", "")
	b, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(strings.TrimPrefix(text, "-----BEGIN PUBLIC KEY-----"), "-----END PUBLIC KEY-----"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignRefusesOtherKeys(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := order.Sign(good(t), k); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("P-384: %v", err)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "order.key")
	k, err := order.CreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if got, err := order.EnsureKey(path); err != nil || !got.Equal(k) {
		t.Errorf("EnsureKey: %v", err)
	}
	if _, err := order.CreateKey(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second CreateKey: %v", err)
	}
	if _, err := order.LoadKey(filepath.Join(dir, "none")); cradle.KindOf(err) != cradle.NotFound || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := order.LoadKey(path); err == nil || !strings.Contains(err.Error(), "read by others") {
		t.Errorf("open mode: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	pub, err := order.EncodePublic(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := order.DecodePublic(pub); err != nil || !got.Equal(&k.PublicKey) {
		t.Errorf("public: %v", err)
	}
}

func TestOEMPublic(t *testing.T) {
	a, b := testca.Key(t), testca.Key(t)
	file, err := order.OEMPublic{Order: &a.PublicKey, Lot: &b.PublicKey}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if p, err := order.ParseOEMPublic(file); err != nil || !p.Order.Equal(&a.PublicKey) || !p.Lot.Equal(&b.PublicKey) {
		t.Errorf("%v", err)
	}
	half := file[:bytes.Index(file, []byte("-----BEGIN CRADLE OEM LOT"))]
	same, _ := order.OEMPublic{Order: &a.PublicKey, Lot: &a.PublicKey}.Encode()
	for name, f := range map[string][]byte{
		"empty": nil, "one key": half, "swapped": append(bytes.Clone(file[len(half):]), half...),
		"same key": same, "trailing": append(bytes.Clone(file), "x"...), "private": []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"),
	} {
		if _, err := order.ParseOEMPublic(f); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What opens under the keys is exactly an order that was signed: same payload, canonical, valid.
func FuzzVerify(f *testing.F) {
	o := good(f)
	doc, account, oem := signed(f, o)
	f.Add(doc)
	f.Add(editPayload(f, doc, `"quantity":100`, `"quantity":101`))
	f.Add(edit(f, doc, func(e *envelope) { e.Signatures = e.Signatures[:1] }))
	f.Add([]byte(`{"payload":"","signatures":[{"protected":"","signature":""}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		got, err := order.Verify(doc, &account.PublicKey, &oem.PublicKey)
		if err != nil {
			var e *cradle.Error
			if !errors.As(err, &e) || e.Kind == cradle.Internal {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		if got.Digest() != o.Digest() {
			t.Errorf("a forged order opened: %+v", got)
		}
	})
}

// What parses as an order file and is signed reads back the same.
func FuzzParseTOML(f *testing.F) {
	f.Add([]byte(file))
	f.Add([]byte("quantity = 1\n[agent]\nrotate_key = false"))
	key := testca.Key(f)
	base := good(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := order.ParseTOML(text)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Errorf("kind %v of %v", k, err)
			}
			return
		}
		o.ServicesAnchors, o.AccountAnchors = base.ServicesAnchors, base.AccountAnchors
		o.Complete(start)
		doc, err := order.Sign(o, key)
		if err != nil {
			return
		}
		got, err := order.Verify(doc, &key.PublicKey, nil)
		if err != nil || got.Digest() != o.Digest() {
			t.Errorf("signed but does not open: %v", err)
		}
	})
}
