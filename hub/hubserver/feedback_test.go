package hubserver_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

const feedbackPath = "/messages/serviceBound/feedback"

// feedback receives what there is, and its lock.
func (r *rig) feedback() (told map[string]string, lock string) {
	r.t.Helper()
	status, h, out := r.asOwner("GET", feedbackPath+"?api-version=2021-04-12", "")
	if status == 204 {
		return nil, ""
	}
	var fs []iothub.FeedbackRecord
	if err := json.Unmarshal([]byte(out), &fs); err != nil || status != 200 || h.Get("Content-Type") != iothub.FeedbackType || h.Get("iothub-userid") != "hub-1" {
		r.t.Fatalf("feedback: %d %v %s", status, h, out)
	}
	told = map[string]string{}
	for _, f := range fs {
		if f.DeviceGenerationID == "" || f.EnqueuedTimeUTC.IsZero() || f.StatusCode != f.Description {
			r.t.Errorf("record %+v", f)
		}
		told[f.OriginalMessageID] = f.Description + " " + string(f.DeviceID)
	}
	return told, strings.Trim(h.Get("ETag"), `"`)
}

// TestC2DFeedback: whoever asked hears what became of a message, and only then; over MQTT and HTTPS.
func TestC2DFeedback(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		u, v := r.keyed("dev"), r.keyed("other")
		acks := []string{"none", "positive", "negative", "full"}
		each := func(id, what string, header ...string) {
			for _, ack := range append(acks, "") {
				h := append([]string{"iothub-messageid", what + " " + ack}, header...)
				if ack != "" {
					h = append(h, "iothub-ack", ack)
				}
				r.send(id, what, h...)
			}
		}
		wants := func(told map[string]string, want ...string) {
			t.Helper()
			if len(want) != len(told) {
				t.Errorf("told %v, want %v", told, want)
			}
			for _, w := range want {
				id, description, _ := strings.Cut(w, ": ")
				if told[id] != description {
					t.Errorf("%s: told %q, want %q", id, told[id], description)
				}
			}
		}
		if told, _ := r.feedback(); told != nil {
			t.Errorf("of nothing: %v", told)
		}
		each("dev", "acknowledged")
		u.online(u.filter())
		for range 5 {
			u.next()
		}
		r.waiting("dev", 0)
		told, lock := r.feedback()
		wants(told, "acknowledged positive: Success dev", "acknowledged full: Success dev")
		if told, _ := r.feedback(); told != nil {
			t.Errorf("while it is locked: %v", told)
		}
		if status, _, out := r.asOwner("POST", feedbackPath+"/"+lock+"/abandon", ""); status != 204 {
			t.Errorf("abandon: %d %s", status, out)
		}
		told, lock = r.feedback()
		wants(told, "acknowledged positive: Success dev", "acknowledged full: Success dev")
		if status, _, out := r.asOwner("DELETE", feedbackPath+"/"+lock+"?api-version=2021-04-12", ""); status != 204 {
			t.Errorf("complete: %d %s", status, out)
		}
		for _, c := range [][2]string{{"DELETE", "/" + lock}, {"POST", "/" + lock + "/abandon"}, {"DELETE", "/nobody"}, {"DELETE", "/%00"}} {
			if status, _, out := r.asOwner(c[0], feedbackPath+c[1], ""); status != 412 || !strings.Contains(out, "LockLost") {
				t.Errorf("%s %s: %d %s", c[0], c[1], status, out)
			}
		}
		host := strings.TrimPrefix(r.reg.BaseURL, "https://")
		if status, _, _ := r.request("GET", feedbackPath, sas.Sign(host+"/devices/dev", "", u.key, time.Now().Add(time.Hour)), ""); status != 401 {
			t.Errorf("a device reads feedback: %d", status)
		}

		// Rejected, thrown away, and expired before anybody came.
		each("other", "rejected")
		for range 5 {
			status, h, out := v.https("GET", "/devices/other/messages/devicebound", "")
			if status != http.StatusOK {
				t.Fatalf("receive: %d %s", status, out)
			}
			if status, _, out := v.https("DELETE", "/devices/other/messages/devicebound/"+strings.Trim(h.Get("ETag"), `"`)+"?reject&api-version=2021-04-12", ""); status != 204 {
				t.Fatalf("reject: %d %s", status, out)
			}
		}
		each("other", "thrown")
		if status, _, out := r.asOwner("DELETE", "/devices/other/commands", ""); status != 200 {
			t.Errorf("purge: %d %s", status, out)
		}
		each("other", "late", "iothub-expiry", time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
		r.skew.Store(int64(2 * time.Minute))
		told, lock = r.feedback()
		wants(told, "rejected negative: Rejected other", "rejected full: Rejected other", "thrown negative: Purged other", "thrown full: Purged other",
			"late negative: Expired other", "late full: Expired other")
		if status, _, out := r.asOwner("DELETE", "/messages/servicebound/feedback/"+lock, ""); status != 204 {
			t.Errorf("complete, in the other spelling: %d %s", status, out)
		}

		// Handed over too often.
		r.send("other", "odd", "iothub-messageid", "odd", "iothub-ack", "full")
		for i := range iothub.MaxDeliveries {
			if _, h, _ := v.https("GET", "/devices/other/messages/devicebound", ""); h.Get("iothub-deliverycount") != fmt.Sprint(i+1) {
				t.Errorf("delivery %d: %v", i+1, h)
			}
			r.skew.Add(int64(iothub.C2DLock))
		}
		if told, _ := r.feedback(); told != nil {
			t.Errorf("before it is given up: %v", told)
		}
		if status, _, out := v.https("GET", "/devices/other/messages/devicebound", ""); status != 204 {
			t.Errorf("after so many deliveries: %d %s", status, out)
		}
		told, _ = r.feedback()
		wants(told, "odd: DeliveryCountExceeded other")
		if status, _, out := v.https("DELETE", "/devices/other/messages/devicebound/http-%00.1", ""); status != 412 {
			t.Errorf("a lock that cannot be: %d %s", status, out)
		}
		if status, _, out := r.asOwner("POST", "/devices/dev/messages/devicebound", "x", "iothub-messageid", strings.Repeat("m", 129)); status != 400 {
			t.Errorf("a message id of 129 bytes: %d %s", status, out)
		}
	})
}
