package dpsserver_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/dpsserver"
)

func TestImport(t *testing.T) {
	s := newServer(t, nil)
	var lines strings.Builder
	for i := range 500 {
		fmt.Fprintf(&lines, `{"registrationId":"Imp-%03d","attestation":{"type":"symmetricKey"}}`+"\n", i)
	}
	var r dps.ImportResult
	s.must(200, "POST", "/enrollments/import"+v, lines.String(), &r)
	if r.Added != 500 || r.Present != 0 {
		t.Errorf("first: %+v", r)
	}
	before, err := s.svc.Enrollment(t.Context(), "imp-007")
	if err != nil {
		t.Fatal(err)
	}
	s.must(200, "POST", "/enrollments/import"+v, lines.String()+"\n\n"+`{"registrationId":"imp-new","attestation":{"type":"symmetricKey"},"provisioningStatus":"disabled"}`, &r)
	if r.Added != 1 || r.Present != 500 {
		t.Errorf("again: %+v", r)
	}
	twice := `{"registrationId":"twice","attestation":{"type":"symmetricKey"}}` + "\n" + `{"registrationId":"TWICE","attestation":{"type":"symmetricKey"}}`
	s.must(200, "POST", "/enrollments/import"+v, twice, &r)
	if r.Added != 1 || r.Present != 1 {
		t.Errorf("one device on two lines: %+v", r)
	}
	if after, err := s.svc.Enrollment(t.Context(), "imp-007"); err != nil || string(after.PrimaryKey) != string(before.PrimaryKey) {
		t.Errorf("an import changed what was there: %v", err)
	}
	for _, c := range []struct{ name, body, want string }{
		{"not JSON", `{"registrationId":"ok-1","attestation":{"type":"symmetricKey"}}` + "\nhello", "line 2"},
		{"bad enrolment", `{"registrationId":"ok-1","attestation":{"type":"symmetricKey"}}` + "\n" + `{"registrationId":"bad-1","attestation":{"type":"tpm"}}`, "enrolment bad-1"},
		{"an attestation that is none", `{"registrationId":"ok-1","attestation":{"type":"x"}}`, "attestation type"},
		{"too many", strings.Repeat(`{"registrationId":"ok-1","attestation":{"type":"symmetricKey"}}`+"\n", dps.MaxImportRows+1), "more than"},
		{"too large", `"` + strings.Repeat("x", dps.MaxImport) + `"`, "larger than"},
	} {
		status, b, _ := s.send("POST", "/enrollments/import"+v, s.owner(), c.body)
		if status/100 != 4 || !strings.Contains(string(b), c.want) {
			t.Errorf("%s: %d %s, want %q", c.name, status, b, c.want)
		}
	}
	if _, err := s.svc.Enrollment(t.Context(), "ok-1"); cradle.KindOf(err) != cradle.NotFound {
		t.Errorf("a refused import left something: %v", err)
	}
	if status, b, _ := s.send("POST", "/enrollments/import"+v, s.policy("enrollmentRead"), lines.String()); status != 401 {
		t.Errorf("a reader imports: %d %s", status, b)
	}
}

// What is read from an import is what the same line says when it is read alone; refusals have a kind.
func FuzzReadImport(f *testing.F) {
	f.Add(`{"registrationId":"a","attestation":{"type":"symmetricKey","symmetricKey":{"primaryKey":"AAAAAAAAAAAAAAAAAAAAAA=="}}}`)
	f.Add(`{"registrationId":"a","attestation":{"type":"tpm","tpm":{"endorsementKey":"AAAA"}},"initialTwin":{"tags":{}},"iotHubs":["h"]}` + "\n{}")
	f.Add(`{"registrationId":"a","attestation":{"type":"x509","x509":{"clientCertificates":{"primary":{"certificate":"AAAA"}}}}}`)
	f.Add("\n\n null \n")
	f.Fuzz(func(t *testing.T, body string) {
		rs, err := dpsserver.ReadImport([]byte(body))
		if err != nil {
			if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.TooLarge {
				t.Fatalf("refusal without its kind: %v", err)
			}
			return
		}
		n := 0
		for line := range strings.Lines(body) {
			if strings.TrimSpace(line) == "" {
				continue
			}
			var b dps.Enrollment
			if err := json.Unmarshal([]byte(line), &b); err != nil {
				t.Fatalf("line %q was let pass: %v", line, err)
			}
			r, err := dpsserver.EnrollmentRequest(b)
			if err != nil || n >= len(rs) || r.ID != rs[n].ID || r.Kind != rs[n].Kind || r.Kind == provisioning.TPMUnits && b.Attestation.TPMUnits == nil {
				t.Fatalf("line %q: %+v %v", line, r, err)
			}
			n++
		}
		if n != len(rs) {
			t.Fatalf("%d of %d lines", len(rs), n)
		}
	})
}
