package hubserver_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

func TestMethods(t *testing.T) {
	r := newRig(t, sqlite(t))
	a, b := r.keyed("a"), r.keyed("b")
	call := func(path, body string) (int, string) {
		status, _, out := r.asOwner("POST", path+"/methods", body)
		return status, out
	}
	if status, out := call("/twins/nobody", `{"methodName":"m"}`); status != 404 || !strings.Contains(out, "ErrorCode:DeviceNotFound") {
		t.Errorf("nobody: %d %s", status, out)
	}
	if status, out := call("/twins/a", `{"methodName":"m"}`); status != 404 || !strings.Contains(out, "ErrorCode:DeviceNotOnline") {
		t.Errorf("offline: %d %s", status, out)
	}
	answering := func(u *unit) func(heard) error {
		return func(h heard) error {
			name, rid, ok := strings.Cut(strings.TrimPrefix(h.topic, "$iothub/methods/POST/"), "/?$rid=")
			if !ok || name == "silent" {
				return nil
			}
			body := fmt.Sprintf(`{"by":%q,"got":%s}`, u.name, h.body)
			if name == "bad" {
				body = "{"
			}
			if name == "empty" {
				body = ""
			}
			go u.Publish(context.Background(), "$iothub/methods/res/-7/?$rid="+rid, mqtt.AtMostOnce, []byte(body))
			return nil
		}
	}
	a.on = answering(a)
	a.online()
	if status, out := call("/twins/a", `{"methodName":"m"}`); status != 404 || !strings.Contains(out, "DeviceNotOnline") {
		t.Errorf("not subscribed: %d %s", status, out)
	}
	if err := a.Subscribe(t.Context(), iothub.MethodCalls, 0); err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		`{"methodName":"m","payload":{"x":[1]}}`:                         `{"status":-7,"payload":{"by":"a","got":{"x":[1]}}}`,
		`{"methodName":"m","payload":"s","responseTimeoutInSeconds":30}`: `{"status":-7,"payload":{"by":"a","got":"s"}}`,
		`{"methodName":"m"}`:                 `{"status":-7,"payload":{"by":"a","got":null}}`,
		`{"methodName":"empty","payload":1}`: `{"status":-7,"payload":null}`,
	} {
		if status, out := call("/twins/a", body); status != 200 || out != want {
			t.Errorf("%s: got %d %s", body, status, out)
		}
	}
	if status, out := call("/twins/a", `{"methodName":"bad"}`); status != 502 || !strings.Contains(out, "BadDeviceResponse") {
		t.Errorf("bad answer: %d %s", status, out)
	}
	for body, want := range map[string]int{`{"methodName":""}`: 400, `{"methodName":"a/b"}`: 400, `{"methodName":"m","responseTimeoutInSeconds":301}`: 400,
		`{"methodName":"m","responseTimeoutInSeconds":4}`: 400, `{"methodName":"m","connectTimeoutInSeconds":-1}`: 400, `{"methodName":"m","payload":"` + strings.Repeat("x", 128<<10) + `"}`: 413, `{`: 400} {
		if status, out := call("/twins/a", body); status != want {
			t.Errorf("%.40s: got %d %s", body, status, out)
		}
	}
	// The device comes while the caller waits for it, and subscribes later still.
	b.on = answering(b)
	done := make(chan string, 1)
	go func() {
		status, out := call("/twins/b", `{"methodName":"m","connectTimeoutInSeconds":30}`)
		done <- fmt.Sprint(status, out)
	}()
	b.online(iothub.MethodCalls)
	if got := <-done; got != `200{"status":-7,"payload":{"by":"b","got":null}}` {
		t.Errorf("came later: %s", got)
	}
	// Another device's answer to the same id is nobody's.
	go func() {
		status, out := call("/twins/a", `{"methodName":"silent"}`)
		done <- fmt.Sprint(status, out)
	}()
	var rid string
	for rid == "" {
		if h := a.next(); strings.Contains(h.topic, "/silent/") {
			_, rid, _ = strings.Cut(h.topic, "$rid=")
		}
	}
	if err := b.Publish(t.Context(), "$iothub/methods/res/200/?$rid="+rid, mqtt.AtLeastOnce, []byte(`"forged"`)); err != nil {
		t.Fatal(err)
	}
	if err := a.Publish(t.Context(), "$iothub/methods/res/201/?$rid="+rid, mqtt.AtLeastOnce, []byte(`"own"`)); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got != `200{"status":201,"payload":"own"}` {
		t.Errorf("two answers: %s", got)
	}
	// The device goes before it answers.
	go func() {
		status, out := call("/twins/a", `{"methodName":"silent","responseTimeoutInSeconds":300}`)
		done <- fmt.Sprint(status, out)
	}()
	for {
		if h := a.next(); strings.Contains(h.topic, "/silent/") {
			break
		}
	}
	a.Close()
	if got := <-done; !strings.HasPrefix(got, "404") || !strings.Contains(got, "DeviceNotOnline") || !strings.Contains(got, "may have run") {
		t.Errorf("gone: %s", got)
	}
	// A module has methods of its own.
	m := r.module(b, "mod")
	m.on = answering(m)
	m.online(iothub.MethodCalls)
	if status, out := call("/twins/b/modules/mod", `{"methodName":"m"}`); status != 200 || out != `{"status":-7,"payload":{"by":"b/mod","got":null}}` {
		t.Errorf("module: %d %s", status, out)
	}
}

func TestMethodTimeout(t *testing.T) {
	testenv.Long(t)
	r := newRig(t, sqlite(t))
	r.keyed("a").online(iothub.MethodCalls)
	if status, _, out := r.asOwner("POST", "/twins/a/methods", `{"methodName":"m","responseTimeoutInSeconds":5}`); status != 504 || !strings.Contains(out, "ErrorCode:GatewayTimeout") {
		t.Errorf("got %d %s", status, out)
	}
}
