package provisioning

import (
	"context"
	"time"
)

// Waiting is a row of the outbox as an operator sees it.
type Waiting struct {
	Hub      string
	Due      time.Time
	Attempts int // that failed
	Reason   string
}

// Known says what one hub knows of a registration.
type Known struct {
	Hub      string
	Kind     LinkKind // empty: not linked any more
	Host     string
	Wants    string // assigned, disabled, removed; or allocation: a webhook is asked where the device belongs
	State    string // told (it has acknowledged), pending, refused
	Since    time.Time
	Attempts int
	Next     time.Time // of the next attempt, when pending
	Reason   string    // of the last failure or of the refusal
}

// Known lists the hubs that know, or must hear, of a registration, the assigned one first.
func (s *Service) Known(ctx context.Context, id RegistrationID) ([]Known, error) {
	r, err := s.store.Registration(ctx, id)
	if err != nil {
		return nil, err
	}
	rows, err := s.store.WaitingFor(ctx, id)
	if err != nil {
		return nil, err
	}
	var out []Known
	show := func(name string) *Known {
		for i := range out {
			if out[i].Hub == name {
				return &out[i]
			}
		}
		k := Known{Hub: name, Wants: "removed", Since: r.Updated}
		switch {
		case name == decisions:
			k.Hub, k.Wants = "", "allocation"
		case r.Blocked != "" && (name == r.Hub || name == r.From):
			k.Wants = "disabled"
		case name == r.Hub:
			k.Wants = "assigned"
		}
		if h := s.hub(name); h != nil {
			k.Kind, k.Host = h.link.Kind, h.Host
		}
		out = append(out, k)
		return &out[len(out)-1]
	}
	if r.Hub != "" && !r.Asks {
		k := show(r.Hub)
		if k.State = "told"; r.ErrorMessage != "" {
			k.State, k.Reason = "refused", r.ErrorMessage
		}
	}
	for _, w := range rows {
		k := show(w.Hub)
		k.State, k.Attempts, k.Next, k.Reason = "pending", w.Attempts, w.Due, w.Reason
	}
	return out, nil
}

// HubHealth is how deliveries to a hub fare.
type HubHealth struct {
	Waiting int    // registrations of which it has not been told yet
	Trouble string // why this process does not ask it at the moment; empty: it does
}

// HubHealth of every hub for which something waits or that is in trouble.
func (s *Service) HubHealth(ctx context.Context) (map[string]HubHealth, error) {
	waiting, err := s.store.WaitingByHub(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]HubHealth{}
	for hub, n := range waiting {
		out[hub] = HubHealth{Waiting: n}
	}
	s.outbox.mu.Lock()
	defer s.outbox.mu.Unlock()
	for hub, h := range s.outbox.health {
		if h.failures > 0 {
			x := out[hub]
			x.Trouble = h.why
			out[hub] = x
		}
	}
	return out, nil
}
