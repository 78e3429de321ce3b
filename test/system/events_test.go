package system_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/test/world"
)

// TestEventsToNATS: what a device was told is stored reaches JetStream, whichever of the two servers is killed meanwhile.
// The device has a symmetric key and speaks HTTPS.
func TestEventsToNATS(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	js := testenv.StartNATS(t)
	w := world.New(t, world.Options{Serve: []string{"--nats", js.URL, "--events-keep", "1d", "--events-size", "100MB"}})
	var key struct {
		ConnectionString string `json:"connection_string"`
	}
	if err := json.Unmarshal([]byte(w.MustCradle("service-key", "show", "--service", "hub", "--json")), &key); err != nil {
		t.Fatal(err)
	}
	cs, err := sas.ParseConnectionString(key.ConnectionString)
	if err != nil {
		t.Fatal(err)
	}
	d, err := iothub.NewRegistry(w.HTTP(nil), cs).PutDevice(t.Context(), &iothub.Device{DeviceID: "dev"}, "")
	if err != nil {
		t.Fatal(err)
	}
	secret, err := base64.StdEncoding.DecodeString(d.Authentication.SymmetricKey.PrimaryKey)
	if err != nil {
		t.Fatal(err)
	}
	token := sas.Sign(cs.HostName+"/devices/dev", "", secret, time.Now().Add(time.Hour))
	client := w.HTTP(nil)
	said := 0
	say := func(n int) {
		t.Helper()
		for end := said + n; said < end; {
			req, err := http.NewRequestWithContext(t.Context(), "POST", w.URL()+"/devices/dev/messages/events?api-version=2021-04-12", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", token)
			req.Header.Set("iothub-app-"+iothub.PropSequence, fmt.Sprint(said))
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			if resp.Body.Close(); resp.StatusCode != http.StatusNoContent {
				t.Fatalf("message %d: %d %s", said, resp.StatusCode, b)
			}
			said++
		}
	}
	say(30)
	w.Server().Kill()
	w.Start()
	say(10)
	js.Kill()
	say(20) // the device does not notice
	w.Server().Kill()
	w.Start()
	say(10)
	js.Start()
	say(10)

	nc, err := nats.Connect(js.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	j, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var c jetstream.Consumer
	testenv.Eventually(t, "the stream is there", func() bool { // the relay may not have made it before
		c, err = j.OrderedConsumer(t.Context(), "cradle-hub-1", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"cradle.hub-1.dev"}})
		return err == nil
	})
	seen := map[string]bool{}
	for len(seen) < said {
		m, err := c.Next(jetstream.FetchMaxWait(testenv.Patience))
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(seen), said, err)
		}
		var e iothub.Event
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			t.Fatal(err)
		}
		if seen[e.ID] {
			continue
		}
		if e.Sequence == nil || *e.Sequence != int64(len(seen)) {
			t.Fatalf("got %s, want message %d", m.Data(), len(seen))
		}
		seen[e.ID] = true
	}
	if lines := strings.Count(w.MustCradle("hub", "events", "--device", "dev", "--from", "40"), "\n"); lines != said-40 {
		t.Errorf("cradle hub events prints %d lines", lines)
	}
	if out := w.MustCradle("hub", "events", "--device", "nobody"); out != "" {
		t.Errorf("events of nobody: %s", out)
	}
}
