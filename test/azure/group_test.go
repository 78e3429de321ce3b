package azure_test

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// attestation is a mechanism as the service API shows it.
type attestation struct {
	Type         string
	SymmetricKey struct{ PrimaryKey, SecondaryKey string }
	X509         struct {
		SigningCertificates struct {
			Primary, Secondary *struct{ Certificate, Info any }
		}
	}
}

// enrolment is an individual enrolment or a group.
type enrolment struct {
	RegistrationID, EnrollmentGroupID, DeviceID, ETag, ProvisioningStatus string
	Attestation                                                           attestation
	InitialTwin                                                           struct{ Tags, Properties map[string]any }
}

// The service SDK walks a group and an individual enrolment through their lives; stale etags are 412.
func (s suite) TestEnrolmentGroups(t *testing.T) {
	first, second := newCA(t, "Group life 1"), newCA(t, "Group life 2")
	s.group(t, "beside", "enabled", newCA(t, "Beside").pem)
	var r struct {
		Made, Changed                enrolment
		RefusedChange, RefusedDelete refusal
		Found                        []string
		Gone                         refusal
	}
	s.must(t, &r, "enrolments.group", with{"connection": s.dps, "id": "life", "cert": first.pem, "next": second.pem})
	if r.Made.ETag == "" || r.Changed.ETag == r.Made.ETag || r.Changed.Attestation.X509.SigningCertificates.Secondary == nil {
		t.Errorf("made %+v, changed %+v", r.Made, r.Changed)
	}
	for _, e := range []refusal{r.RefusedChange, r.RefusedDelete} {
		if !e.is("InvalidEtagError", 412, "etag") {
			t.Errorf("a stale etag: %+v", e)
		}
	}
	if !slices.Contains(r.Found, "life") || !slices.Contains(r.Found, "beside") || r.Gone.Status != 404 {
		t.Errorf("found %v, then %+v", r.Found, r.Gone)
	}
}

// A bearer token has the rights that it was made with, and no others.
func (s suite) TestBearerToken(t *testing.T) {
	file := s.Path("token")
	s.MustCradle("service-token", "--name", "dashboard", "--rights", "enrollmentRead", "--out", file)
	token, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	given := with{"host": s.host, "token": strings.TrimSpace(string(token)), "group": "devices"}
	var g enrolment
	if s.must(t, &g, "enrolments.byToken", given); g.EnrollmentGroupID != "devices" {
		t.Errorf("%+v", g)
	}
	given["remove"] = true
	if e := s.refused(t, "enrolments.byToken", given); e.Name != "UnauthorizedError" || e.Status != 401 || !e.says("nrollmentWrite") {
		t.Errorf("a right that the token has not: %v", e)
	}
	given["token"] = given["token"].(string) + "x"
	if e := s.refused(t, "enrolments.byToken", given); e.Name != "UnauthorizedError" || e.Status != 401 {
		t.Errorf("a token that was changed: %v", e)
	}
}
