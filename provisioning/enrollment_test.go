package provisioning_test

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
	"github.com/cradle-iot/cradle/provisioning"
)

func keyed(id string, key []byte) provisioning.EnrollmentRequest {
	return provisioning.EnrollmentRequest{ID: id, Attestation: provisioning.Attestation{Kind: provisioning.SymmetricKey, PrimaryKey: key}, Terms: provisioning.Terms{Enabled: true}}
}

func (r *replica) token(id string, key []byte) provisioning.Credentials {
	return provisioning.Credentials{RegistrationID: id, Token: sas.Sign(r.Identity().IDScope+"/registrations/"+id, provisioning.KeyName, key, time.Now().Add(time.Hour))}
}

// A replica that has seen no individual enrolment yet does not let a device of a group in that another replica has just
// barred, nor one whose enrolment is gone.
func TestEnrollmentAcrossReplicas(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		r1, r2 := w.start(true, nil), w.start(true, nil)
		w.enrol(r1)
		leaf := w.ca.Leaf("dev-1", nil)
		testenv.Eventually(t, "the other replica knows the CA", func() bool { _, _, err := r2.register("dev-1", leaf.Leaf); return err == nil })
		r2.arrive("dev-1", leaf.Leaf)

		key := sas.NewKey()
		e, err := r1.PutEnrollment(t.Context(), keyed("dev-1", key))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r2.register("dev-1", leaf.Leaf); err == nil || !strings.Contains(err.Error(), "wants a SAS token") {
			t.Errorf("the group's device, after it got an enrolment of its own: %v", err)
		}
		// By its own enrolment it is the same device, with another way to prove itself: the hub is told.
		c, err := r2.Authenticate(t.Context(), r2.token("DEV-1", key))
		if err != nil {
			t.Fatal(err)
		}
		reg, err := r2.Register(t.Context(), c, provisioning.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		if reg = r2.await(c, reg.Operation); reg.Status != provisioning.Assigned || reg.Group != "" || reg.Kind != provisioning.SymmetricKey || reg.Account != "acme" {
			t.Errorf("registered by its own enrolment: %+v", reg)
		}
		if d := w.hub.Device("dev-1"); d.Authentication.Type != iothub.SAS || d.Authentication.X509Thumbprint != (iothub.X509Thumbprint{}) {
			t.Errorf("entry %+v", d.Authentication)
		}
		// An enrolment without an account leaves the device in its owner's feed.
		w.feed.Set("acme", "dev-1", cradle.Suspended)
		r2.OnBlock("acme", "dev-1", cradle.Suspended)
		testenv.Eventually(t, "the hub bars the device", func() bool { return w.hub.Device("dev-1").Status == iothub.Disabled })
		w.feed.Set("acme", "dev-1", cradle.Active)
		r2.OnBlock("acme", "dev-1", cradle.Active)
		testenv.Eventually(t, "the device is released", func() bool { return w.hub.Device("dev-1").Status == iothub.Enabled })

		// Deleted on one replica, it is gone on the other at its next registration.
		if err := r1.DeleteEnrollment(t.Context(), "dev-1", e.ETag); err != nil {
			t.Fatal(err)
		}
		if _, err := r2.Register(t.Context(), c, provisioning.Ask{}); cradle.KindOf(err) != cradle.Unauthorized {
			t.Errorf("with an enrolment that was deleted: %v", err)
		}
		// And the group admits the certificate again: the entry at the hub follows.
		if reg := r2.arrive("dev-1", leaf.Leaf); reg.Group != "acme-devices" || reg.Primary != "" {
			t.Errorf("by the group again: %+v", reg)
		}
		if d := w.hub.Device("dev-1"); d.Authentication.Type != iothub.SelfSigned || slots(d)[0] != provisioning.Thumbprint(sha256.Sum256(leaf.Leaf.Raw)).String() {
			t.Errorf("entry %+v", d.Authentication)
		}
	})
}

// An individual enrolment that changes between authentication and registration counts as it is now.
func TestEnrollmentChangesUnderWay(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	key := sas.NewKey()
	e, err := r.PutEnrollment(t.Context(), keyed("dev-1", key))
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.Authenticate(t.Context(), r.token("dev-1", key))
	if err != nil {
		t.Fatal(err)
	}
	q := keyed("dev-1", nil) // keys that are not given stay
	q.Enabled, q.IfMatch = false, e.ETag
	if e, err = r.PutEnrollment(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Register(t.Context(), c, provisioning.Ask{}); err == nil || !strings.Contains(err.Error(), "is disabled") {
		t.Errorf("disabled meanwhile: %v", err)
	}
	q.Enabled, q.IfMatch = true, e.ETag
	if _, err = r.PutEnrollment(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if reg, err := r.Register(t.Context(), c, provisioning.Ask{}); err != nil || reg.Status != provisioning.Assigning {
		t.Errorf("enabled again: %+v %v", reg, err)
	}
	q.Device, q.IfMatch = "another", "*"
	if _, err := r.PutEnrollment(t.Context(), q); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("another deviceId: %v", err)
	}
}

func TestCheckEnrollment(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(false, nil)
	for name, c := range map[string]struct {
		change func(*provisioning.EnrollmentRequest)
		want   string
	}{
		"registration id": {func(q *provisioning.EnrollmentRequest) { q.ID = "a b" }, "registration id"},
		"device id":       {func(q *provisioning.EnrollmentRequest) { q.Device = "a b" }, "device id"},
		"short key":       {func(q *provisioning.EnrollmentRequest) { q.PrimaryKey = make([]byte, 15) }, "16 to 64"},
		"long key":        {func(q *provisioning.EnrollmentRequest) { q.SecondaryKey = make([]byte, 65) }, "16 to 64"},
		"hub":             {func(q *provisioning.EnrollmentRequest) { q.Hubs = []string{"nowhere"} }, "not linked"},
		"no kind":         {func(q *provisioning.EnrollmentRequest) { q.Kind = "" }, "not supported"},
		"units":           {func(q *provisioning.EnrollmentRequest) { q.Kind = provisioning.TPMUnits }, "by a group"},
		"no certificate":  {func(q *provisioning.EnrollmentRequest) { q.Kind = provisioning.X509Client }, "no primary client certificate"},
		"broken":          {func(q *provisioning.EnrollmentRequest) { q.Kind, q.Primary = provisioning.X509Client, []byte("x") }, "does not parse"},
		"another's certificate": {func(q *provisioning.EnrollmentRequest) {
			q.Kind, q.Primary = provisioning.X509Client, w.ca.Leaf("dev-2", nil).Leaf.Raw
		}, `for "dev-2", the enrolment for registration id "dev-1"`},
		"another's second certificate": {func(q *provisioning.EnrollmentRequest) {
			q.Kind, q.Primary, q.Secondary = provisioning.X509Client, w.ca.Leaf("DEV-1", nil).Leaf.Raw, w.ca.Leaf("dev-2", nil).Leaf.Raw
		}, `for "dev-2"`},
		"nobody's certificate": {func(q *provisioning.EnrollmentRequest) {
			q.Kind, q.Primary = provisioning.X509Client, w.ca.Leaf("", nil).Leaf.Raw
		}, "common name"},
		"CA that is none": {func(q *provisioning.EnrollmentRequest) {
			q.Kind, q.Primary = provisioning.X509CA, w.ca.Leaf("x", nil).Leaf.Raw
		}, "not a CA"},
		"no endorsement": {func(q *provisioning.EnrollmentRequest) { q.Kind = provisioning.TPM }, "no endorsementKey"},
		"bad endorsement": {func(q *provisioning.EnrollmentRequest) {
			q.Kind, q.Attestation.TPM.Endorsement = provisioning.TPM, []byte("x")
		}, "endorsementKey"},
		"large information": {func(q *provisioning.EnrollmentRequest) { q.Info = []byte(`"` + strings.Repeat("x", 9000) + `"`) }, "optionalDeviceInformation"},
	} {
		q := keyed("dev-1", nil)
		c.change(&q)
		if _, err := r.CheckEnrollment(q); cradle.KindOf(err) != cradle.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, q := range map[string]provisioning.GroupRequest{
		"units without a provider": {Attestation: provisioning.Attestation{Kind: provisioning.TPMUnits, Units: provisioning.Units{Account: "acme", Order: "o"}}},
		"a client's certificate":   {Attestation: provisioning.Attestation{Kind: provisioning.X509Client, Primary: w.ca.Leaf("x", nil).Leaf.Raw}},
		"one TPM":                  {Attestation: provisioning.Attestation{Kind: provisioning.TPM}},
	} {
		q.ID = "g"
		if _, err := r.PutGroup(t.Context(), q); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("group: %s: %v", name, err)
		}
	}
}

// What the hub's operator chose stays: a device that the hub admits by its CA gets no thumbprint, an IoT Edge device stays one.
// An enrolment may make a device one.
func TestEntryOfTheOperator(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(true, nil)
	w.enrol(r)
	r.arrive("dev-1", w.ca.Leaf("dev-1", nil).Leaf)
	w.hub.Edit("dev-1", func(d *iothub.Device) {
		d.Authentication, d.Capabilities.IoTEdge = iothub.Authentication{Type: iothub.CertificateAuthority}, true
	})
	if reg := r.arrive("dev-1", w.ca.Leaf("dev-1", nil).Leaf); reg.Status != provisioning.Assigned {
		t.Errorf("another certificate: %+v", reg)
	}
	if d := w.hub.Device("dev-1"); d.Authentication != (iothub.Authentication{Type: iothub.CertificateAuthority}) || !d.Capabilities.IoTEdge {
		t.Errorf("entry %+v", d)
	}
	key := sas.NewKey()
	for _, id := range []string{"dev-1", "edge-2"} {
		q := keyed(id, key)
		q.IoTEdge = true
		if _, err := r.PutEnrollment(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		c, err := r.Authenticate(t.Context(), r.token(id, key))
		if err != nil {
			t.Fatal(err)
		}
		reg, err := r.Register(t.Context(), c, provisioning.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		r.await(c, reg.Operation)
		if d := w.hub.Device(cradle.DeviceID(id)); d.Authentication.Type != iothub.SAS || !d.Capabilities.IoTEdge {
			t.Errorf("entry of %s: %+v", id, d)
		}
	}
}

// owners know the account acme, with one profile, one order and one lot of it.
type owners struct{}

func (owners) CheckAccount(_ context.Context, account cradle.AccountID, policy string) error {
	if account != "acme" || policy != "" && policy != "operational" {
		return cradle.Errorf(cradle.Invalid, "%s has no %q", account, policy)
	}
	return nil
}

func (owners) CheckUnits(_ context.Context, u provisioning.Units) error {
	if u.Order != "" && u.Order != "o" || slices.ContainsFunc(u.Lots, func(l cradle.LotID) bool { return l != "l" }) {
		return cradle.Errorf(cradle.Invalid, "no such units: %+v", u)
	}
	return nil
}

// An account or a credential policy that does not exist is refused with the enrolment, and not when the device registers.
func TestOwners(t *testing.T) {
	w := newWorld(t, t.TempDir()+"/p.db")
	r := w.start(false, func(c *provisioning.Config) { c.Owners, c.Units = owners{}, noUnits{} })
	key := provisioning.Attestation{Kind: provisioning.SymmetricKey}
	client := provisioning.Attestation{Kind: provisioning.X509Client, Primary: w.ca.Leaf("dev-1", nil).Leaf.Raw}
	unitsOf := func(account cradle.AccountID, order cradle.OrderID, lots ...cradle.LotID) provisioning.Attestation {
		return provisioning.Attestation{Kind: provisioning.TPMUnits, Units: provisioning.Units{Account: account, Order: order, Lots: lots}}
	}
	units := func(account cradle.AccountID) provisioning.Attestation { return unitsOf(account, "o") }
	for name, c := range map[string]struct {
		account cradle.AccountID
		provisioning.Attestation
		policy string
		good   bool
	}{
		"nobody's":                          {"", key, "", true},
		"an account":                        {"acme", key, "", true},
		"no account":                        {"nosuch", key, "", false},
		"an account's policy":               {"acme", key, "operational", true},
		"a policy with its account":         {"", key, "acme-operational", true},
		"another account's policy":          {"acme", key, "nosuch-operational", false},
		"no policy":                         {"acme", key, "nosuch", false},
		"a policy of no account":            {"", key, "operational", false},
		"a policy of the certificate's own": {"", client, "operational", true},
		"no policy of an account":           {"", client, "acme-nosuch", false},
	} {
		q := provisioning.EnrollmentRequest{ID: "dev-1", Account: c.account, Attestation: c.Attestation, Terms: provisioning.Terms{Enabled: true, CredentialPolicy: c.policy}}
		_, err := r.PutEnrollment(t.Context(), q)
		if (err == nil) != c.good || !c.good && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			err = r.DeleteEnrollment(t.Context(), "dev-1", "")
		} else if _, gone := r.Enrollment(t.Context(), "dev-1"); cradle.KindOf(gone) == cradle.NotFound {
			err = nil
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n, err := r.AddEnrollments(t.Context(), []provisioning.EnrollmentRequest{q}); (n == 1 && err == nil) != c.good {
			t.Errorf("%s, by an import: %d %v", name, n, err)
		}
		if err := r.DeleteEnrollment(t.Context(), "dev-1", ""); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		provisioning.Attestation
		policy string
		good   bool
	}{
		"units":                       {units("acme"), "", true},
		"units of no account":         {units("nosuch"), "", false},
		"units of no order":           {unitsOf("acme", "nosuch"), "", false},
		"units of a lot":              {unitsOf("acme", "", "l"), "", true},
		"units of no lot":             {unitsOf("acme", "o", "l", "nosuch"), "", false},
		"units under a policy":        {units("acme"), "operational", true},
		"units under none that is":    {units("acme"), "nosuch", false},
		"certificates' own":           {provisioning.SignedBy(w.ca.Cert, nil), "operational", true},
		"certificates', of nobody":    {provisioning.SignedBy(w.ca.Cert, nil), "nosuch-operational", false},
		"keys, whose account is none": {key, "operational", false},
	} {
		_, err := r.PutGroup(t.Context(), provisioning.GroupRequest{ID: "g", Attestation: c.Attestation, Terms: provisioning.Terms{Enabled: true, CredentialPolicy: c.policy}})
		if (err == nil) != c.good || !c.good && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("group of %s: %v", name, err)
		}
		if err := r.DeleteGroup(t.Context(), "g", ""); (err == nil) != c.good {
			t.Errorf("group of %s: %v", name, err)
		}
	}
}

type noUnits struct{}

func (noUnits) UnitByEK(context.Context, [32]byte) (provisioning.Unit, error) {
	return provisioning.Unit{}, cradle.Errorf(cradle.NotFound, "no unit")
}
