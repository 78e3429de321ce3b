package iothub_test

import (
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func TestParseRequest(t *testing.T) {
	for topic, want := range map[string]iothub.Request{
		"$iothub/twin/GET/?$rid=1":                                 {Path: "twin/GET", ID: "1"},
		"$iothub/twin/PATCH/properties/reported/?$rid=a%20b&$v=1":  {Path: "twin/PATCH/properties/reported", ID: "a%20b"},
		"$iothub/methods/res/200/?%24rid=7f":                       {Path: "methods/res/200", ID: "7f"},
		"$iothub/credentials/POST/issueCertificate/?x=y&$rid=id-1": {Path: "credentials/POST/issueCertificate", ID: "id-1"},
	} {
		got, err := iothub.ParseRequest(topic)
		if err != nil || got != want {
			t.Errorf("%s: got %+v %v", topic, got, err)
		}
	}
	for _, topic := range []string{"", "$iothub/", "$iothub/twin/GET", "$iothub/twin/GET/", "$iothub/twin/GET/?", "$iothub/twin/GET/?$rid=", "$iothub//?$rid=1",
		"$iothub/twin/GET?$rid=1", "$iothub/twin/GET/?rid=1", "$iothub/twin/GET/?$rid=1&$rid=2", "devices/d/messages/events/?$rid=1", "$iothub/twin/GET/?$rid=" + strings.Repeat("x", 257)} {
		if _, err := iothub.ParseRequest(topic); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%.80s: got %v", topic, err)
		}
	}
	for path, want := range map[string]int{"methods/res/200": 200, "methods/res/-1": -1, "methods/res/x": 0, "methods/res/99999999999": 0, "methods/200": 0} {
		if got, ok := (iothub.Request{Path: path}).MethodStatus(); ok && got != want || ok != (want != 0) {
			t.Errorf("%s: got %d %v", path, got, ok)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("$iothub/twin/GET/?$rid=1")
	f.Add("$iothub/methods/res/200/?$rid=7f&x=y")
	f.Fuzz(func(t *testing.T, topic string) {
		r, err := iothub.ParseRequest(topic)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		if again, err := iothub.ParseRequest(r.String()); err != nil || again != r || !strings.Contains(topic, r.ID) || !strings.HasPrefix(topic, "$iothub/"+r.Path+"/?") {
			t.Fatalf("%q: %+v, then %+v %v", topic, r, again, err)
		}
		r.MethodStatus()
	})
}

func TestModuleTopics(t *testing.T) {
	id, module, bag, err := iothub.ParseEventsTopic("devices/d/modules/$edgeAgent/messages/events/a=1")
	if err != nil || id != "d" || module != "$edgeAgent" || len(bag) != 1 {
		t.Errorf("got %q %q %v %v", id, module, bag, err)
	}
	for _, topic := range []string{"devices/d/modules//messages/events/", "devices/d/modules/m", "devices/d/modules/m/n/messages/events/", "devices/d/modules/m/messages/devicebound/"} {
		if _, _, _, err := iothub.ParseEventsTopic(topic); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: got %v", topic, err)
		}
	}
	if _, _, err := iothub.ParseTelemetryTopic("devices/d/modules/m/messages/events/"); err == nil {
		t.Error("a module's topic taken for a device's")
	}
	for s, ok := range map[string]bool{"d": true, "d/m": true, "d/": false, "/m": false, "d/m/n": false, "": false, "d/a b": false} {
		if _, _, err := iothub.ParseClientID(s); (err == nil) != ok {
			t.Errorf("client id %q: got %v", s, err)
		}
	}
	for s, ok := range map[string]bool{"/devices/d/messages/devicebound": true, "devices/d/messages/devicebound": true, "/devices//messages/devicebound": false,
		"/devices/a/b/messages/devicebound": false, "/devices/d/messages/events": false, "": false} {
		if id, err := iothub.ParseTo(s); (err == nil) != ok || ok && id != "d" {
			t.Errorf("%q: got %q %v", s, id, err)
		}
	}
}

func FuzzClientID(f *testing.F) {
	f.Add("dev/mod")
	f.Fuzz(func(t *testing.T, s string) {
		id, module, err := iothub.ParseClientID(s)
		if err != nil {
			return
		}
		back := string(id)
		if module != "" {
			back += "/" + string(module)
		}
		if back != s {
			t.Fatalf("%q became %q", s, back)
		}
		d, m, _, err := iothub.ParseEventsTopic("devices/" + strings.Replace(s, "/", "/modules/", 1) + "/messages/events/")
		if err != nil || d != id || m != module {
			t.Fatalf("topic of %q: %q %q %v", s, d, m, err)
		}
	})
}
