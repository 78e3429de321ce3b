package provisioning

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// Move is what is still to be done for a registration beside its entry at the hub. It is stored with the
// registration until the hub stands as it should, so that it is carried out again after a crash.
type Move struct {
	From string `json:"from,omitempty"` // name of the hub that the device leaves; its entry goes when the new one stands
	Data Data   `json:"data,omitempty"`
	Twin string `json:"twin,omitempty"` // JSON of the initial twin
	Asks bool   `json:"asks,omitempty"` // a webhook must still say which hub it is; Hub is where it was
	Edge bool   `json:"edge,omitempty"` // the entry must be an IoT Edge device's
	// Answer is the payload that a webhook has for the device; unlike the rest it stays.
	Answer string `json:"answer,omitempty"`
}

// Data is what becomes of a device's twin.
type Data string

// What may become of it.
const (
	DataStays    Data = ""        // as it is at the hub
	DataInitial  Data = "initial" // gets the initial twin's values, and keeps others
	DataMigrates Data = "migrate" // is what it was at Move.From
	DataResets   Data = "reset"   // is the initial twin and nothing else
)

// Rule for package allocate.
func (t *Terms) rule() allocate.Rule {
	return allocate.Rule{Policy: t.Allocation, Hubs: t.Hubs, Weights: t.Weights}
}

// stays reports whether a device keeps its hub without allocation being asked (Azure: "never re-provision").
func stays(hubs []allocate.Hub, t *Terms, present string) bool {
	return present != "" && !t.Reprovision.UpdateHub && allocate.Linked(hubs, present) != nil
}

// done is what is left of a Move that was carried out.
func (m Move) done() Move { return Move{Answer: m.Answer} }

// send is move, or leaves the decision to a webhook; it says which targets of the outbox must hear of it.
func (r *Registration) send(hub string, asks bool, t *Terms, linked []allocate.Hub) []string {
	if r.Asks = asks; asks {
		return []string{decisions}
	}
	r.Answer = ""
	return r.move(hub, t, linked)
}

// move sends a registration to a hub and says which hubs must hear of it. Azure's rules of re-provisioning decide about the
// data. The order is: the new hub gets the entry and the twin, then the device is assigned, and only then the
// old hub's entry goes (delivered).
func (r *Registration) move(hub string, t *Terms, linked []allocate.Hub) (deliver []string) {
	deliver = []string{hub}
	reset := t.Reprovision.UpdateHub && !t.Reprovision.MigrateData
	switch {
	case r.Hub == hub && r.Delivered:
		// Data is neither moved nor lost; only a reset asks for the beginning again.
		if r.Move = r.done(); reset {
			r.Data, r.Twin = DataResets, string(t.InitialTwin)
		}
	case r.Hub == hub: // what was to be done is still to be done, perhaps with another twin
		if r.Data != DataStays || len(t.InitialTwin) > 0 {
			r.Twin = string(t.InitialTwin)
			if r.Data == DataStays {
				r.Data = DataInitial
			}
		}
	case r.Hub == "":
		if r.Move = r.done(); len(t.InitialTwin) > 0 {
			r.Data, r.Twin = DataInitial, string(t.InitialTwin)
		}
	default:
		from := r.Hub
		if !r.Delivered { // it never came to stand there: that entry goes at once, the data are where they were
			deliver, from = append(deliver, r.Hub), r.From
		}
		back := from == hub
		r.Move, r.Delivered = r.done(), back // it stands at the hub that it has not left yet
		switch {
		case back && !reset:
		case from == "" || allocate.Linked(linked, from) == nil:
			if len(t.InitialTwin) > 0 {
				r.Data, r.Twin = DataInitial, string(t.InitialTwin)
			}
		case reset:
			r.Data, r.Twin = DataResets, string(t.InitialTwin)
		default:
			r.Data, r.Twin = DataMigrates, string(t.InitialTwin)
		}
		if !back {
			r.From = from
		}
	}
	r.Hub, r.Edge = hub, t.IoTEdge
	return deliver
}

// substatus of a registration whose hub has been told, in Azure's words.
func (r *Registration) substatus() string {
	switch {
	case r.From != "" && r.Data == DataMigrates:
		return DataMigrated
	case r.From != "":
		return DataReset
	case r.Delivered:
		return Reprovisioned
	}
	return InitialAssignment
}

// furnish makes the twin of an entry that stands what Move says. It may be repeated.
func (s *Service) furnish(ctx context.Context, hub *Hub, r Registration) error {
	if hub.Twins == nil || r.Data == DataStays {
		return nil
	}
	p, err := initialTwin(r.Twin)
	if err != nil {
		return err
	}
	id, data := r.DeviceID(), r.Data
	if data == DataMigrates {
		old, err := s.takeAlong(ctx, r)
		switch {
		case err != nil:
			return err
		case old != nil:
			p, data = old, DataResets
		default:
			data = DataInitial // there is nothing to take along
		}
	}
	if data == DataResets {
		_, err = hub.Twins.ReplaceTwin(ctx, id, p, iothub.AnyETag)
	} else if r.Twin != "" {
		_, err = hub.Twins.PatchTwin(ctx, id, p, iothub.AnyETag)
	}
	if cradle.KindOf(err) == cradle.NotFound { // the entry has gone under our hands
		err = &cradle.Error{Kind: cradle.Conflict, Detail: err.Error(), Err: err}
	}
	return err
}

// takeAlong reads the twin at the hub that the device leaves; nil when there is none any more. Reported properties
// are the device's own, and no service may write them: it reports them anew.
func (s *Service) takeAlong(ctx context.Context, r Registration) (*iothub.TwinPatch, error) {
	from := s.hub(r.From)
	if from == nil || from.Twins == nil {
		return nil, nil
	}
	old, err := from.Twins.Twin(ctx, r.DeviceID())
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, nil
	}
	if err != nil {
		// Conflict: it says nothing about the hub that is delivered to.
		return nil, &cradle.Error{Kind: cradle.Conflict, Detail: "hub " + r.From + ", which the device leaves, does not give its twin: " + err.Error(), Err: err}
	}
	p := &iothub.TwinPatch{Tags: old.Tags}
	desired := map[string]json.RawMessage{}
	if len(old.Properties.Desired) > 0 {
		if err := json.Unmarshal(old.Properties.Desired, &desired); err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "twin of %q at hub %q: %v", r.ID, r.From, err)
		}
	}
	for k := range desired {
		if strings.HasPrefix(k, "$") { // $version, $metadata: the hub's own
			delete(desired, k)
		}
	}
	p.Properties.Desired, err = json.Marshal(desired)
	return p, err
}

// initialTwin reads what checkTerms let pass; empty is an empty twin.
func initialTwin(s string) (*iothub.TwinPatch, error) {
	p := new(iothub.TwinPatch)
	if s == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(s), p); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "initial twin: %v", err)
	}
	return p, nil
}
