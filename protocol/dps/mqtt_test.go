package dps_test

import (
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
)

func TestUserName(t *testing.T) {
	for s, want := range map[string][3]string{
		"0ne1/registrations/d/api-version=2019-03-31&ClientVersion=a%2F1": {"0ne1", "d", "2019-03-31"},
		"0ne1/registrations/d/api-version=2019-03-31":                     {"0ne1", "d", "2019-03-31"},
		"0ne1/registrations/a%3Ab/?api-version=2021-06-01":                {"0ne1", "a:b", "2021-06-01"},
		"0ne1/registrations/d/ClientVersion=a/b&api-version=x":            {"0ne1", "d", "x"},
		"0ne1/registrations/d/":                                           {"0ne1", "d", ""},
		"0ne1/registrations/d":                                            {"0ne1", "d", ""},
	} {
		scope, id, version, err := dps.ParseUserName(s)
		if got := [3]string{scope, id, version}; err != nil || got != want || !dps.IsUserName(s) {
			t.Errorf("%q: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "hub/d/?api-version=1", "/registrations/d/api-version=1", "0ne1/registrations//api-version=1", "0ne1/registrations/%zz/"} {
		if _, _, _, err := dps.ParseUserName(s); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"hub.example/d/?api-version=1", "hub.example/d/m/api-version=1", "hub.example/registrations/?api-version=1", "registrations/d", ""} {
		if dps.IsUserName(s) {
			t.Errorf("%q is a hub's", s)
		}
	}
}

func TestClientVersion(t *testing.T) {
	for s, want := range map[string]string{
		"0ne1/registrations/d/api-version=2019-03-31&ClientVersion=a%2F1":  "a/1",
		"0ne1/registrations/d/?api-version=2019-03-31&ClientVersion=a%2F1": "a/1",
		"0ne1/registrations/d/ClientVersion=a/1&api-version=x":             "a/1",
		"0ne1/registrations/d/api-version=x&ClientVersion=%zz":             "",
		"0ne1/registrations/d/api-version=x":                               "",
		"0ne1/registrations/ClientVersion=a":                               "",
		"":                                                                 "",
	} {
		if got := dps.ClientVersion(s); got != want {
			t.Errorf("%q: %q", s, got)
		}
	}
}

// FuzzTopic: what is understood is written back as the same request, and its request id stands in the answer's topic
// as it was sent.
func FuzzTopic(f *testing.F) {
	f.Add("$dps/registrations/PUT/iotdps-register/?$rid=1")
	f.Add("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=a-b&operationId=5.1.2")
	f.Add("$dps/registrations/GET/iotdps-get-operationstatus/?operationId=5%2E1&$rid=a%20b")
	f.Add("$dps/registrations/PUT/iotdps-register/?$rid=")
	f.Add("devices/d/messages/events/")
	f.Fuzz(func(t *testing.T, topic string) {
		r, err := dps.ParseTopic(topic)
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.NotFound {
				t.Errorf("%q: %v", topic, err)
			}
			return
		}
		if again, err := dps.ParseTopic(r.Topic()); err != nil || again != r {
			t.Errorf("%q: %+v, again %+v %v", topic, r, again, err)
		}
		if !strings.Contains(topic, "$rid="+r.RID) || len(r.RID) > 256 || dps.ResponseTopic(200, r.RID, "3") != "$dps/registrations/res/200/?$rid="+r.RID+"&retry-after=3" {
			t.Errorf("%q: request id %q", topic, r.RID)
		}
	})
}

// FuzzUserName: what is understood is written back as the same names.
func FuzzUserName(f *testing.F) {
	f.Add("0ne1/registrations/d/api-version=2019-03-31&ClientVersion=a%2F1")
	f.Add("0ne1/registrations/a%3Ab/?api-version=2021-06-01")
	f.Fuzz(func(t *testing.T, s string) {
		scope, id, version, err := dps.ParseUserName(s)
		if v := dps.ClientVersion(s); len(v) > len(s) {
			t.Errorf("%q: client %q", s, v)
		}
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Error(err)
			}
			return
		}
		if strings.ContainsAny(id, "/%") {
			return // no registration id
		}
		if s2, i2, v2, err := dps.ParseUserName(dps.UserName(scope, id, version)); err != nil || s2 != scope || i2 != id || v2 != version {
			t.Errorf("%q: %q %q %q %v", s, s2, i2, v2, err)
		}
	})
}
