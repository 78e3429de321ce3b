package provisioning

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// AttestationKind is the way in which a device proves itself.
type AttestationKind string

// The kinds. Groups have X509CA, SymmetricKey or TPMUnits; individual enrolments have X509Client, X509CA,
// SymmetricKey or TPM.
const (
	X509CA       AttestationKind = "x509CA"       // the certificate was signed by the enrolled CA, perhaps through intermediates
	X509Client   AttestationKind = "x509Client"   // the certificate is the enrolled one
	SymmetricKey AttestationKind = "symmetricKey" // a SAS token by the enrolled key; in a group, by a key derived from it
	TPM          AttestationKind = "tpm"          // the TPM with the enrolled endorsement key
	TPMUnits     AttestationKind = "tpmUnits"     // the TPM of a unit of an order, or of accepted lots (not in Azure)
)

// Type of attestation in Azure's words: x509, symmetricKey or tpm.
func (k AttestationKind) Type() string {
	switch k {
	case X509CA, X509Client:
		return "x509"
	case TPMUnits:
		return string(TPM)
	}
	return string(k)
}

// Attestation says what a device must show. The fields that belong to another Kind are empty.
type Attestation struct {
	Kind                     AttestationKind
	Primary, Secondary       []byte // X509CA, X509Client: DER of certificates; Secondary may be empty
	PrimaryKey, SecondaryKey []byte // SymmetricKey: 16 to 64 bytes each
	TPM                      TPMKeys
	Units                    Units
}

// TPMKeys are a TPM's public keys, each a TPM2B_PUBLIC with its size.
type TPMKeys struct {
	Endorsement []byte
	StorageRoot []byte // may be empty in an enrolment: then any one of that TPM
}

// Units names units of the credential provider by the papers under which they were made.
type Units struct {
	Account cradle.AccountID `json:"account,omitempty"`
	Order   cradle.OrderID   `json:"order,omitempty"`
	Lots    []cradle.LotID   `json:"lots,omitempty"` // empty: every accepted lot of the order
}

// Allocation policies.
const (
	Hashed     = allocate.Hashed
	Static     = allocate.Static
	GeoLatency = allocate.GeoLatency
	Custom     = allocate.Custom // whatever CustomAllocation says
)

// Terms are what a device gets once it has proved itself. Enrolments and groups have them alike.
type Terms struct {
	Enabled          bool              `json:"enabled"`
	Allocation       string            `json:"allocation"`
	Hubs             []string          `json:"hubs,omitempty"`    // names; empty: all
	Weights          map[string]int    `json:"weights,omitempty"` // by name of a hub; one that is missing has its link's
	Custom           *CustomAllocation `json:"custom,omitempty"`
	Region           string            `json:"region,omitempty"`      // of the devices, for GeoLatency
	RegionHint       bool              `json:"region_hint,omitempty"` // "region" in a device's payload wins over Region
	Reprovision      Reprovision       `json:"reprovision"`
	InitialTwin      json.RawMessage   `json:"initial_twin,omitempty"` // {"tags":…,"properties":{"desired":…}}
	IoTEdge          bool              `json:"iot_edge,omitempty"`
	CredentialPolicy string            `json:"credential_policy,omitempty"` // by which certificates are issued for CSRs; empty: none
}

// CustomAllocation is a rule of the operator's own: a webhook, or an expression.
type CustomAllocation struct {
	WebhookURL string `json:"webhook_url,omitempty"`
	APIVersion string `json:"api_version,omitempty"`
	CEL        string `json:"cel,omitempty"`
	Fallback   string `json:"fallback,omitempty"` // when the rule fails: FallbackWait (also when empty) or FallbackHashed
}

// Reprovision says what happens when a known device registers again.
type Reprovision struct {
	UpdateHub   bool `json:"update_hub"`   // it may get another hub
	MigrateData bool `json:"migrate_data"` // its twin goes along; else it starts from InitialTwin
}

// Enrolled is what admits a device: an individual enrolment, or a group when there is none. An individual
// enrolment wins over the group, a disabled one too: so one device is taken out of a group.
type Enrolled struct {
	Individual *Enrollment
	Group      *Group
}

// Terms of the one that counts; nil when there is neither.
func (e Enrolled) Terms() *Terms {
	switch {
	case e.Individual != nil:
		return &e.Individual.Terms
	case e.Group != nil:
		return &e.Group.Terms
	}
	return nil
}

// Name of the one that counts, for messages.
func (e Enrolled) Name() string {
	if e.Individual != nil {
		return `individual enrolment "` + string(e.Individual.ID) + `"`
	}
	if e.Group != nil {
		return `enrolment group "` + e.Group.ID + `"`
	}
	return "no enrolment"
}

// checkTerms returns the terms with the names of hubs and the policy in their canonical form.
func (s *Service) checkTerms(t Terms) (Terms, error) {
	hubs := t.Hubs
	t.Hubs = nil
	for _, name := range hubs {
		h, err := s.linkedHub(name)
		if err != nil {
			return t, err
		}
		if !slices.Contains(t.Hubs, h.Name) {
			t.Hubs = append(t.Hubs, h.Name)
		}
	}
	weights := t.Weights
	t.Weights = nil
	for name, w := range weights {
		h, err := s.linkedHub(name)
		if err != nil {
			return t, err
		}
		if w < 0 || w > 1_000_000 {
			return t, cradle.Errorf(cradle.Invalid, "weight of hub %q is %d, not 0 to 1000000", name, w)
		}
		if t.Weights == nil {
			t.Weights = map[string]int{}
		}
		t.Weights[h.Name] = w
	}
	if t.Allocation == "" {
		t.Allocation = Hashed
		if len(t.Hubs) == 1 {
			t.Allocation = Static
		}
	}
	var err error
	if t.Allocation, err = allocate.ParsePolicy(t.Allocation); err != nil {
		return t, err
	}
	if t.Region != "" && !region.MatchString(t.Region) {
		return t, cradle.Errorf(cradle.Invalid, "region %.40q: use up to 32 of a-z, 0-9 and inner '-'", t.Region)
	}
	if err := s.checkCustom(t); err != nil {
		return t, err
	}
	if len(t.InitialTwin) > 0 {
		if t.InitialTwin, err = checkInitialTwin(t.InitialTwin); err != nil {
			return t, err
		}
	}
	return t, nil
}

// checkInitialTwin returns an initial twin as it is stored. What no hub would take is refused at once, and not when a device
// registers.
func checkInitialTwin(raw json.RawMessage) (json.RawMessage, error) {
	var twin iothub.TwinPatch
	var b bytes.Buffer
	if json.Unmarshal(raw, &twin) != nil || json.Compact(&b, raw) != nil || b.Bytes()[0] != '{' {
		return nil, cradle.Errorf(cradle.Invalid, `initialTwin is not an object {"tags":{…},"properties":{"desired":{…}}}`)
	}
	if b.Len() > 2*(iothub.MaxTags+iothub.MaxSection) {
		return nil, cradle.Errorf(cradle.Invalid, "initialTwin has %d bytes: more than a hub takes", b.Len())
	}
	for _, c := range []struct {
		what string
		raw  json.RawMessage
		most int
	}{{"tags", twin.Tags, iothub.MaxTags}, {"desired properties", twin.Properties.Desired, iothub.MaxSection}} {
		if len(c.raw) == 0 || string(c.raw) == "null" {
			continue
		}
		values, err := iothub.ParseSection("initialTwin: "+c.what, c.raw)
		if err != nil {
			return nil, err
		}
		if n := iothub.SectionSize(values); n > c.most {
			return nil, cradle.Errorf(cradle.Invalid, "initialTwin: %s would have %d bytes, at most %d", c.what, n, c.most)
		}
	}
	return b.Bytes(), nil
}

// checkCustom holds a custom rule to what can be carried out.
func (s *Service) checkCustom(t Terms) error {
	c := t.Custom
	switch {
	case t.Allocation != Custom && c == nil:
		return nil
	case t.Allocation != Custom:
		return cradle.Errorf(cradle.Invalid, "customAllocationDefinition is given, but the allocation policy is %s", t.Allocation)
	case c == nil || (c.WebhookURL == "") == (c.CEL == ""):
		return cradle.Errorf(cradle.Invalid, "custom allocation needs a webhookUrl or a cel expression, and not both")
	case c.Fallback != "" && c.Fallback != FallbackWait && c.Fallback != FallbackHashed:
		return cradle.Errorf(cradle.Invalid, "fallback %.40q of custom allocation: use %s or %s", c.Fallback, FallbackWait, FallbackHashed)
	case c.CEL != "":
		_, err := s.expressions.get(c.CEL)
		return err
	}
	if s.webhook == nil {
		return cradle.Errorf(cradle.Invalid, "this service calls no webhooks")
	}
	return dps.CheckWebhookURL(c.WebhookURL)
}

func (s *Service) linkedHub(name string) (*Hub, error) {
	h := s.findHub(name)
	if h == nil {
		return nil, cradle.Errorf(cradle.Invalid, "hub %q is not linked to this service", name).
			WithHint("linked are: %s", strings.Join(s.hubNames(), ", "))
	}
	return h, nil
}

func sameTerms(a, b Terms) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}
