package hub

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub/query"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// Entry is a registered device, or a module of one, with its twin and without its keys.
type Entry struct {
	Device Device
	Module *Module // nil: the device itself
	Twin   *Twin   // nil: the empty one, or not asked for
}

// Filter says which entries to read.
type Filter struct {
	Modules     bool // modules, in order of device and module; else devices, in order of id
	After       cradle.DeviceID
	AfterModule iothub.ModuleID
	Device      cradle.DeviceID // only of this device; "" of all
	Disabled    *bool           // only of devices that are, or are not
	Twins       bool            // with their twins
	Limit       int
}

// Entries is the registry as queries read it; the contract is Store's.
type Entries interface {
	// Entries lists up to Limit entries in byte order behind the place given; fewer when they are large, none at the end.
	Entries(ctx context.Context, hub Name, f Filter) ([]Entry, error)
}

// Limits of queries, beside those of their text.
const (
	DefaultPage = 100     // lines of an answer when the caller names no number
	MaxPage     = 1000    // that he may name
	maxScan     = 20_000  // entries that one page looks at; what is not there by then comes with the next
	maxAnswer   = 4 << 20 // bytes of lines from which a page takes no more
	readAhead   = 500     // entries of one reading
	maxCounting = 2       // queries with COUNT() or GROUP BY at a time: each reads the whole registry
)

// QueryPage is one page of an answer.
type QueryPage struct {
	Twins        bool // lines are whole twins
	Lines        []json.RawMessage
	Continuation string // "" after the last page; a page may be empty and yet not the last
}

// place is where a page ends, as the continuation has it.
type queryPlace struct {
	Query  string          `json:"q"` // digest of the query's text
	Device cradle.DeviceID `json:"d"`
	Module iothub.ModuleID `json:"m,omitempty"`
}

func (p queryPlace) encode() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parsePlace(s, digest string) (p queryPlace, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || json.Unmarshal(b, &p) != nil || p.Device == "" {
		return p, cradle.Errorf(cradle.Invalid, "this continuation is not one of this hub's")
	}
	if p.Query != digest {
		return p, cradle.Errorf(cradle.Invalid, "this continuation is another query's").WithHint("send it with the very text that it came from")
	}
	return p, nil
}

// Query answers a query with a page of at most limit lines (0: DefaultPage), from a continuation on (empty: from the
// start). Entries come in the order of their ids; those written meanwhile may or may not be seen. Connection states are
// those that this process knows.
func (h *Hub) Query(ctx context.Context, hub Name, text string, limit int, continuation string) (*QueryPage, error) {
	q, err := query.Parse(text)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		limit = DefaultPage
	}
	if limit < 0 || limit > MaxPage {
		return nil, cradle.Errorf(cradle.Invalid, "a page has 1 to %d lines, not %d", MaxPage, limit)
	}
	sum := sha256.Sum256([]byte(text))
	at := queryPlace{Query: hex.EncodeToString(sum[:8])}
	if continuation != "" {
		if at, err = parsePlace(continuation, at.Query); err != nil {
			return nil, err
		}
	}
	b := q.Bounds()
	if _, err := h.store.Policies(ctx, hub); err != nil { // NotFound even when nothing needs to be read
		return nil, h.storeError("reading a hub", err)
	}
	f := Filter{Modules: q.From == query.Modules, After: at.Device, AfterModule: at.Module, Limit: readAhead,
		Twins: q.Reads("etag", "modelId", "version", "tags", "properties")}
	if b.DeviceID != nil {
		f.Device = cradle.DeviceID(*b.DeviceID)
		b.Never = b.Never || f.Device == ""
	}
	if b.Status != nil {
		disabled := *b.Status == iothub.Disabled
		f.Disabled = &disabled
		b.Never = b.Never || !disabled && *b.Status != iothub.Enabled
	}
	if q.Aggregate() {
		if continuation != "" {
			return nil, cradle.Errorf(cradle.Invalid, "an answer of counts has one page")
		}
		return h.count(ctx, hub, q, f, b.Never)
	}
	page := &QueryPage{Twins: q.All, Lines: []json.RawMessage{}}
	if b.Never {
		return page, nil
	}
	size := 0
	for scanned := 0; ; {
		if q.Where == nil { // every entry is a line
			f.Limit = min(readAhead, limit-len(page.Lines)+1)
		}
		es, err := h.store.Entries(ctx, hub, f)
		if err != nil {
			return nil, h.storeError("querying devices", err)
		}
		if len(es) == 0 {
			return page, nil
		}
		for i := range es {
			e := &es[i]
			if len(page.Lines) == limit || size >= maxAnswer || scanned >= maxScan {
				page.Continuation = at.encode()
				return page, nil
			}
			scanned++
			d := h.doc(hub, e)
			if q.Match(d.value) {
				line, err := d.line(q)
				if err != nil {
					return nil, err
				}
				page.Lines = append(page.Lines, line)
				size += len(line)
			}
			f.After, f.AfterModule = e.Device.ID, ""
			if e.Module != nil {
				f.AfterModule = e.Module.ID
			}
			at.Device, at.Module = f.After, f.AfterModule
		}
	}
}

// count answers a query with COUNT() or GROUP BY.
func (h *Hub) count(ctx context.Context, hub Name, q *query.Query, f Filter, never bool) (*QueryPage, error) {
	select {
	case h.counting <- struct{}{}:
		defer func() { <-h.counting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	g := q.Groups()
	if q.Where == nil && len(q.Group) == 0 && !f.Modules && !never {
		total, _, err := h.store.CountDevices(ctx, hub)
		if err != nil {
			return nil, h.storeError("counting devices", err)
		}
		if err := g.Add(nil, total); err != nil {
			return nil, err
		}
		never = true // all is counted
	}
	for !never {
		es, err := h.store.Entries(ctx, hub, f)
		if err != nil {
			return nil, h.storeError("querying devices", err)
		}
		if len(es) == 0 {
			break
		}
		for i := range es {
			if d := h.doc(hub, &es[i]); q.Match(d.value) {
				if err := g.Add(d.value, 1); err != nil {
					return nil, err
				}
			}
		}
		last := &es[len(es)-1]
		f.After, f.AfterModule = last.Device.ID, ""
		if last.Module != nil {
			f.AfterModule = last.Module.ID
		}
	}
	page := &QueryPage{Lines: []json.RawMessage{}}
	for _, row := range g.Rows() {
		b, err := json.Marshal(row)
		if err != nil {
			return nil, err
		}
		page.Lines = append(page.Lines, b)
	}
	return page, nil
}

// doc shows an entry to a query: as its twin is shown by REST.
type doc struct {
	h     *Hub
	hub   Name
	e     *Entry
	whole map[string]any // decoded only when something is asked that is not at hand
}

func (h *Hub) doc(hub Name, e *Entry) *doc { return &doc{h: h, hub: hub, e: e} }

func (d *doc) twin() *iothub.Twin {
	return d.h.wireTwin(d.hub, owner{&d.e.Device, d.e.Module}, d.e.Twin)
}

// value implements query.Doc.
func (d *doc) value(p query.Path) (any, bool) {
	switch {
	case p[0] == "deviceId" && len(p) == 1:
		return string(d.e.Device.ID), true
	case p[0] == "moduleId" && len(p) == 1:
		if d.e.Module == nil {
			return nil, false
		}
		return string(d.e.Module.ID), true
	case p[0] == "status" && len(p) == 1:
		if d.e.Device.Disabled {
			return iothub.Disabled, true
		}
		return iothub.Enabled, true
	case p[0] == "connectionState" && len(p) == 1:
		k := key{hub: d.hub, device: d.e.Device.ID}
		if d.e.Module != nil {
			k.module = d.e.Module.ID
		}
		if d.h.sessions.get(k) != nil {
			return iothub.Connected, true
		}
		return iothub.Disconnected, true
	case p[0] == "authenticationType" && len(p) == 1:
		if d.e.Module != nil {
			return d.e.Module.Auth.Type, true
		}
		return d.e.Device.Auth.Type, true
	case p[0] == "tags":
		if d.e.Twin == nil {
			return under(map[string]any{}, p[1:])
		}
		return under(d.e.Twin.Tags.Values, p[1:])
	case p[0] == "properties" && len(p) > 2 && !strings.HasPrefix(p[2], "$"):
		switch {
		case d.e.Twin == nil:
			return nil, false
		case p[1] == "desired":
			return under(d.e.Twin.Desired.Values, p[2:])
		case p[1] == "reported":
			return under(d.e.Twin.Report.Values, p[2:])
		}
		return nil, false
	}
	if d.whole == nil {
		b, err := json.Marshal(d.twin())
		if err == nil {
			dec := json.NewDecoder(strings.NewReader(string(b)))
			dec.UseNumber()
			err = dec.Decode(&d.whole)
		}
		if err != nil {
			panic("internal error: " + err.Error())
		}
	}
	return under(d.whole, p)
}

func under(v any, p []string) (any, bool) {
	for _, name := range p {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[name]; !ok {
			return nil, false
		}
	}
	return v, true
}

// line is the entry's line of the answer.
func (d *doc) line(q *query.Query) (json.RawMessage, error) {
	if q.All {
		return json.Marshal(d.twin())
	}
	return json.Marshal(q.Row(d.value))
}
