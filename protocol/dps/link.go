package dps

import (
	"context"
	"net/http"
	"net/url"
)

// LinkedHub is a hub that devices can be assigned to. Azure keeps linked hubs in its resource manager and not in
// the service API; this is Cradle's own.
type LinkedHub struct {
	Name    string         `json:"name"`
	Kind    string         `json:"kind"` // builtin, cradle, azure, mqtt
	Host    string         `json:"host"` // what devices are told
	Region  string         `json:"region,omitempty"`
	Latency map[string]int `json:"latency,omitempty"` // ms from a device's region
	Weight  int            `json:"weight"`
	State   string         `json:"state,omitempty"`   // open (also when it is not given), maintenance, draining
	Control string         `json:"control,omitempty"` // mqtt: host:port of the broker's listener for its administrator
	Anchors string         `json:"anchors,omitempty"` // PEM
	// Secret is only ever sent to the service: a connection string, or user:password of a broker's administrator. Empty in an
	// update: as it was.
	Secret  string `json:"secret,omitempty"`
	ETag    string `json:"etag,omitempty"`
	Created Time   `json:"created,omitzero"`
	Updated Time   `json:"updated,omitzero"`

	Waiting int    `json:"waiting"`           // registrations of which it has not been told yet
	Trouble string `json:"trouble,omitempty"` // why it is not asked at the moment, as the answering replica sees it
}

// Delivery says what one hub knows of a registration.
type Delivery struct {
	Hub      string `json:"hub"`
	Kind     string `json:"kind,omitempty"`
	Host     string `json:"host,omitempty"`
	Wants    string `json:"wants"` // what it is to be told: assigned, disabled, removed; or allocation: a webhook is asked
	State    string `json:"state"` // told, pending, refused
	Since    Time   `json:"since"`
	Attempts int    `json:"attempts,omitempty"` // that failed
	Next     Time   `json:"next,omitzero"`      // of the next attempt
	Reason   string `json:"reason,omitempty"`
}

// WebhookKey is the key with which calls of one webhook are signed.
type WebhookKey struct {
	URL string `json:"url"`
	Key []byte `json:"key,omitempty"`
}

// LinkedHubs reads every linked hub.
func (s *Service) LinkedHubs(ctx context.Context) ([]LinkedHub, error) {
	var out []LinkedHub
	return out, s.do(ctx, http.MethodGet, "/linkedHubs", "", nil, &out)
}

// PutLinkedHub links a hub (etag empty; Conflict when the name is taken) or changes the link of that ETag; "*" is any.
func (s *Service) PutLinkedHub(ctx context.Context, l LinkedHub, etag string) (*LinkedHub, error) {
	out := new(LinkedHub)
	return out, s.do(ctx, http.MethodPut, "/linkedHubs/"+url.PathEscape(l.Name), etag, l, out)
}

// DeleteLinkedHub removes a link.
func (s *Service) DeleteLinkedHub(ctx context.Context, name string) error {
	return s.do(ctx, http.MethodDelete, "/linkedHubs/"+url.PathEscape(name), "", nil, nil)
}

// Destinations says what each hub knows of a registration.
func (s *Service) Destinations(ctx context.Context, id string) ([]Delivery, error) {
	var out []Delivery
	return out, s.do(ctx, http.MethodGet, "/registrations/"+url.PathEscape(id)+"/destinations", "", nil, &out)
}

// WebhookKey reads the key for a webhook's URL, which must be exactly the enrolment's.
func (s *Service) WebhookKey(ctx context.Context, target string) ([]byte, error) {
	var out WebhookKey
	err := s.do(ctx, http.MethodPost, "/webhookKey", "", WebhookKey{URL: target}, &out)
	return out.Key, err
}
