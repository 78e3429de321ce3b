package hubdb_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// TestFeedback: it is had by one at a time, comes again until it is settled, and has bounds.
func TestFeedback(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := withHubs(t, url, "hub-1", "hub-2")
		for _, h := range []hub.Name{"hub-1", "hub-2"} {
			if err := s.InsertDevice(ctx, h, &hub.Device{ID: "d", Generation: "g1", ETag: "e"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		// complete sends a message and has the device take it.
		complete := func(id string, at time.Time) {
			t.Helper()
			m := &hub.C2D{Device: "d", Ack: hub.AckSuccess, Properties: iothub.Bag{{Name: iothub.PropMessageID, Value: id}}, Enqueued: at, Expires: at.Add(time.Hour)}
			err := s.Enqueue(ctx, "hub-1", m, 1)
			ms, err2 := s.Take(ctx, "hub-1", "d", at, 10, hub.Taking{Owner: "http-x", Max: 1, Until: at.Add(time.Minute)})
			if err := errors.Join(err, err2); err != nil || len(ms) != 1 {
				t.Fatalf("%d messages, %v", len(ms), err)
			}
			if err := s.Settle(ctx, "hub-1", "d", ms[0].Lock, hub.Completed, at); err != nil {
				t.Fatal(err)
			}
		}
		take := func(at time.Time, lock string, want ...string) []hub.Feedback {
			t.Helper()
			fs, err := s.TakeFeedback(ctx, "hub-1", at, lock, at.Add(time.Minute))
			var got []string
			for _, f := range fs {
				got = append(got, f.Message)
			}
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s took %v %v, want %v", lock, got, err, want)
			}
			return fs
		}
		complete("m1", now)
		complete("m2", now.Add(time.Second))
		if fs, err := s.TakeFeedback(ctx, "hub-2", now, "x", now.Add(time.Minute)); err != nil || len(fs) != 0 {
			t.Errorf("another hub's: %v %v", fs, err)
		}
		if f := take(now, "a", "m1", "m2")[0]; f != (hub.Feedback{Message: "m1", Device: "d", Generation: "g1", At: now}) {
			t.Errorf("got %+v", f)
		}
		take(now.Add(59*time.Second), "b") // a has it
		wantKind(t, "nobody's lock", s.SettleFeedback(ctx, "hub-1", "b"), cradle.NotFound)
		wantKind(t, "no lock", s.SettleFeedback(ctx, "hub-1", ""), cradle.NotFound)
		wantKind(t, "no lock", s.ReleaseFeedback(ctx, "hub-1", ""), cradle.NotFound)
		wantKind(t, "at another hub", s.SettleFeedback(ctx, "hub-2", "a"), cradle.NotFound)
		take(now.Add(time.Minute), "c", "m1", "m2") // its lock has ended
		wantKind(t, "a lock that ended", s.SettleFeedback(ctx, "hub-1", "a"), cradle.NotFound)
		if err := s.ReleaseFeedback(ctx, "hub-1", "c"); err != nil {
			t.Fatal(err)
		}
		take(now.Add(time.Minute), "d", "m1", "m2")
		if err := s.SettleFeedback(ctx, "hub-1", "d"); err != nil {
			t.Fatal(err)
		}
		take(now.Add(2*time.Minute), "e")
		wantKind(t, "settled twice", s.SettleFeedback(ctx, "hub-1", "d"), cradle.NotFound)

		// It ends when it is too old.
		complete("old", now)
		complete("young", now.Add(time.Hour))
		take(now.Add(hub.FeedbackLife), "f", "young")
		if err := s.SettleFeedback(ctx, "hub-1", "f"); err != nil {
			t.Fatal(err)
		}
		// A device has so much of it, the newest.
		for i := range hub.MaxFeedback + 3 {
			complete(fmt.Sprint(i), now)
		}
		n := 0
		for ; ; n++ {
			fs, err := s.TakeFeedback(ctx, "hub-1", now, fmt.Sprint("lock-", n), now.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 && (len(fs) != hub.FeedbackBatch || fs[0].Message != "3") {
				t.Errorf("%d records, the first %+v", len(fs), fs[0])
			}
			if len(fs) == 0 {
				break
			}
		}
		if n != hub.MaxFeedback/hub.FeedbackBatch {
			t.Errorf("%d batches", n)
		}
		// It goes with its device.
		if err := s.DeleteDevice(ctx, "hub-1", "d", "e"); err != nil {
			t.Fatal(err)
		}
		take(now.Add(time.Hour), "g")
	})
}

// TestFeedbackOfOldMessages: those that a version before stored are told of too, though nobody would have been then.
func TestFeedbackOfOldMessages(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		old(t, url, 0)
		s, err := hubdb.OpenOld(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Update(t.Context(), func(tx *sqldb.Tx) error {
			for i, ack := range []string{"", "none", "positive", "negative", "full", "fuller"} {
				bag := iothub.Bag{{Name: iothub.PropMessageID, Value: ack}, {Name: "x", Value: "&iothub-ack=full&"}}
				if ack != "" {
					bag = append(bag, iothub.Property{Name: iothub.PropAck, Value: ack})
				}
				if err := tx.Queue(`INSERT INTO c2d (hub, device, properties, body, enqueued, expires, deliveries, lock, locked_until) SELECT id, 'd1', ?, ?, 1, ?, 0, '', 0 FROM hubs WHERE name = 'hub-1'`,
					bag.Encode(), []byte{}, int64(2+i)); err != nil {
					return err
				}
			}
			return nil
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		s = open(t, url)
		fs, err := s.TakeFeedback(t.Context(), "hub-1", now, "a", now.Add(time.Minute))
		if err != nil || len(fs) != 2 || fs[0].Message != "negative" || fs[1].Message != "full" || fs[1].Outcome != hub.Expired || fs[1].At.UnixMicro() != 6 {
			t.Errorf("got %+v %v", fs, err)
		}
	})
}
