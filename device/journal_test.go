package device_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
)

func rot(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// One copy of each record rots: the other is taken, and nothing is asked for twice. Both rot: the device starts over.
func TestDamagedJournal(t *testing.T) {
	for name, c := range map[string]struct {
		files  []string
		issued int
	}{
		"a":    {[]string{"journal.a", "telemetry.a"}, 2},
		"b":    {[]string{"journal.b", "telemetry.b"}, 2},
		"both": {[]string{"journal.a", "journal.b"}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				stop := w.start(w.options())
				w.until("telemetry", time.Hour, func() bool { return len(w.seqs) > 2 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				for _, f := range c.files {
					rot(t, filepath.Join(w.set.StateDir, f))
				}
				stop = w.start(w.options())
				w.until("more telemetry", time.Hour, func() bool { return len(w.connects) > 1 && len(w.seqs) > 6 })
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				w.check()
				if len(w.issued) != c.issued {
					t.Errorf("%d certificates, want %d", len(w.issued), c.issued)
				}
			})
		})
	}
}

func TestRefusedAtStart(t *testing.T) {
	w := newWorld(t)
	run := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		return device.Run(ctx, w.set, w.options())
	}
	w.noTime = true
	if err := run(); err != nil {
		t.Fatal(err)
	}

	w.set.Device = "acme-0002"
	if err := run(); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), unit) {
		t.Errorf("another device's journal: got %v", err)
	}
	w.set.Device = unit

	for _, f := range []string{"journal.a", "journal.b"} {
		f = filepath.Join(w.set.StateDir, f)
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if err := os.WriteFile(f, []byte(strings.Replace(string(b), "cradle-journal 1", "cradle-journal 2", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(); cradle.KindOf(err) != cradle.Conflict || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("a newer version's journal: got %v", err)
	}
	os.RemoveAll(w.set.StateDir)

	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	started := make(chan struct{})
	o := w.options()
	o.OnStage = func(device.Stage) {
		select {
		case <-started:
		default:
			close(started)
		}
	}
	go func() { first <- device.Run(ctx, w.set, o) }()
	<-started
	if err := run(); cradle.KindOf(err) != cradle.Busy {
		t.Errorf("a second agent: got %v", err)
	}
	cancel()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// Without rotation a renewal keeps the key.
func TestRenewalWithoutRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		*w.set.Renewal.RotateKey = false
		stop := w.start(w.options())
		w.until("two renewals", 3*24*time.Hour, func() bool { return len(w.connects) >= 3 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if len(w.blobs) != 1 {
			t.Errorf("%d keys, want one", len(w.blobs))
		}
		w.check()
	})
}
