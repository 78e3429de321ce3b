package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/order"
)

func TestParseLog(t *testing.T) {
	for _, c := range []struct {
		line string
		want map[string]string
	}{
		{`time=2026-01-02T03:04:05.678Z level=INFO msg="certificate issued" device=acme-1 profile=ldevid` + "\n", map[string]string{
			"time": "2026-01-02T03:04:05.678Z", "level": "INFO", "msg": "certificate issued", "device": "acme-1", "profile": "ldevid"}},
		{`msg=x err="device \"a b\" is revoked; x=y" hint="" in=1s`, map[string]string{"msg": "x", "err": `device "a b" is revoked; x=y`, "hint": "", "in": "1s"}},
		{`cradle-agent: no TPM at a=b`, nil},
		{`msg="not closed`, nil},
		{`level=INFO`, nil},
		{"", nil},
	} {
		if got := parseLog(c.line); !maps.Equal(got, c.want) {
			t.Errorf("%q: got %v, want %v", c.line, got, c.want)
		}
	}
}

// A renewal counts when the hub has accepted the renewed certificate, not when a link came back.
func TestRenewalCounts(t *testing.T) {
	f := newFleet()
	d := &device{id: "acme-1"}
	f.add(d)
	say := func(msg string, more ...string) {
		m := map[string]string{"device": "acme-1", "time": time.Now().Format(time.RFC3339Nano), "msg": msg}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		f.logged(m)
	}
	for _, step := range []struct {
		msg, profile string
		want         int
	}{
		{"certificate issued", "ldevid", 0}, {"certificate issued", "operational", 0},
		{"registered with the provisioning service", "", 0}, {"connected to the hub", "", 0}, {"connected to the hub", "", 0},
		{"certificate issued", "operational", 0}, {"connected to the hub", "", 0},
		{"registered with the provisioning service", "", 0}, {"connected to the hub", "", 1}, {"connected to the hub", "", 1},
	} {
		say(step.msg, "profile", step.profile)
		if got := len(d.renewed); got != step.want {
			t.Errorf("after %s %s: %d renewals, want %d", step.msg, step.profile, got, step.want)
		}
	}
	// Of the revoked device a refusal is one, an unreachable service is none.
	say("will try again", "what", atHub, "refused", "true", "err", "before the revocation")
	f.revoked = d.id
	say("will try again", "what", atHub, "refused", "false", "err", "dial tcp: connection refused")
	say("will try again", "what", atEST, "refused", "true", "err", "403")
	if got := slices.Collect(maps.Keys(d.refused)); !slices.Equal(got, []string{atEST}) {
		t.Errorf("refused at %v, want %s alone", got, atEST)
	}
}

func TestGaps(t *testing.T) {
	for _, c := range []struct {
		name    string
		numbers []int64
		sent    int
		want    []int
	}{
		{"whole", []int64{1, 2, 3}, 3, nil},
		{"twice and out of order", []int64{2, 1, 2, 3}, 3, nil},
		{"more than the device saw acknowledged", []int64{1, 2, 3}, 2, nil},
		{"in the middle", []int64{1, 3}, 3, []int{2}},
		{"at the beginning", []int64{2, 3}, 3, []int{1}},
		{"at the end", []int64{1, 2}, 4, []int{3, 4}},
		{"nothing", nil, 2, []int{1, 2}},
	} {
		f := newFleet()
		d := &device{id: "acme-1"}
		f.add(d)
		for _, n := range c.numbers {
			f.event(&iothub.Event{Device: "acme-1", Sequence: &n, Enqueued: time.Now()})
		}
		if got := d.gaps(c.sent); !slices.Equal(got, c.want) {
			t.Errorf("%s: missing %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRow(t *testing.T) {
	var took []time.Duration
	for i := range 20 {
		took = append(took, time.Duration(20-i)*time.Second)
	}
	if got, want := newRow("x", took), (row{"x", 20, 10, 19, 20}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := newRow("x", took[:1]), (row{"x", 1, 20, 20, 20}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := newRow("x", nil), (row{Stage: "x"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOrderFile(t *testing.T) {
	for _, n := range []int{1, 20, 200, 5000} {
		s := &story{cmd: &StoryCmd{Devices: n, Exit: true}}
		validity, fraction := s.lifetimes()
		o, err := order.ParseTOML([]byte(s.order(fraction)))
		if err != nil {
			t.Fatal(err)
		}
		o.Account = account
		if o.Quantity != int64(n) || !o.InRange(serial(1)) || !o.InRange(serial(n)) || o.InRange(serial(n+1)) {
			t.Errorf("%d devices: an order of %d units, %s to %s", n, o.Quantity, o.SerialFirst, o.SerialLast)
		}
		// A renewal begins early enough to be repeated a few times before the certificate ends.
		if left := time.Duration(float64(validity) * (1 - fraction)); left < time.Minute {
			t.Errorf("%d devices: renewal begins %v before the end", n, left)
		}
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	f, emptied, err := openFolder(dir)
	if err != nil || emptied {
		t.Fatal(emptied, err)
	}
	if err := f.write("old", "x"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openFolder(dir); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("while another demo runs: %v", err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	f, emptied, err = openFolder(dir)
	if err != nil || !emptied {
		t.Fatal(emptied, err)
	}
	if _, err := os.Stat(f.path("old")); !os.IsNotExist(err) {
		t.Errorf("the old demo's file: %v", err)
	}
	f.close()
	if err := os.Remove(filepath.Join(dir, marker)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openFolder(dir); cradle.KindOf(err) != cradle.Conflict {
		t.Errorf("a folder with content and without the marker: %v", err)
	}
}
