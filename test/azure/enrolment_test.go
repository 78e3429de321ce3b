package azure_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/sas"
)

// enrols makes an individual enrolment with a symmetric key and returns the key.
func (p *place) enrols(t *testing.T, e with) string {
	t.Helper()
	e["attestation"] = with{"type": "symmetricKey"}
	p.must(t, nil, "enrolments.put", with{"connection": p.dps, "enrolment": e})
	var keys attestation
	p.must(t, &keys, "enrolments.keys", with{"connection": p.dps, "id": e["registrationId"]})
	return keys.SymmetricKey.PrimaryKey
}

// keyed is what a script of a device with a symmetric key is given.
func (p *place) keyed(id, transport, key string) with {
	return with{"host": p.host, "hub": p.host, "idScope": p.idScope, "id": id, "transport": transport, "symmetricKey": key}
}

func decode(t *testing.T, b64 string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// derived is the key of a group's device, which needs the group's key once, on the line.
func derived(t *testing.T, group, id string) string {
	t.Helper()
	m := hmac.New(sha256.New, decode(t, group))
	m.Write([]byte(id))
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

func (s suite) TestRegisterSymmetricKey(t *testing.T) {
	for _, transport := range transports {
		id := "key-" + transport
		key := s.enrols(t, with{"registrationId": id, "provisioningStatus": "enabled"})
		s.registers(t, s.keyed(id, transport, key))
		s.must(t, nil, "device.connect", s.keyed(id, "mqtt", key))
	}
}

func (s suite) TestRegisterSymmetricKeyGroup(t *testing.T) {
	s.must(t, nil, "enrolments.put", with{"connection": s.dps, "group": with{"enrollmentGroupId": "keyed", "attestation": with{"type": "symmetricKey"}}})
	var keys attestation
	s.must(t, &keys, "enrolments.groupKeys", with{"connection": s.dps, "id": "keyed"})
	for _, transport := range transports {
		id := "keyed-" + transport
		s.registers(t, s.keyed(id, transport, derived(t, keys.SymmetricKey.PrimaryKey, id)))
		s.must(t, nil, "device.connect", s.keyed(id, "mqtt", derived(t, keys.SymmetricKey.PrimaryKey, id)))
	}
	var listed [][]struct{ RegistrationID string }
	s.must(t, &listed, "enrolments.registrations", with{"connection": s.dps, "id": "keyed", "pageSize": 2})
	var ids []string
	for _, page := range listed {
		for _, r := range page {
			ids = append(ids, r.RegistrationID)
		}
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"keyed-http", "keyed-mqtt", "keyed-ws"}) || len(listed) < 2 {
		t.Errorf("registrations of the group: %v", listed)
	}
}

func (s suite) TestRegisterSymmetricKeyRefused(t *testing.T) {
	s.enrols(t, with{"registrationId": "key-refused"})
	off := s.enrols(t, with{"registrationId": "key-disabled", "provisioningStatus": "disabled"})
	other := s.enrols(t, with{"registrationId": "key-other"})
	for _, transport := range transports {
		for _, c := range []struct {
			name, id, key, reason string
		}{
			{"wrong key", "key-refused", other, "signature"},
			{"disabled", "key-disabled", off, "disabled"},
			{"unknown", "key-nobody", other, "enrol"},
		} {
			e := s.refused(t, "register", s.keyed(c.id, transport, c.key))
			if e.Name != "UnauthorizedError" || !e.says(c.reason) {
				t.Errorf("%s over %s: %v", c.name, transport, e)
			}
		}
	}
}

// An individual enrolment with the device's own certificate beats the group of its CA; disabled, it bars the device.
func (s suite) TestIndividualX509(t *testing.T) {
	own := s.ca.leaf(t, "individual-x509", nil)
	put := func(status, etag string) (e enrolment) {
		body := with{"registrationId": "individual-x509", "deviceId": "pump-7", "provisioningStatus": status,
			"attestation": with{"type": "x509", "x509": with{"clientCertificates": with{"primary": with{"certificate": own.cert}}}}}
		if etag != "" {
			body["etag"] = etag
		}
		s.must(t, &e, "enrolments.put", with{"connection": s.dps, "enrolment": body})
		return e
	}
	made := put("enabled", "")
	for _, transport := range transports {
		var r registered
		s.must(t, &r, "register", s.device("individual-x509", transport, own))
		if r.DeviceID != "pump-7" {
			t.Errorf("over %s: %+v", transport, r)
		}
	}
	hub := s.device("pump-7", "mqtt", own)
	s.must(t, nil, "device.connect", hub)
	if e := s.refused(t, "register", s.device("individual-x509", "http", s.ca.leaf(t, "individual-x509", nil))); e.Name != "UnauthorizedError" || !e.says("certificate") {
		t.Errorf("another certificate of the same name: %v", e)
	}
	put("disabled", made.ETag)
	if e := s.refused(t, "register", s.device("individual-x509", "mqtt", own)); e.Name != "UnauthorizedError" || !e.says("disabled") {
		t.Errorf("disabled: %v", e)
	}
}

func (s suite) TestEnrolments(t *testing.T) {
	var r struct {
		Made, Changed       enrolment
		Keys                attestation
		RefusedChange, Gone refusal
	}
	s.must(t, &r, "enrolments.individual", with{"connection": s.dps, "id": "individual-1"})
	if r.Made.RegistrationID != "individual-1" || r.Made.DeviceID != "individual-1-device" || r.Made.ETag == "" || r.Made.InitialTwin.Tags["site"] != "north" {
		t.Errorf("made: %+v", r.Made)
	}
	if r.Made.Attestation.SymmetricKey.PrimaryKey != "" {
		t.Error("the enrolment shows its key")
	}
	if k, err := base64.StdEncoding.DecodeString(r.Keys.SymmetricKey.PrimaryKey); err != nil || len(k) < 16 || r.Keys.SymmetricKey.SecondaryKey == r.Keys.SymmetricKey.PrimaryKey {
		t.Errorf("keys: %+v", r.Keys)
	}
	if r.Changed.ProvisioningStatus != "disabled" || !r.RefusedChange.is("InvalidEtagError", 412, "etag") || r.Gone.Status != 404 {
		t.Errorf("changed %+v, stale %+v, gone %+v", r.Changed, r.RefusedChange, r.Gone)
	}
}

func (s suite) TestEnrolmentsBulk(t *testing.T) {
	var ids []string
	for i := range 10 {
		ids = append(ids, fmt.Sprintf("bulk-enrolment-%d", i))
	}
	var r struct {
		Created, Again, Removed struct {
			IsSuccessful bool
			Errors       []struct {
				RegistrationID, ErrorStatus string
				ErrorCode                   int
			}
		}
		Found [][]string
	}
	s.must(t, &r, "enrolments.bulk", with{"connection": s.dps, "ids": ids, "pageSize": 4})
	if !r.Created.IsSuccessful || !r.Removed.IsSuccessful {
		t.Errorf("created %+v, removed %+v", r.Created, r.Removed)
	}
	if r.Again.IsSuccessful || len(r.Again.Errors) != 1 || r.Again.Errors[0].RegistrationID != ids[0] {
		t.Errorf("again: %+v", r.Again)
	}
	all := slices.Concat(r.Found...)
	for _, id := range ids {
		if !slices.Contains(all, id) {
			t.Errorf("%s was not found in %v", id, r.Found)
		}
	}
	if len(r.Found) < 3 || len(r.Found[0]) != 4 {
		t.Errorf("pages: %v", r.Found)
	}
}

// A SAS of yesterday, one for another device and one of another key get no connection.
func (s suite) TestSASRefused(t *testing.T) {
	key := s.enrols(t, with{"registrationId": "sas-1"})
	s.registers(t, s.keyed("sas-1", "http", key))
	token := func(resource, key string, life time.Duration) string {
		return sas.Sign(resource, "", decode(t, key), time.Now().Add(life))
	}
	good := s.host + "/devices/sas-1"
	for _, transport := range []string{"mqtt", "ws"} {
		s.must(t, nil, "device.token", with{"transport": transport, "sas": token(good, key, time.Minute)})
		for name, text := range map[string]string{
			"expired":        token(good, key, -time.Minute),
			"wrong key":      token(good, base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef")), time.Minute),
			"another device": token(s.host+"/devices/sas-2", key, time.Minute),
		} {
			if e := s.refused(t, "device.token", with{"transport": transport, "sas": text}); e.Name != "UnauthorizedError" {
				t.Errorf("%s over %s: %v", name, transport, e)
			}
		}
	}
}
