package adminserver

import (
	"context"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

func (s *Server) deviceRoutes() {
	handle(s, op{pattern: "GET /devices", does: "An account's devices, by id.", need: view, scope: named}, s.devices)
	handle(s, op{pattern: "GET /accounts/{account}/devices/{id}", does: "A device, its credentials and its history.", need: view, scope: named}, s.device)
	for ch, does := range map[provider.StateChange]string{provider.Suspend: "Refuse a device until it is released.", provider.Release: "Let a suspended device work again.",
		provider.Revoke: "Revoke a device for good.", provider.Retire: "Take a device out of service for good."} {
		handle(s, op{pattern: "POST /accounts/{account}/devices/{id}/" + string(ch), does: does, need: work, scope: named},
			func(c *call, in admin.ChangeState) (admin.Changed, error) { return s.changeState(c, in, ch) })
	}
}

func deviceMessage(d provider.Device) admin.Device {
	return admin.Device{ID: d.ID, Account: d.Account, OEM: d.OEM, Order: d.Order, Lot: d.Lot, Origin: d.Origin, Serial: d.Serial, State: d.State,
		Tier: d.Tier, Maker: d.Maker, EKDigest: d.EKDigest, Epoch: d.Epoch, Reason: d.Reason, Created: d.Created}
}

type devicesQuery struct {
	Account cradle.AccountID   `query:"account" doc:"Whose."`
	Order   cradle.OrderID     `query:"order" doc:"Born under this order."`
	Lot     cradle.LotID       `query:"lot" doc:"Of this lot."`
	State   cradle.DeviceState `query:"state" doc:"In this state."`
	After   cradle.DeviceID    `query:"after" doc:"Ids after this one: the last of the page before."`
	Limit   int                `query:"limit" doc:"At most so many; 1000 at most."`
}

func (s *Server) devices(c *call, in devicesQuery) ([]admin.Device, error) {
	devices, err := s.Provider.DeviceList(c.ctx(), in.Account, provider.DeviceFilter{Order: in.Order, Lot: in.Lot, State: in.State, After: in.After, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	out := make([]admin.Device, 0, len(devices))
	for _, d := range devices {
		out = append(out, deviceMessage(d))
	}
	return out, nil
}

func (s *Server) device(c *call, _ none) (m admin.Device, err error) {
	account, id := c.account(), cradle.DeviceID(c.path("id"))
	d, err := s.Provider.Device(c.ctx(), account, id)
	if err != nil {
		return m, err
	}
	certs, err := s.Provider.Certificates(c.ctx(), account, id)
	if err != nil {
		return m, err
	}
	m = deviceMessage(d)
	for i := len(certs) - 1; i >= 0; i-- {
		k := certs[i]
		cr := admin.Credential{Profile: k.Profile, Serial: k.Serial, Fingerprint: k.Digest, Slot: string(k.Slot), Proved: k.Proved(), NotBefore: k.NotBefore,
			NotAfter: k.NotAfter, Issued: k.Issued, Reason: k.Reason, PEM: admin.PEM(k.DER)}
		if k.Slot == provider.Sealed { // nobody may see it before its device has
			cr.PEM, cr.Fingerprint, cr.Serial = "", "", ""
		}
		if !k.Revoked.IsZero() {
			cr.Revoked, cr.Hold = &k.Revoked, k.Hold
		}
		for _, up := range s.Provider.Chain(k) {
			cr.Chain += admin.PEM(up)
		}
		m.Credentials = append(m.Credentials, cr)
	}
	history, err := s.Provider.History(c.ctx(), d)
	if err != nil {
		return m, err
	}
	for _, h := range history {
		m.History = append(m.History, admin.Happening(h))
	}
	return m, nil
}

// followedWithin is how long a state change waits to report when the other services refuse the device.
const followedWithin = 5 * time.Second

func (s *Server) changeState(c *call, in admin.ChangeState, ch provider.StateChange) (out admin.Changed, err error) {
	account, id := c.account(), cradle.DeviceID(c.path("id"))
	ev, err := s.Provider.ChangeState(c.ctx(), account, id, ch, in.Reason)
	if err != nil {
		return out, err
	}
	out = admin.Changed{Device: id, Account: account, State: ev.State, Feed: ev.Seq, EST: ev.At}
	if s.Followed != nil {
		ctx, cancel := context.WithTimeout(c.ctx(), followedWithin)
		defer cancel()
		out.Provisioning, out.Hub = s.Followed(ctx, ev.Seq)
	}
	return out, nil
}
