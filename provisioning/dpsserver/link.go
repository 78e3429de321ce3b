package dpsserver

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/allocate"
)

// linkRoute finds the endpoints that Azure does not have: linked hubs, what they know of a registration, and keys of
// webhooks. Changing them, and seeing keys, needs the right to everything.
func (h *Handler) linkRoute(q *request) (f endpoint, allow string, ok bool) {
	choose := func(m map[string]endpoint, allow string) (endpoint, string, bool) { return m[q.Method], allow, true }
	seg, n := q.seg, len(q.seg)
	switch first := strings.ToLower(seg[0]); {
	case first == "linkedhubs" && n == 1:
		return choose(map[string]endpoint{"GET": h.owner(dps.EnrollmentRead, h.listLinks)}, "GET")
	case first == "linkedhubs" && n == 2:
		return choose(map[string]endpoint{"PUT": h.owner(dps.ServiceConfig, h.putLink), "DELETE": h.owner(dps.ServiceConfig, h.deleteLink)}, "PUT, DELETE")
	case first == "registrations" && n == 3 && strings.EqualFold(seg[2], "destinations"):
		return choose(map[string]endpoint{"GET": h.owner(dps.RegistrationStatusRead, h.destinations)}, "GET")
	case first == "webhookkey" && n == 1:
		return choose(map[string]endpoint{"POST": h.owner(dps.ServiceConfig, h.webhookKey)}, "POST")
	}
	return nil, "", false
}

func (h *Handler) listLinks(ctx context.Context, _ *request) (*reply, error) {
	links, err := h.svc.Links(ctx)
	if err != nil {
		return nil, err
	}
	health, err := h.svc.HubHealth(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]dps.LinkedHub, len(links))
	for i, l := range links {
		out[i] = wireLink(l)
		out[i].Waiting, out[i].Trouble = health[l.Name].Waiting, health[l.Name].Trouble
	}
	return &reply{status: http.StatusOK, body: out}, nil
}

// openState is allocate.Open on the wire.
const openState = "open"

// wireLink shows everything but the secret.
func wireLink(l provisioning.Link) dps.LinkedHub {
	return dps.LinkedHub{Name: l.Name, Kind: string(l.Kind), Host: l.Host, Region: l.Region, Latency: l.Latency, Weight: l.Weight, State: cmp.Or(string(l.State), openState),
		Control: l.Control, Anchors: l.Anchors, ETag: l.ETag, Created: dps.Time{Time: l.Created}, Updated: dps.Time{Time: l.Updated}}
}

func (h *Handler) putLink(ctx context.Context, q *request) (*reply, error) {
	var b dps.LinkedHub
	if err := q.decode(&b); err != nil {
		return nil, err
	}
	if b.Name != "" && !strings.EqualFold(b.Name, q.seg[1]) {
		return nil, cradle.Errorf(cradle.Invalid, "body is for hub %.70q, the path for %.70q", b.Name, q.seg[1])
	}
	state := allocate.State(b.State)
	if b.State == openState {
		state = allocate.Open
	}
	l, err := h.svc.Link(ctx, provisioning.Link{Name: q.seg[1], Kind: provisioning.LinkKind(b.Kind), Host: b.Host, Region: b.Region, Latency: b.Latency, Weight: b.Weight,
		State: state, Control: b.Control, Anchors: b.Anchors, Secret: provisioning.Secret(b.Secret)}, ifMatch(q))
	if err != nil {
		return nil, err
	}
	h.log.Info("hub linked", "hub", l.Name, "kind", l.Kind, "host", l.Host, "state", l.State)
	return &reply{status: http.StatusOK, body: wireLink(l)}, nil
}

func (h *Handler) deleteLink(ctx context.Context, q *request) (*reply, error) {
	if err := h.svc.Unlink(ctx, q.seg[1], ifMatch(q)); err != nil {
		return nil, err
	}
	h.log.Info("hub is linked no more", "hub", q.seg[1])
	return &reply{status: http.StatusNoContent}, nil
}

func (h *Handler) destinations(ctx context.Context, q *request) (*reply, error) {
	id, err := provisioning.ParseRegistrationID(q.seg[1])
	if err != nil {
		return nil, err
	}
	known, err := h.svc.Known(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make([]dps.Delivery, len(known))
	for i, k := range known {
		out[i] = dps.Delivery{Hub: k.Hub, Kind: string(k.Kind), Host: k.Host, Wants: k.Wants, State: k.State, Since: dps.Time{Time: k.Since}, Attempts: k.Attempts,
			Next: dps.Time{Time: k.Next}, Reason: k.Reason}
	}
	return &reply{status: http.StatusOK, body: out}, nil
}

func (h *Handler) webhookKey(_ context.Context, q *request) (*reply, error) {
	var b dps.WebhookKey
	if err := q.decode(&b); err != nil {
		return nil, err
	}
	if err := dps.CheckWebhookURL(b.URL); err != nil {
		return nil, err
	}
	return &reply{status: http.StatusOK, body: dps.WebhookKey{URL: b.URL, Key: h.svc.WebhookKey(b.URL)}}, nil
}
