package provisioning

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cradle-iot/cradle"
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
	Hashed     = "hashed"     // spread over the hubs, by the registration id
	Static     = "static"     // the first hub that takes devices
	GeoLatency = "geoLatency" // the hub nearest to the device
	Custom     = "custom"     // whatever CustomAllocation says
)

// Terms are what a device gets once it has proved itself. Enrolments and groups have them alike.
type Terms struct {
	Enabled          bool              `json:"enabled"`
	Allocation       string            `json:"allocation"`
	Hubs             []string          `json:"hubs,omitempty"`    // names; empty: all
	Weights          map[string]int    `json:"weights,omitempty"` // by name of a hub; one that is missing has 1
	Custom           *CustomAllocation `json:"custom,omitempty"`
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

// policies by their name in lower case: clients write them in any.
var policies = map[string]string{"hashed": Hashed, "static": Static, "geolatency": GeoLatency, "custom": Custom}

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
	policy, ok := policies[strings.ToLower(t.Allocation)]
	if !ok {
		return t, cradle.Errorf(cradle.Invalid, "allocation policy %q is not supported: use %q, %q, %q or %q", t.Allocation, Hashed, Static, GeoLatency, Custom)
	}
	t.Allocation = policy
	if len(t.InitialTwin) > 0 {
		var twin struct {
			Tags       map[string]json.RawMessage `json:"tags"`
			Properties struct {
				Desired map[string]json.RawMessage `json:"desired"`
			} `json:"properties"`
		}
		var b bytes.Buffer
		if json.Unmarshal(t.InitialTwin, &twin) != nil || json.Compact(&b, t.InitialTwin) != nil {
			return t, cradle.Errorf(cradle.Invalid, `initialTwin is not an object {"tags":{…},"properties":{"desired":{…}}}`)
		}
		t.InitialTwin = b.Bytes()
	}
	return t, nil
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
