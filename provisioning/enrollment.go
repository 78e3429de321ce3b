package provisioning

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"reflect"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Enrollment admits one device, by its registration id.
type Enrollment struct {
	ID      RegistrationID
	ETag    string
	Device  cradle.DeviceID  // at the hub; empty: the registration id
	Account cradle.AccountID // whose status feed may block it; empty: none
	Attestation
	Terms
	Info    json.RawMessage // optionalDeviceInformation, stored only
	Created time.Time
	Updated time.Time
}

// DeviceID at the hub.
func (e *Enrollment) DeviceID() cradle.DeviceID {
	if e.Device != "" {
		return e.Device
	}
	return cradle.DeviceID(e.ID)
}

// EnrollmentRequest is what an operator wants an enrolment to be.
type EnrollmentRequest struct {
	ID      string
	Device  string // at the hub; empty: the registration id
	Account cradle.AccountID
	Attestation
	Terms
	Info    json.RawMessage
	IfMatch string // empty: create; "*": replace whatever is there; else the present ETag
}

// maxInfo bounds optionalDeviceInformation, in bytes.
const maxInfo = 8 << 10

// PutEnrollment creates or replaces an individual enrolment. Creating one that exists already is a Conflict,
// unless it is exactly the same: then a lost answer is answered again. Keys that are not given are made.
func (s *Service) PutEnrollment(ctx context.Context, r EnrollmentRequest) (Enrollment, error) {
	want, err := s.CheckEnrollment(r)
	if err != nil {
		return Enrollment{}, err
	}
	if err := s.checkOwner(ctx, want.Account, want.Attestation, want.Terms); err != nil {
		return Enrollment{}, err
	}
	e, err := s.store.PutEnrollment(ctx, want.ID, func(cur *Enrollment) (Enrollment, error) {
		next := want
		switch {
		case cur == nil && r.IfMatch != "":
			return Enrollment{}, errAbsent(r.IfMatch, "individual enrolment %q does not exist", want.ID)
		case cur == nil:
			return next, nil
		}
		if r.Kind == SymmetricKey && cur.Kind == SymmetricKey {
			next.Attestation = keepKeys(r.Attestation, cur.Attestation, next.Attestation)
		}
		if r.IfMatch == "" {
			if sameEnrollment(*cur, next) {
				return *cur, nil
			}
			return Enrollment{}, cradle.Errorf(cradle.Conflict, "individual enrolment %q exists already", want.ID).
				WithHint("read it and send its etag along to replace it")
		}
		if err := checkETag(r.IfMatch, cur.ETag); err != nil {
			return Enrollment{}, err
		}
		if next.DeviceID() != cur.DeviceID() {
			return Enrollment{}, cradle.Errorf(cradle.Invalid, "the deviceId of individual enrolment %q is %q and cannot be changed", want.ID, cur.DeviceID()).
				WithHint("delete the enrolment and its registration, and enrol the device anew")
		}
		next.Created = cur.Created
		return next, nil
	})
	if err != nil {
		return Enrollment{}, err
	}
	if !s.groups.now().individuals {
		s.refreshGroups(ctx)
	}
	return e, nil
}

// keepKeys leaves those keys as they are that the operator did not give: they are never shown, so he cannot send
// them along.
func keepKeys(given, cur, next Attestation) Attestation {
	if len(given.PrimaryKey) == 0 {
		next.PrimaryKey = cur.PrimaryKey
	}
	if len(given.SecondaryKey) == 0 {
		next.SecondaryKey = cur.SecondaryKey
	}
	return next
}

func sameEnrollment(a, b Enrollment) bool {
	return a.Device == b.Device && a.Account == b.Account && reflect.DeepEqual(a.Attestation, b.Attestation) && sameTerms(a.Terms, b.Terms) && bytes.Equal(a.Info, b.Info)
}

// CheckEnrollment returns the enrolment that a request describes, with a new ETag, created now.
func (s *Service) CheckEnrollment(r EnrollmentRequest) (Enrollment, error) {
	var e Enrollment
	id, err := ParseRegistrationID(r.ID)
	if err != nil {
		return e, err
	}
	now := s.time()
	e = Enrollment{ID: id, ETag: newETag(), Account: r.Account, Created: now, Updated: now}
	if r.Device != "" && !strings.EqualFold(r.Device, r.ID) {
		if e.Device = cradle.DeviceID(r.Device); iothub.CheckDeviceID(e.Device) != nil {
			return e, iothub.CheckDeviceID(e.Device)
		}
	}
	if e.Terms, err = s.checkTerms(r.Terms); err != nil {
		return e, err
	}
	if len(r.Info) > 0 {
		var b bytes.Buffer
		if len(r.Info) > maxInfo || json.Compact(&b, r.Info) != nil {
			return e, cradle.Errorf(cradle.Invalid, "optionalDeviceInformation is not JSON of at most %d bytes", maxInfo)
		}
		e.Info = b.Bytes()
	}
	switch r.Kind {
	case X509Client:
		e.Attestation, err = checkClients(id, r.Attestation, now)
	case X509CA:
		e.Attestation, err = checkCAs(r.Attestation, now)
	case SymmetricKey:
		e.Attestation, err = checkKeys(r.Attestation)
	case TPM:
		e.Attestation, err = checkTPM(r.Attestation)
	case TPMUnits:
		err = cradle.Errorf(cradle.Invalid, "units of an order are enrolled by a group")
	default:
		err = cradle.Errorf(cradle.Invalid, "attestation %q is not supported", r.Kind)
	}
	return e, err
}

// checkClients checks the certificates of a device itself: one for another name would never let it in.
func checkClients(id RegistrationID, a Attestation, now time.Time) (Attestation, error) {
	if len(a.Primary) == 0 {
		return a, cradle.Errorf(cradle.Invalid, "individual enrolment has no primary client certificate")
	}
	for _, der := range [][]byte{a.Primary, a.Secondary} {
		if len(der) == 0 {
			continue
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return a, cradle.Errorf(cradle.Invalid, "client certificate does not parse: %v", err)
		}
		if now.After(c.NotAfter) {
			return a, cradle.Errorf(cradle.Invalid, "client certificate %q expired at %s", c.Subject, c.NotAfter.Format(time.RFC3339))
		}
		cn, err := commonName(c)
		if err != nil {
			return a, cradle.Errorf(cradle.Invalid, "client certificate %q: %v", c.Subject, err)
		}
		if !strings.EqualFold(cn, string(id)) {
			return a, cradle.Errorf(cradle.Invalid, "client certificate is for %.70q, the enrolment for registration id %q", cn, id).
				WithHint("the registration id must be the certificate's common name: the device could not register by it")
		}
	}
	return Attestation{Kind: X509Client, Primary: a.Primary, Secondary: a.Secondary}, nil
}

// checkCAs checks signing certificates.
func checkCAs(a Attestation, now time.Time) (Attestation, error) {
	out := Attestation{Kind: X509CA, Primary: a.Primary, Secondary: a.Secondary}
	if err := checkCA(a.Primary, now); err != nil {
		return out, err
	}
	if bytes.Equal(a.Primary, a.Secondary) { // one certificate in both slots is one
		out.Secondary = nil
	}
	if len(out.Secondary) > 0 {
		return out, checkCA(out.Secondary, now)
	}
	return out, nil
}

// checkKeys checks symmetric keys and makes those that are missing, as Azure does.
func checkKeys(a Attestation) (Attestation, error) {
	for _, k := range []*[]byte{&a.PrimaryKey, &a.SecondaryKey} {
		switch n := len(*k); {
		case n == 0:
			*k = sas.NewKey()
		case n < 16 || n > 64:
			return a, cradle.Errorf(cradle.Invalid, "a symmetric key has %d bytes, not 16 to 64", n)
		}
	}
	return Attestation{Kind: SymmetricKey, PrimaryKey: a.PrimaryKey, SecondaryKey: a.SecondaryKey}, nil
}

func checkTPM(a Attestation) (Attestation, error) {
	if len(a.TPM.Endorsement) == 0 {
		return a, cradle.Errorf(cradle.Invalid, "TPM attestation has no endorsementKey")
	}
	if _, err := tpmblob.Parse("endorsementKey", a.TPM.Endorsement); err != nil {
		return a, err
	}
	if len(a.TPM.StorageRoot) > 0 {
		if _, err := tpmblob.Parse("storageRootKey", a.TPM.StorageRoot); err != nil {
			return a, err
		}
	}
	return Attestation{Kind: TPM, TPM: a.TPM}, nil
}

func checkUnits(a Attestation) (Attestation, error) {
	if err := cradle.CheckID("account of a TPM group", string(a.Units.Account)); err != nil {
		return a, err
	}
	if a.Units.Order == "" && len(a.Units.Lots) == 0 {
		return a, cradle.Errorf(cradle.Invalid, "a TPM group names an order, or lots").WithHint("an account alone, or a maker of TPMs, admits nobody")
	}
	return Attestation{Kind: TPMUnits, Units: a.Units}, nil
}

// Enrollment returns one individual enrolment.
func (s *Service) Enrollment(ctx context.Context, id RegistrationID) (Enrollment, error) {
	return s.store.Enrollment(ctx, id)
}

// EnrollmentPage returns up to limit individual enrolments in order of id, after the given id.
func (s *Service) EnrollmentPage(ctx context.Context, after RegistrationID, limit int) ([]Enrollment, error) {
	return s.store.EnrollmentPage(ctx, after, limit)
}

// DeleteEnrollment deletes an individual enrolment; ifMatch empty or "*" means any version. The device's
// registration and its entry at the hub stay.
func (s *Service) DeleteEnrollment(ctx context.Context, id RegistrationID, ifMatch string) error {
	return s.store.DeleteEnrollment(ctx, id, func(e Enrollment) error {
		if ifMatch == "" {
			return nil
		}
		return checkETag(ifMatch, e.ETag)
	})
}

// AddEnrollments is the import of many at once: those that exist already are left as they are. It returns how many
// were added.
func (s *Service) AddEnrollments(ctx context.Context, rs []EnrollmentRequest) (int, error) {
	es := make([]Enrollment, len(rs))
	for i, r := range rs {
		e, err := s.CheckEnrollment(r)
		if err == nil {
			err = s.checkOwner(ctx, e.Account, e.Attestation, e.Terms)
		}
		if err != nil {
			detail, hint := cradle.Public(err)
			return 0, &cradle.Error{Kind: cradle.KindOf(err), Detail: "enrolment " + r.ID + ": " + detail, Hint: hint, Err: err}
		}
		es[i] = e
	}
	n, err := s.store.AddEnrollments(ctx, es)
	if err == nil && n > 0 && !s.groups.now().individuals {
		s.refreshGroups(ctx)
	}
	return n, err
}
