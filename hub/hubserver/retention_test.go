package hubserver_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/testenv"
)

// TestKeep: events go by themselves when they are too old or too much, while the device goes on; of two processes one
// trims.
func TestKeep(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		keepers := []*rig{newRig(t, url), newRig(t, url)}
		c := r.mustConnect(r.register("dev"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		say := func(from, to int) {
			t.Helper()
			for i := from; i < to; i++ {
				if err := c.say(ctx, fmt.Sprint(i), "{}"); err != nil {
					t.Fatal(err)
				}
			}
		}
		say(0, 20)
		st, _, err := r.hub.StreamState(ctx, hub.DefaultName)
		if err != nil || st.Last != 20 || st.Bytes == 0 {
			t.Fatalf("%+v %v", st, err)
		}
		each := st.Bytes / 20
		// By size.
		if got, err := r.hub.Trim(ctx, hub.DefaultName, hub.Retention{Age: time.Hour, Size: 10*each + each/2}); err != nil || got.Events < 9 || got.Events > 11 {
			t.Errorf("by size: %+v %v", got, err)
		}
		// By age, in two processes that both think so.
		for i, h := range keepers {
			h.skew.Store(int64(2 * time.Hour))
			go h.hub.Keep(ctx, hub.Retention{Age: time.Hour}, fmt.Sprint("replica ", i))
		}
		trimmed := func() int {
			return keepers[0].hub.Trimmed(hub.DefaultName).Events + keepers[1].hub.Trimmed(hub.DefaultName).Events
		}
		for st.First != 0 || st.Bytes != 0 || trimmed() < 9 {
			if st, _, err = r.hub.StreamState(ctx, hub.DefaultName); err != nil {
				t.Fatal(err)
			}
		}
		if st.Last != 20 {
			t.Errorf("emptied: %+v", st)
		}
		say(20, 25) // what comes now has 21 as its first cursor, whether or not it is trimmed at once
		if st, _, err = r.hub.StreamState(ctx, hub.DefaultName); err != nil || st.Last != 25 {
			t.Errorf("%+v %v", st, err)
		}
	})
}
