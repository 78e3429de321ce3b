package hubserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// renewal is a device at work on its certificate.
type renewal struct {
	*testing.T
	r       *rig
	c       *mqtt.Client
	i       ident
	answers chan mqtt.Publish
}

func (r *rig) renewal(i ident) *renewal {
	r.t.Helper()
	w := &renewal{T: r.t, r: r, i: i, answers: make(chan mqtt.Publish, 16)}
	var err error
	w.c, err = mqtt.Dial(r.t.Context(), r.dial(i), mqtt.Options{ClientID: string(i.id), Username: iothub.UserName("localhost:8443", i.id), KeepAlive: time.Minute,
		OnMessage: func(topic string, payload []byte) error {
			w.answers <- mqtt.Publish{Topic: topic, Payload: append([]byte{}, payload...)}
			return nil
		}})
	if err != nil {
		r.t.Fatalf("connecting %s: %v\n%s", i.id, err, r.logs)
	}
	go w.c.Run(context.Background())
	r.t.Cleanup(func() { w.c.Close() })
	return w
}

func (w *renewal) hear() {
	w.Helper()
	if err := w.c.Subscribe(w.Context(), iothub.CredentialFilter, mqtt.AtLeastOnce); err != nil {
		w.Fatal(err)
	}
}

func (w *renewal) say(rid, body string) {
	w.Helper()
	if err := w.c.Publish(w.Context(), iothub.CredentialTopic(rid), mqtt.AtLeastOnce, []byte(body)); err != nil {
		w.Fatal(err)
	}
}

// next returns the next answer: its status and what it holds.
func (w *renewal) next(status, rid string) map[string]any {
	w.Helper()
	select {
	case p := <-w.answers:
		if p.Topic != iothub.CredentialResponse(status, rid) {
			w.Fatalf("answer on %s: %s\nwant %s for %s", p.Topic, p.Payload, status, rid)
		}
		var m map[string]any
		if err := json.Unmarshal(p.Payload, &m); err != nil {
			w.Fatalf("%s: %v", p.Payload, err)
		}
		return m
	case <-time.After(testenv.Patience):
		w.Fatalf("no answer; want %s for %s\n%s", status, rid, w.r.logs)
	}
	panic("unreachable")
}

// request is the body of a request for a new key.
func request(t *testing.T, id cradle.DeviceID, more string) (body string, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(id)}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return `{"id":"` + string(id) + `","csr":"` + base64.StdEncoding.EncodeToString(der) + `"` + more + `}`, key
}

func chainOf(t *testing.T, m map[string]any) [][]byte {
	t.Helper()
	var out [][]byte
	list, _ := m["certificates"].([]any)
	for _, c := range list {
		der, err := base64.StdEncoding.DecodeString(c.(string))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, der)
	}
	if len(out) == 0 {
		t.Fatalf("no certificates in %v", m)
	}
	return out
}

// policied registers a device whose certificate is renewed here.
func (r *rig) policied(id cradle.DeviceID) ident {
	r.t.Helper()
	i := newIdent(r.t, id)
	e := entry(id, i.sha256(), "")
	policy := "acme-operational"
	e.CredentialPolicy = &policy
	r.put(e, "")
	return i
}

// TestRenewal: a device gets its next certificate over MQTT; the one it connected with works until the new one is used.
func TestRenewal(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		old := r.policied("dev-1")
		w := r.renewal(old)
		w.hear()
		body, key := request(t, "dev-1", "")
		w.say("1001", body)
		if m := w.next("202", "1001"); m["correlationId"] == "" || m["operationExpires"] == nil {
			t.Errorf("accepted: %v", m)
		}
		chain := chainOf(t, w.next("200", "1001"))
		if len(chain) != 2 || string(chain[1]) != string(r.ca.ca.Cert.Raw) {
			t.Errorf("%d certificates", len(chain))
		}
		if got := r.ca.calls(); len(got) != 1 || got[0] != "acme/operational/dev-1" {
			t.Errorf("asked for %v", got)
		}
		// The same id again: the same answer, on this connection and on the next.
		w.say("1001", body)
		if again := chainOf(t, w.next("200", "1001")); string(again[0]) != string(chain[0]) {
			t.Error("another certificate for the same request")
		}
		w = r.renewal(old)
		w.hear()
		w.say("1001", body)
		if again := chainOf(t, w.next("200", "1001")); string(again[0]) != string(chain[0]) {
			t.Error("another certificate after a reconnect")
		}
		next := ident{id: "dev-1", cert: tls.Certificate{Certificate: chain[:1], PrivateKey: key}}
		d, err := r.reg.GetDevice(t.Context(), "dev-1")
		if x := d.Authentication.X509Thumbprint; err != nil || !strings.EqualFold(x.PrimaryThumbprint, old.sha256()) || !strings.EqualFold(x.SecondaryThumbprint, next.sha256()) {
			t.Errorf("slots %+v, %v", x, err)
		}
		w = r.renewal(next) // promotes it
		if _, err := r.connect(old); err == nil {
			t.Error("the certificate before still connects")
		}
		w.hear()
		body, _ = request(t, "dev-1", "")
		w.say("1002", body)
		w.next("202", "1002")
		w.next("200", "1002")
		// Somebody who revokes the device ends it here.
		r.feed.set(func(f *feed) { f.blocked["dev-1"] = cradle.Revoked })
		body, _ = request(t, "dev-1", "")
		w.say("1003", body)
		if m := w.next("403", "1003"); m["errorCode"] != float64(iothub.CredentialForbidden) {
			t.Errorf("revoked: %v", m)
		}
	})
}

// TestRenewalRefused: what is refused, and with which code.
func TestRenewalRefused(t *testing.T) {
	r := newRig(t, sqlite(t))
	w := r.renewal(r.policied("dev-1"))
	good, _ := request(t, "dev-1", "")
	w.hear()
	other, _ := request(t, "dev-2", "")
	csr := good[strings.Index(good, `"csr":"`)+7 : len(good)-2]
	flipped := csr[:len(csr)-8] + "AAAA" + csr[len(csr)-4:]
	for _, c := range []struct {
		name, body string
		code       int
	}{
		{"empty", "", iothub.CredentialBadRequest},
		{"no JSON", `{"id":"dev-1","csr":`, iothub.CredentialBadJSON},
		{"an array", `["not","an","object"]`, iothub.CredentialBadRequest},
		{"a field that is not known", `{"id":"dev-1","csr":"` + csr + `","x":"y"}`, iothub.CredentialBadRequest},
		{"no id", `{"csr":"` + csr + `"}`, iothub.CredentialBadRequest},
		{"another device", `{"id":"dev-2","csr":"` + csr + `"}`, iothub.CredentialBadRequest},
		{"no CSR", `{"id":"dev-1","csr":""}`, iothub.CredentialBadRequest},
		{"no base64", `{"id":"dev-1","csr":"not-valid-base64!!@@##"}`, iothub.CredentialBadRequest},
		{"a CSR too long", `{"id":"dev-1","csr":"` + strings.Repeat("A", iothub.MaxCSR+4) + `"}`, iothub.CredentialBadRequest},
		{"no PKCS#10", `{"id":"dev-1","csr":"AAAA"}`, iothub.CredentialBadCSR},
		{"another device's CSR", strings.Replace(other, `"id":"dev-2"`, `"id":"dev-1"`, 1), iothub.CredentialBadCSR},
		{"not signed by its key", `{"id":"dev-1","csr":"` + flipped + `"}`, iothub.CredentialBadCSR},
		{"nothing to replace", good[:len(good)-1] + `,"replace":"db8c0f73-ac73-4b90-bba4-8a26ae2fcb27"}`, iothub.CredentialNothing},
		{"replaces no id", good[:len(good)-1] + `,"replace":"-12-"}`, iothub.CredentialBadRequest},
	} {
		w.say("2000", c.body)
		select {
		case p := <-w.answers:
			var e iothub.CredentialError
			if err := json.Unmarshal(p.Payload, &e); err != nil || e.ErrorCode != c.code || e.Message == "" || e.TrackingID == "" ||
				p.Topic != iothub.CredentialResponse(strconv.Itoa(c.code/1000), "2000") {
				t.Errorf("%s: %s %s, want %d", c.name, p.Topic, p.Payload, c.code)
			}
		case <-time.After(testenv.Patience):
			t.Fatalf("%s: no answer", c.name)
		}
	}
	if n := len(r.ca.calls()); n != 0 {
		t.Errorf("the provider was asked %d times", n)
	}
	// What the provider says.
	r.ca.set(func(i *issuer) { i.fail = cradle.Errorf(cradle.Forbidden, "the name belongs to another") })
	w.say("2001", good)
	w.next("202", "2001")
	if m := w.next("403", "2001"); !strings.Contains(m["message"].(string), "belongs to another") {
		t.Errorf("refused: %v", m)
	}
	r.ca.set(func(i *issuer) { i.fail = cradle.Errorf(cradle.Busy, "away") })
	third, _ := request(t, "dev-1", "")
	w.say("2002", third)
	w.next("202", "2002")
	if m := w.next("503", "2002"); m["retryAfter"] == nil {
		t.Errorf("busy: %v", m)
	}
	r.ca.set(func(i *issuer) { i.fail = nil })
	w.say("2002", third) // it was not forgotten
	w.next("202", "2002")
	w.next("200", "2002")
	another, _ := request(t, "dev-1", "") // the same id with another CSR
	w.say("2002", another)
	w.next("400", "2002")

	// A device without a policy, and one whose account the policy is not of.
	plain := r.renewal(r.register("dev-3"))
	plain.hear()
	body, _ := request(t, "dev-3", "")
	plain.say("1", body)
	plain.next("403", "1")
	e := newIdent(t, "dev-4")
	en := entry("dev-4", e.sha256(), "")
	policy := "other-operational"
	en.CredentialPolicy = &policy
	r.put(en, "")
	foreign := r.renewal(e)
	foreign.hear()
	body, _ = request(t, "dev-4", "")
	foreign.say("1", body)
	foreign.next("403", "1")
	// What a registry client leaves out of an entry stays; what it writes must be a policy.
	d, err := r.reg.GetDevice(t.Context(), "dev-4")
	if err != nil || d.CredentialPolicy == nil || *d.CredentialPolicy != policy {
		t.Fatalf("%+v, %v", d, err)
	}
	d.CredentialPolicy = nil
	if d = r.put(d, "*"); d.CredentialPolicy == nil || *d.CredentialPolicy != policy {
		t.Errorf("after an update: %v", d.CredentialPolicy)
	}
	bad := "no policy"
	d.CredentialPolicy = &bad
	if _, err := r.reg.PutDevice(t.Context(), d, "*"); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("%v", err)
	}
}

// TestRenewalUnheard: a device that has not subscribed has no answer, but it has when it does.
func TestRenewalUnheard(t *testing.T) {
	r := newRig(t, sqlite(t))
	w := r.renewal(r.policied("dev-1"))
	body, _ := request(t, "dev-1", "")
	w.say("1", body)
	w.hear()
	if p := <-w.answers; p.Topic == iothub.CredentialResponse("202", "1") {
		w.next("200", "1")
	} else if p.Topic != iothub.CredentialResponse("200", "1") {
		t.Fatalf("after the subscription: %s %s", p.Topic, p.Payload)
	}
}

// TestRenewalOneAtATime: a second request is refused while one is active, unless it replaces it; a connection that ends in
// between loses nothing.
func TestRenewalOneAtATime(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		i := r.policied("dev-1")
		w := r.renewal(i)
		w.hear()
		wait := make(chan struct{})
		r.ca.set(func(i *issuer) { i.wait = wait })
		first, _ := request(t, "dev-1", "")
		w.say("first", first)
		accepted := w.next("202", "first")
		second, _ := request(t, "dev-1", "")
		w.say("second", second)
		m := w.next("409", "second")
		info, _ := m["info"].(map[string]any)
		if m["errorCode"] != float64(iothub.CredentialActive) || info["requestId"] != "first" || info["correlationId"] != accepted["correlationId"] {
			t.Errorf("a second one: %v", m)
		}
		w.c.Close()
		w = r.renewal(i)
		w.hear()
		w.next("202", "first") // taken up again
		w.say("second", second[:len(second)-1]+`,"replace":"first"}`)
		w.next("202", "second")
		third, _ := request(t, "dev-1", `,"replace":"*"`)
		w.say("third", third)
		w.next("202", "third")
		close(wait)
		for p := range w.answers { // what was replaced is told so
			if p.Topic == iothub.CredentialResponse("200", "third") {
				break
			}
			if p.Topic != iothub.CredentialResponse("409", "first") && p.Topic != iothub.CredentialResponse("409", "second") {
				t.Fatalf("%s %s", p.Topic, p.Payload)
			}
		}
	})
}
