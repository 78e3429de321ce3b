package provisioning

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/dps/tpmblob"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Caller is a device that was authenticated for one registration id.
type Caller struct {
	ID         RegistrationID
	Device     cradle.DeviceID  // at the hub
	Account    cradle.AccountID // may be empty
	Group      string           // that admits it; empty: its individual enrolment does
	Kind       AttestationKind
	Thumbprint Thumbprint // of the certificate it showed, or of its endorsement key; zero: none
	Facts      Facts
	Waits      string // why it must wait for an approval before it gets a hub; empty: it need not

	shown     Credentials
	etag      string // of the enrolment or group
	notBefore time.Time
	keys      Keys // the hub's keys, of symmetric keys
	ek, srk   *tpmblob.Public
	roll      *roll // by which it was admitted
}

// current reports whether what admitted the device is still enrolled, unchanged.
func (c *Caller) current(by Enrolled) bool {
	if by.Individual != nil {
		return c.Group == "" && c.etag == by.Individual.ETag
	}
	return c.Group != "" && by.Group != nil && c.etag == by.Group.ETag
}

// Facts are what the attestation proved, for allocation rules.
type Facts struct {
	Attestation AttestationKind  `json:"attestation"`
	Enrollment  string           `json:"enrollment,omitempty"` // the registration id of an individual enrolment
	Group       string           `json:"group,omitempty"`
	Account     cradle.AccountID `json:"account,omitempty"`
	Order       cradle.OrderID   `json:"order,omitempty"`
	Lot         cradle.LotID     `json:"lot,omitempty"`
	Tier        cradle.Tier      `json:"tier,omitempty"`
	Maker       cradle.MakerID   `json:"tpm_maker,omitempty"`
}

// String is their JSON.
func (f Facts) String() string {
	b, err := json.Marshal(f)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return string(b)
}

// pending is everything on which the decision about a device rests.
type pending struct {
	now        time.Time
	scope      string // id scope
	id         RegistrationID
	shown      Credentials
	individual *Enrollment // nil: none
	roll       *roll
	present    *Registration // of id; nil: none, or of no interest to what is shown
	unit       *Unit         // whose TPM it is; nil: none
	secret     []byte        // from which challenges are made
}

// decide says who the device is. It is a pure function of p, but for what the pool remembers. Refusals are
// cradle.Unauthorized, or a *TPMChallenge.
func (p *pending) decide() (*Caller, error) {
	c := &Caller{ID: p.id, Device: cradle.DeviceID(p.id), shown: p.shown, roll: p.roll}
	var err error
	if p.individual != nil {
		c.Device, c.Account, c.etag, c.Kind = p.individual.DeviceID(), p.individual.Account, p.individual.ETag, p.individual.Kind
		err = p.byEnrollment(c, p.individual)
	} else {
		err = p.byGroup(c)
	}
	if err != nil {
		if err = p.barred(err); err != nil {
			return nil, err
		}
	}
	c.Facts.Attestation, c.Facts.Group, c.Facts.Account = c.Kind, c.Group, c.Account
	if p.individual != nil {
		c.Facts.Enrollment = string(p.id)
		if !p.individual.Enabled {
			return nil, cradle.Errorf(cradle.Unauthorized, "individual enrolment %q is disabled", p.id).
				WithHint("the service's operator enables it by provisioningStatus \"enabled\"; it also bars the device from its group")
		}
	} else if g := p.roll.groups[c.Group]; !g.Enabled {
		return nil, cradle.Errorf(cradle.Unauthorized, "enrolment group %q is disabled", g.ID).
			WithHint("the service's operator enables it by provisioningStatus \"enabled\"")
	}
	return c, nil
}

// barred looks again at a device that its own enrolment refuses. It returns nil when that is a disabled one and the device proved
// that a group would admit it: then this bars it, and not that it proves itself in another way than the enrolment wants. A unit of
// a TPM group proves it by a challenge.
func (p *pending) barred(err error) error {
	if p.individual == nil || p.individual.Enabled {
		return err
	}
	var challenge *TPMChallenge
	byGroup := p.byGroup(&Caller{ID: p.id})
	if byGroup == nil || errors.As(byGroup, &challenge) && !errors.As(err, &challenge) {
		return byGroup
	}
	return err
}

// byEnrollment lets the individual enrolment decide, and nothing beside it.
func (p *pending) byEnrollment(c *Caller, e *Enrollment) error {
	switch e.Kind {
	case X509Client, X509CA:
		if len(p.shown.Chain) == 0 {
			return p.wants("a client certificate in TLS")
		}
		if e.Kind == X509Client {
			if err := p.byClientCertificate(e); err != nil {
				return err
			}
		} else if err := p.byOwnCA(c, e); err != nil {
			return err
		}
		return p.named(c)
	case SymmetricKey:
		if p.shown.Token == "" {
			return p.wants("a SAS token by its symmetric key")
		}
		t, err := p.token()
		if err != nil {
			return err
		}
		c.keys = Keys{Primary: Secret(e.PrimaryKey), Secondary: Secret(e.SecondaryKey)}
		if !t.Signed(e.PrimaryKey) && !t.Signed(e.SecondaryKey) {
			return cradle.Errorf(cradle.Unauthorized, "SAS token signature matches neither key of individual enrolment %q", p.id).
				WithHint("sign with the primary or secondary key of the enrolment, decoded from base64")
		}
		return p.inTime(t)
	case TPM:
		return p.byTPM(c, &e.Attestation.TPM)
	}
	return cradle.Errorf(cradle.Unauthorized, "individual enrolment %q has no attestation that can be checked here", p.id)
}

// wants says what is missing.
func (p *pending) wants(what string) error {
	return cradle.Errorf(cradle.Unauthorized, "individual enrolment %q wants %s, and none was sent", p.id, what).
		WithHint("let the device prove itself in the way of its enrolment, or change the enrolment's attestation")
}

// byClientCertificate compares the certificate with the enrolled ones.
func (p *pending) byClientCertificate(e *Enrollment) error {
	leaf := p.shown.Chain[0]
	if !bytes.Equal(leaf.Raw, e.Primary) && !bytes.Equal(leaf.Raw, e.Secondary) {
		return cradle.Errorf(cradle.Unauthorized, "client certificate %s is not the one of individual enrolment %q", Thumbprint(sha256.Sum256(leaf.Raw)), p.id).
			WithHint("if it was renewed, enrol the new certificate in the other slot")
	}
	return inValidity(leaf, p.now)
}

func inValidity(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return cradle.Errorf(cradle.Unauthorized, "client certificate: expired at %s", c.NotAfter.UTC().Format(time.RFC3339)).WithHint("renew it and enrol the new one")
	case now.Before(c.NotBefore):
		return cradle.Errorf(cradle.Unauthorized, "client certificate: not valid before %s; it is %s here", c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)).
			WithHint("compare the clocks")
	}
	return nil
}

// byOwnCA is for an individual enrolment with signing certificates.
func (p *pending) byOwnCA(c *Caller, e *Enrollment) error {
	anchors := x509.NewCertPool()
	for _, der := range [][]byte{e.Primary, e.Secondary} {
		if len(der) == 0 {
			continue
		}
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return cradle.Errorf(cradle.Internal, "signing certificate of enrolment %q: %v", p.id, err)
		}
		anchors.AddCert(ca)
	}
	top, err := climb(p.shown.Chain, anchors, p.now)
	if err == nil && c.Account == "" {
		c.Account = organization(top)
	}
	return err
}

// named checks the name of a certificate that was found genuine.
func (p *pending) named(c *Caller) error {
	leaf := p.shown.Chain[0]
	cn, err := commonName(leaf)
	if err != nil {
		return err
	}
	if !strings.EqualFold(cn, string(p.id)) {
		return cradle.Errorf(cradle.Unauthorized, "certificate is for %.70q, the request is for registration id %q", cn, p.id).
			WithHint("the registration id must be the certificate's common name")
	}
	c.Thumbprint, c.notBefore = sha256.Sum256(leaf.Raw), leaf.NotBefore
	return nil
}

// byGroup finds the group that admits the device. A token decides before a certificate: who sends one means it.
func (p *pending) byGroup(c *Caller) error {
	switch {
	case p.shown.TPM != nil || p.shown.Token != "" && p.present != nil && p.present.Kind == TPMUnits && p.begun():
		return p.byUnit(c)
	case p.shown.Token != "":
		return p.byDerivedKey(c)
	case len(p.shown.Chain) > 0:
		ca, err := p.roll.signer(p.shown.Chain, p.now)
		if err != nil {
			return err
		}
		c.Kind, c.Group, c.Account, c.etag = X509CA, ca.group, ca.account, p.roll.groups[ca.group].ETag
		return p.named(c)
	}
	return cradle.Errorf(cradle.Unauthorized, "no client certificate was sent, and no SAS token").
		WithHint("connect with the device's operational certificate and key in TLS, or sign with its symmetric key")
}

// byDerivedKey tries the groups with symmetric keys.
func (p *pending) byDerivedKey(c *Caller) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	for _, g := range p.roll.keyed {
		primary, secondary := dps.DeviceKey(g.PrimaryKey, string(p.id)), dps.DeviceKey(g.SecondaryKey, string(p.id))
		if !t.Signed(primary) && !t.Signed(secondary) {
			if t.Signed(g.PrimaryKey) || t.Signed(g.SecondaryKey) {
				return cradle.Errorf(cradle.Unauthorized, "SAS token was signed with the key of enrolment group %q itself, not with a key derived for this device", g.ID).
					WithHint("derive the device's key: base64 of HMAC-SHA256 over the lower-case registration id, keyed with the decoded group key; a group's key must not be in devices")
			}
			continue
		}
		c.Kind, c.Group, c.etag = SymmetricKey, g.ID, g.ETag
		c.keys = Keys{Primary: Secret(primary), Secondary: Secret(secondary)}
		return p.inTime(t)
	}
	if len(p.roll.keyed) == 0 {
		return cradle.Errorf(cradle.Unauthorized, "registration id %q is not enrolled: there is no individual enrolment of that name and no group with a symmetric key", p.id).
			WithHint("enrol the device, or make a group with a symmetric key")
	}
	return cradle.Errorf(cradle.Unauthorized, "SAS token signature matches no key: there is no individual enrolment %q, and it is not by the key that any of %d groups has for this device", p.id, len(p.roll.keyed)).
		WithHint("derive the device's key: base64 of HMAC-SHA256 over the lower-case registration id, keyed with the decoded group key")
}

// token reads the SAS token and checks what it is for.
func (p *pending) token() (*sas.Token, error) {
	t, err := sas.Parse(p.shown.Token)
	if err != nil {
		return nil, err
	}
	if want := p.scope + "/registrations/" + string(p.id); !strings.EqualFold(strings.TrimSuffix(t.Resource, "/"), want) {
		return nil, cradle.Errorf(cradle.Unauthorized, "SAS token is for %.200q, the request for %q", t.Resource, want).
			WithHint("sign sr={idScope}/registrations/{registrationId} of this device")
	}
	if t.KeyName != "" && !strings.EqualFold(t.KeyName, KeyName) {
		return nil, cradle.Errorf(cradle.Unauthorized, "SAS token names policy %.60q; a device's is %q", t.KeyName, KeyName)
	}
	return t, nil
}

// KeyName is the skn of devices' tokens.
const KeyName = "registration"

// inTime lets the token pass that began the operation which is polled: IoT Identity Service goes on with it
// though it has expired meanwhile.
func (p *pending) inTime(t *sas.Token) error {
	if p.begun() {
		return nil
	}
	return t.InTime(p.now)
}

// begun reports whether the token shown is the one that began the operation polled.
func (p *pending) begun() bool {
	r := p.present
	if r == nil || p.shown.Operation == "" {
		return false
	}
	hash := tokenHash(p.shown.Token)
	return p.shown.Operation == r.Operation && hmac.Equal([]byte(hash), []byte(r.Token)) ||
		p.shown.Operation == r.PrevOperation && hmac.Equal([]byte(hash), []byte(r.PrevToken))
}

// tokenHash is empty for no token, which equals no stored hash of one.
func tokenHash(token string) string {
	if token == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(token))
	return string(sum[:])
}
