package hubserver_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// unsteady fails the nth write of a renewal: not stored, or stored with the answer lost.
type unsteady struct {
	hub.Store
	mu    sync.Mutex
	on    bool
	n     int
	fail  int
	after bool
}

// done reports whether the write has failed.
func (u *unsteady) done() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n >= u.fail
}

func (u *unsteady) write(do func() error) error {
	u.mu.Lock()
	if u.on {
		u.n++
	}
	fails := u.on && u.n == u.fail
	u.mu.Unlock()
	if fails && !u.after {
		return cradle.Errorf(cradle.Busy, "not stored")
	}
	err := do()
	if fails && err == nil {
		return cradle.Errorf(cradle.Busy, "answer lost")
	}
	return err
}

func (u *unsteady) ChangeCredentialRequest(ctx context.Context, name hub.Name, id cradle.DeviceID, change func(*hub.CredentialRequest) (*hub.CredentialRequest, error)) (out *hub.CredentialRequest, err error) {
	err = u.write(func() error {
		out, err = u.Store.ChangeCredentialRequest(ctx, name, id, change)
		return err
	})
	return out, err
}

func (u *unsteady) UpdateDevice(ctx context.Context, name hub.Name, d *hub.Device, etag string) error {
	return u.write(func() error { return u.Store.UpdateDevice(ctx, name, d, etag) })
}

// TestRenewalFaults: each write of a renewal fails once; the device that sends its request again gets one certificate, and
// it lets it in.
func TestRenewalFaults(t *testing.T) {
	for _, after := range []bool{false, true} {
		u := new(unsteady)
		r := newRigOver(t, sqlite(t), func(s hub.Store) hub.Store { u.Store = s; return u })
		for n := 1; n <= 4; n++ { // accepted, issued, slot, told
			id := cradle.DeviceID("dev-" + strconv.Itoa(n))
			i := r.policied(id)
			w := r.renewal(i)
			w.hear()
			u.mu.Lock()
			u.on, u.n, u.fail, u.after = true, 0, n, after
			u.mu.Unlock()
			body, key := request(t, id, "")
			var chain [][]byte
			for try := 0; chain == nil; try++ {
				if try > 5 {
					t.Fatalf("write %d, after %v: no certificate\n%s", n, after, r.logs)
				}
				w.say("r-1", body)
			answer:
				for {
					select {
					case p := <-w.answers:
						var m map[string]any
						if err := json.Unmarshal(p.Payload, &m); err != nil {
							t.Fatal(err)
						}
						switch p.Topic {
						case iothub.CredentialResponse("202", "r-1"):
							continue
						case iothub.CredentialResponse("200", "r-1"):
							chain = chainOf(t, m)
						case iothub.CredentialResponse("503", "r-1"):
						default:
							t.Fatalf("write %d, after %v: %s %s", n, after, p.Topic, p.Payload)
						}
						break answer
					case <-time.After(testenv.Patience):
						t.Fatalf("write %d, after %v: no answer\n%s", n, after, r.logs)
					}
				}
			}
			if n == 4 { // the last write follows the answer
				testenv.Eventually(t, "the fourth write", u.done)
			}
			u.mu.Lock()
			u.on = false
			u.mu.Unlock()
			w.c.Close()
			r.mustConnect(ident{id: id, cert: tls.Certificate{Certificate: chain[:1], PrivateKey: key}})
		}
		r.ca.mu.Lock()
		if len(r.ca.had) != 4 {
			t.Errorf("%d certificates for 4 requests", len(r.ca.had))
		}
		r.ca.mu.Unlock()
	}
}
