package system_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/test/world"
)

// TestAdmittedFromTheStart: whoever connects while the server starts waits until it can judge, and is not refused because the
// status feed has not been read yet.
func TestAdmittedFromTheStart(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	w := world.New(t, world.Options{})
	client, url := w.HTTP(nil), w.URL()
	if code := w.Server().Stop(); code != 0 {
		t.Fatalf("cradle serve ended with %d", code)
	}
	_, ready := w.Launch()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		resp, err := client.Post(url+"/devices/dev/messages/events", "", strings.NewReader("x"))
		if err != nil { // nobody listens yet
			if time.Now().After(end) {
				t.Fatal(err)
			}
			continue
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(b), "not registered") {
			t.Errorf("the first answer: %s %s %v", resp.Status, b, err)
		}
		break
	}
	<-ready
}
