package provisioning

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// Group is an enrolment group: devices that prove themselves in one way.
type Group struct {
	ID   string // canonical lower case
	ETag string
	Attestation
	Terms
	Created time.Time
	Updated time.Time
}

// CAs returns the thumbprints of the group's signing certificates; none when it has another attestation.
func (g *Group) CAs() []Thumbprint {
	if g.Kind != X509CA {
		return nil
	}
	out := []Thumbprint{sha256.Sum256(g.Primary)}
	if len(g.Secondary) > 0 {
		out = append(out, sha256.Sum256(g.Secondary))
	}
	return out
}

// GroupRequest is what an operator wants a group to be.
type GroupRequest struct {
	ID string
	Attestation
	Terms          // Allocation empty: Static when Hubs has one entry, else Hashed; Hubs are names or hosts of linked hubs
	IfMatch string // empty: create; "*": replace whatever is there; else the present ETag
}

// SignedBy is the attestation by signing certificates; secondary may be nil.
func SignedBy(primary, secondary *x509.Certificate) Attestation {
	a := Attestation{Kind: X509CA, Primary: primary.Raw}
	if secondary != nil && !bytes.Equal(secondary.Raw, primary.Raw) {
		a.Secondary = secondary.Raw
	}
	return a
}

// PutGroup creates or replaces a group. Creating a group that exists already is a Conflict, unless it
// is exactly the same: then a lost answer is answered again.
func (s *Service) PutGroup(ctx context.Context, r GroupRequest) (Group, error) {
	id, err := ParseRegistrationID(r.ID)
	if err != nil {
		return Group{}, cradle.Errorf(cradle.Invalid, "enrolment group id %.140q: use 1 to 128 letters, digits and inner '-', '.', '_', ':'", r.ID)
	}
	want, err := s.checkGroup(r)
	if err != nil {
		return Group{}, err
	}
	if err := s.checkOwner(ctx, "", want.Attestation, want.Terms); err != nil {
		return Group{}, err
	}
	want.ID = string(id)
	now := s.time()
	etag := newETag()
	g, err := s.store.PutGroup(ctx, want.ID, func(cur *Group) (Group, error) {
		next := want
		next.ETag, next.Created, next.Updated = etag, now, now
		switch {
		case cur == nil && r.IfMatch != "":
			return Group{}, errAbsent(r.IfMatch, "enrolment group %q does not exist", id)
		case cur == nil:
			return next, nil
		}
		if r.Kind == SymmetricKey && cur.Kind == SymmetricKey {
			next.Attestation = keepKeys(r.Attestation, cur.Attestation, next.Attestation)
		}
		switch {
		case r.IfMatch == "" && same(*cur, next):
			return *cur, nil
		case r.IfMatch == "":
			return Group{}, cradle.Errorf(cradle.Conflict, "enrolment group %q exists already", id).
				WithHint("read it and send its etag along to replace it")
		}
		if err := checkETag(r.IfMatch, cur.ETag); err != nil {
			return Group{}, err
		}
		next.Created = cur.Created
		return next, nil
	})
	if err != nil {
		return Group{}, err
	}
	s.refreshGroups(ctx)
	return g, nil
}

func same(a, b Group) bool {
	return reflect.DeepEqual(a.Attestation, b.Attestation) && sameTerms(a.Terms, b.Terms)
}

func (s *Service) checkGroup(r GroupRequest) (Group, error) {
	g := Group{Attestation: r.Attestation}
	var err error
	if g.Terms, err = s.checkTerms(r.Terms); err != nil {
		return g, err
	}
	switch r.Kind {
	case X509CA:
		g.Attestation, err = checkCAs(r.Attestation, s.now())
	case SymmetricKey:
		g.Attestation, err = checkKeys(r.Attestation)
	case TPMUnits:
		if s.units == nil {
			return g, cradle.Errorf(cradle.Invalid, "TPM groups need a credential provider beside this service, which says what its units are")
		}
		g.Attestation, err = checkUnits(r.Attestation)
	case TPM, X509Client:
		return g, cradle.Errorf(cradle.Invalid, "attestation %q is for individual enrolments, not for a group", r.Kind).
			WithHint("a group of TPMs is one of units: give the account, and an order or its lots")
	default:
		return g, cradle.Errorf(cradle.Invalid, "attestation %q is not supported in a group", r.Kind)
	}
	return g, err
}

// checkCA reports whether a certificate may be enrolled as one that signs devices' certificates.
func checkCA(der []byte, now time.Time) error {
	if len(der) == 0 {
		return cradle.Errorf(cradle.Invalid, "enrolment group has no primary signing certificate")
	}
	c, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return cradle.Errorf(cradle.Invalid, "signing certificate does not parse: %v", err)
	case !c.BasicConstraintsValid || !c.IsCA:
		return cradle.Errorf(cradle.Invalid, "certificate %q is not a CA certificate", c.Subject).
			WithHint("register the CA that signs the devices' certificates, not a device's certificate")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return cradle.Errorf(cradle.Invalid, "certificate %q may not sign certificates (key usage)", c.Subject)
	case now.After(c.NotAfter):
		return cradle.Errorf(cradle.Invalid, "certificate %q expired at %s", c.Subject, c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// Group returns one group.
func (s *Service) Group(ctx context.Context, id string) (Group, error) {
	return s.store.Group(ctx, strings.ToLower(id))
}

// Groups returns every group in order of id.
func (s *Service) Groups(ctx context.Context) ([]Group, error) { return s.store.Groups(ctx) }

// DeleteGroup deletes a group; ifMatch empty or "*" means any version. Devices of the group cannot
// register any more; their registrations stay, so that revocation still reaches the hub.
func (s *Service) DeleteGroup(ctx context.Context, id, ifMatch string) error {
	err := s.store.DeleteGroup(ctx, strings.ToLower(id), func(g Group) error {
		if ifMatch == "" {
			return nil
		}
		return checkETag(ifMatch, g.ETag)
	})
	if err != nil {
		return err
	}
	s.refreshGroups(ctx)
	return nil
}

func newETag() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func checkETag(ifMatch, etag string) error {
	if ifMatch == "*" || ifMatch == etag {
		return nil
	}
	return errPrecondition("etag %.60q does not match: it has changed since it was read", ifMatch)
}

// errAbsent refuses to replace what does not exist: Azure answers 404 to "*", which asks for no version, and else 412.
func errAbsent(ifMatch, format string, args ...any) error {
	if ifMatch == "*" {
		return cradle.Errorf(cradle.NotFound, format, args...).WithHint("leave If-Match out to create it")
	}
	return errPrecondition(format, args...)
}

func errPrecondition(format string, args ...any) error {
	detail := fmt.Sprintf(format, args...)
	e := &cradle.Error{Kind: cradle.Conflict, Detail: detail, Err: ErrETag}
	return e.WithHint("read it again and repeat the change with the new etag")
}
