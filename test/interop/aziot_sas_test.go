package interop_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/test/world"
)

// TestIdentityServiceSAS: registration and hub with a symmetric key of an enrolment and with one derived for a group's
// member. A token outlives its 30 s in the polls of the registration that it began, and nowhere else.
func TestIdentityServiceSAS(t *testing.T) {
	testenv.Long(t)
	e := openEdge(t)
	one, group := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	keys := func(k []byte) map[string]any {
		second := bytes.Repeat([]byte{9}, 32)
		return map[string]any{"type": "symmetricKey", "symmetricKey": symmetricKey{k, second}}
	}
	e.service(t, "PUT", "/enrollments/gw-0030", map[string]any{"registrationId": "gw-0030", "attestation": keys(one)})
	e.service(t, "PUT", "/enrollmentGroups/gateways", map[string]any{"enrollmentGroupId": "gateways", "attestation": keys(group)})
	mac := hmac.New(sha256.New, group)
	mac.Write([]byte("gw-0031"))

	for id, key := range map[string][]byte{"gw-0030": one, "gw-0031": mac.Sum(nil)} {
		c := e.gateway(t, id)
		c.key = key
		d, err := c.register()
		if err != nil || d.DeviceID != id {
			t.Fatalf("%s: %+v %v", id, d, err)
		}
		c.lives(d)

		short := *c // the token has expired when it is polled with
		short.life, short.pause, short.log = time.Second, 2*time.Second, nil
		token := short.token(short.scope+"/registrations/"+id, "registration")
		if _, err := short.registerWith(token); err != nil || len(short.log) != 2 {
			t.Fatalf("%s: polled with an expired token: %v %v", id, short.log, err)
		}
		_, err = short.dps("PUT", id+"/register", token, map[string]any{"registrationId": id}, http.StatusAccepted)
		short.refused("an expired token replayed", err, 401, "expired")
		_, err = c.register() // another operation
		if err != nil {
			t.Fatal(err)
		}
		op := c.last[strings.LastIndexByte(c.last, '/')+1 : strings.IndexByte(c.last, '?')]
		_, err = short.dps("GET", id+"/operations/"+op, token, nil, http.StatusOK, http.StatusAccepted)
		short.refused("an expired token, an operation that it did not begin", err, 401, "")

		wrong := *c
		wrong.key = bytes.Repeat([]byte{3}, 32)
		_, err = wrong.register()
		wrong.refused("wrong key", err, 401, "signature")
		_, err = wrong.modules(d)
		wrong.refused("hub, wrong key", err, 401, "")
		_, err = c.registerWith(c.token(c.scope+"/registrations/gw-9999", "registration"))
		c.refused("a token for another", err, 401, "gw-9999")
		if _, err := c.modules(d); err != nil {
			t.Errorf("%s at the hub afterwards: %v", id, err)
		}
	}
	both := e.gateway(t, "gw-0030")
	both.key = mac.Sum(nil)
	_, err := both.register()
	both.refused("the key of a group's other member", err, 401, "signature")
	e.service(t, "PUT", "/enrollments/gw-0031", map[string]any{"registrationId": "gw-0031", "provisioningStatus": "disabled", "attestation": keys(mac.Sum(nil))})
	member := e.gateway(t, "gw-0031")
	member.key = mac.Sum(nil)
	_, err = member.register()
	member.refused("an enrolment of its own that is disabled", err, 401, "disabled")
}

// service is a request to the service API as its owner.
func (e *edge) service(t *testing.T, method, path string, body any) {
	t.Helper()
	text := world.Decode[admin.ServiceKey](t, e.MustCradle("service-key", "show", "--service", "dps")).ConnectionString
	cs, err := sas.ParseConnectionString(text)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, cs.BaseURL()+path+"?api-version=2021-10-01", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", cs.Token(time.Now(), time.Hour))
	resp, err := e.HTTP(nil).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, answer)
	}
}
