package hub

import (
	"errors"
	"testing"
	"time"

	"github.com/cradle-iot/cradle/protocol/iothub"
)

// TestNextCredential: what a request does beside the one that is on record.
func TestNextCredential(t *testing.T) {
	now := time.Now()
	have := func(state CredentialState, change ...func(*CredentialRequest)) *CredentialRequest {
		r := &CredentialRequest{ID: "one", CSR: []byte("csr 1"), State: state, Asked: now, Expires: now.Add(time.Minute), Begun: now.Add(-time.Minute), Count: 3}
		for _, f := range change {
			f(r)
		}
		return r
	}
	expired := func(r *CredentialRequest) { r.Expires = now }
	often := func(r *CredentialRequest) { r.Count = credentialRate }
	longAgo := func(r *CredentialRequest) { r.Begun, r.Count = now.Add(-time.Hour), credentialRate }
	for _, c := range []struct {
		name             string
		present          *CredentialRequest
		id, csr, replace string
		code             int  // refused with
		same             bool // answered by the present one
		count            int64
	}{
		{name: "the first", id: "one", csr: "csr 1", count: 1},
		{name: "again, while active", present: have(CredentialActive), id: "one", csr: "csr 1", same: true},
		{name: "again, when issued", present: have(CredentialIssued), id: "one", csr: "csr 1", same: true},
		{name: "again, when refused", present: have(CredentialRefused), id: "one", csr: "csr 1", same: true},
		{name: "again, with another CSR", present: have(CredentialIssued), id: "one", csr: "csr 2", code: iothub.CredentialBadCSR},
		{name: "again, long after", present: have(CredentialIssued, expired), id: "one", csr: "csr 1", count: 4},
		{name: "another, while one is active", present: have(CredentialActive), id: "two", csr: "csr 2", code: iothub.CredentialActive},
		{name: "another, when the active one has expired", present: have(CredentialActive, expired), id: "two", csr: "csr 2", count: 4},
		{name: "another, when one was issued", present: have(CredentialIssued), id: "two", csr: "csr 2", count: 4},
		{name: "in place of any", present: have(CredentialActive), id: "two", csr: "csr 2", replace: "*", count: 4},
		{name: "in place of any, of which there is none", id: "two", csr: "csr 2", replace: "*", count: 1},
		{name: "in place of the active one", present: have(CredentialActive), id: "two", csr: "csr 2", replace: "one", count: 4},
		{name: "in place of one that is not there", present: have(CredentialActive), id: "two", csr: "csr 2", replace: "three", code: iothub.CredentialNothing},
		{name: "in place of one that has ended", present: have(CredentialIssued), id: "two", csr: "csr 2", replace: "one", code: iothub.CredentialNothing},
		{name: "too many", present: have(CredentialIssued, often), id: "two", csr: "csr 2", code: iothub.CredentialThrottled},
		{name: "too many, the last expired", present: have(CredentialIssued, often, expired), id: "two", csr: "csr 2", code: iothub.CredentialThrottled},
		{name: "as many in another hour", present: have(CredentialIssued, longAgo), id: "two", csr: "csr 2", count: 1},
	} {
		got, err := nextCredential(now, c.present, c.id, []byte(c.csr), c.replace)
		var refused *CredentialError
		switch {
		case c.code != 0:
			if !errors.As(err, &refused) || refused.Code != c.code || got != nil {
				t.Errorf("%s: %v, %v; want %d", c.name, got, err, c.code)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.same:
			if got != c.present {
				t.Errorf("%s: %+v", c.name, got)
			}
		case got.ID != c.id || string(got.CSR) != c.csr || got.State != CredentialActive || got.Count != c.count || !got.Expires.After(now) || got.Correlation == "":
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
