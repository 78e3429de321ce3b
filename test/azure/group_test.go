package azure_test

import (
	"slices"
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
