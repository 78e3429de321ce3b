package provider_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// unheld are the fields of an export that can be changed or left out without a finding, with the reason for each.
var unheld = map[string]string{
	"header.created":    "of the file, not of the store",
	"head.feed":         "numbers may be left out, as after a restore; a lower one is found",
	"oem.created":       others,
	"oem.lot_key":       others,
	"authority.created": "of an OEM's CA of stations, which is of no account",
	"device.created":    "of one that came by a credential: its first try may have been long before",
	"setting":           "approvals are forgotten when they end",
}

const others = "in an account's export; the installation's log holds it"

// sample is how many rows and leaves of a kind are edited.
const sample = 12

// TestEveryField changes each field of an export in turn, and leaves it out: the audit finds it, or a reason stands above.
func TestEveryField(t *testing.T) {
	testenv.Long(t)
	t.Parallel()
	r, oc := newRig(t, t.TempDir()+"/p.db"), newOtherCA(t)
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.past(oc)
	r.basicUser(cradle.Operational, "line", "b-*")
	first, err := r.plain(cradle.Operational, provider.Enroll, byBasic("line"), plainCSR(t, "b-1", newKey(t), false))
	try(err)
	second, err := r.plain(cradle.Operational, provider.Reenroll, byCert(first), reCSR(t, first))
	try(err)
	_, err = r.plain(cradle.Operational, provider.Reenroll, byCert(second), reCSR(t, second))
	try(err)
	r.fill(300)
	tried := map[string]bool{}
	for _, log := range []string{"acme", provider.InstallationLog} {
		var b bytes.Buffer
		try(r.p.Export(t.Context(), log, ledger.NewWriter(&b)))
		key, err := r.p.LogKey(log)
		try(err)
		editEvery(t, b.Bytes(), key, tried)
	}
	for field, why := range unheld {
		if !tried[field] {
			t.Errorf("%s is found, or is not there: no reason is needed (%s)", field, why)
		}
	}
}

// TestAuditOverTime: what happens to one thing hours apart is no finding. The date of a hold stays when it becomes final.
func TestAuditOverTime(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	o := r.order(nil)
	station := r.station(o)
	r.advance(time.Hour)
	u := r.active(o, station, "SN0001")
	steps := []func() error{
		func() error {
			_, _, err := r.p.ChangeCertificate(t.Context(), "acme", ca.SerialString(u.ldevid.SerialNumber), provider.Suspend, "lost")
			return err
		},
		func() error {
			_, err := r.p.ChangeState(t.Context(), "acme", idOf(u), provider.Suspend, "seen")
			return err
		},
		func() error {
			_, err := r.p.ChangeState(t.Context(), "acme", idOf(u), provider.Release, "found")
			return err
		},
		func() error {
			_, err := r.p.ChangeState(t.Context(), "acme", idOf(u), provider.Suspend, "again")
			return err
		},
		func() error {
			_, err := r.p.ChangeState(t.Context(), "acme", idOf(u), provider.Revoke, "stolen")
			return err
		},
	}
	for i, step := range steps {
		r.advance(time.Hour)
		if err := step(); err != nil {
			t.Fatal(i, err)
		}
		r.check()
	}
}

// editEvery edits an export. Of what is not found it keeps the field.
func editEvery(t *testing.T, export []byte, key string, passed map[string]bool) {
	t.Helper()
	lines := bytes.SplitAfter(export, []byte("\n"))
	verify := func(at int, edited []byte, counts bool) (clean bool) {
		all := slices.Clone(lines)
		all[at] = edited
		if counts {
			all[len(all)-2] = recount(t, all)
		}
		findings, _, err := ledger.Verify(bytes.NewReader(bytes.Join(all, nil)), ledger.Options{Key: key})
		return err == nil && len(findings) == 0
	}
	report := func(field, how string) {
		passed[field] = true
		if unheld[field] == "" {
			t.Errorf("%s was %s, and the audit does not see it", field, how)
		}
	}
	if !verify(0, lines[0], true) {
		t.Fatal("untouched")
	}
	seen := map[string]int{}
	for at, line := range lines[:len(lines)-1] {
		var l map[string]map[string]any
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		kind := slices.Collect(maps.Keys(l))[0]
		if seen[kind]++; seen[kind] > sample && kind != "certificate" {
			continue
		}
		if kind != "header" && kind != "end" && verify(at, nil, true) {
			report(kind, "removed")
		}
		for field, v := range l[kind] {
			for how, edited := range map[string]any{"changed": another(v), "left out": nil} {
				if edited == nil && (v == nil || v == "" || v == 0.0) {
					continue // it says the same
				}
				next := map[string]map[string]any{kind: maps.Clone(l[kind])}
				if next[kind][field] = edited; edited == nil {
					delete(next[kind], field)
				}
				b, err := json.Marshal(next)
				if err != nil {
					t.Fatal(err)
				}
				if verify(at, append(b, '\n'), false) {
					report(kind+"."+field, how)
				}
			}
		}
	}
}

// recount makes the end line of an export fit.
func recount(t *testing.T, lines [][]byte) []byte {
	t.Helper()
	var end ledger.End
	for _, line := range lines[1 : len(lines)-2] {
		switch {
		case len(line) == 0:
		case bytes.HasPrefix(line, []byte(`{"leaf"`)):
			end.Leaves++
		case bytes.HasPrefix(line, []byte(`{"checkpoint"`)):
			end.Checkpoints++
		default:
			end.Rows++
		}
	}
	b, err := json.Marshal(ledger.Line{End: &end})
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// another is another value of the same form.
func another(v any) any {
	switch v := v.(type) {
	case bool:
		return !v
	case float64:
		return v + 1
	case string:
		if at, err := time.Parse(time.RFC3339, v); err == nil {
			return at.AddDate(-1, 0, 0)
		}
		if v == "" {
			return "x"
		}
		b := []byte(v)
		if b[len(b)/2]++; !('a' <= b[len(b)/2] && b[len(b)/2] <= 'f') {
			b[len(b)/2] = 'a' + (b[len(b)/2]+1)%6
		}
		return string(b)
	case map[string]any:
		v = maps.Clone(v)
		for k := range v {
			v[k] = another(v[k])
			return v
		}
	case []any:
		if len(v) > 0 {
			v = slices.Clone(v)
			v[0] = another(v[0])
		}
		return v
	}
	return "x"
}
