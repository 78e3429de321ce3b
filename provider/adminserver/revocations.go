package adminserver

import (
	"context"
	"crypto/x509"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

func (s *Server) revocationRoutes() {
	handle(s, op{pattern: "POST /accounts/{account}/revocations", does: "Revoke, suspend or release a certificate, a device, or a whole set of devices.", need: work, scope: named}, s.revoke)
	handle(s, op{pattern: "GET /accounts/{account}/revocations", does: "Changes of sets, newest first.", need: view, scope: named}, s.revocations)
	handle(s, op{pattern: "GET /accounts/{account}/revocations/{id}", does: "How the change of a set stands.", need: view, scope: named}, s.revocation)
	handle(s, op{pattern: "GET /tpm-makers", does: "The TPM makers that are believed, and the keys that are distrusted.", need: view, scope: installation}, s.makers)
	handle(s, op{pattern: "POST /tpm-makers/distrust", does: "Believe a TPM maker, an issuer or an endorsement key no more: lists the devices, and once confirmed revokes them.", need: own, scope: installation}, s.distrust)
	handle(s, op{pattern: "POST /tpm-makers/trust", does: "Take a distrust back, for devices to come.", need: own, scope: installation}, s.trust)
}

// selector is the one that a request names.
func selector(in *admin.Revoke) (kind, value string, err error) {
	for _, f := range [...]struct{ kind, value string }{{"serial", string(in.Serial)}, {"device", string(in.Device)}, {string(provider.ByOrder), string(in.Order)},
		{string(provider.ByLot), string(in.Lot)}, {string(provider.ByOEM), string(in.OEM)}, {string(provider.ByEKIssuer), in.EKIssuer}, {string(provider.ByMaker), string(in.Maker)}} {
		if f.value == "" {
			continue
		}
		if kind != "" {
			return "", "", cradle.Errorf(cradle.Invalid, "two selectors: %s and %s", kind, f.kind).WithHint("name one")
		}
		kind, value = f.kind, f.value
	}
	if kind == "" {
		return "", "", cradle.Errorf(cradle.Invalid, "no selector").WithHint("name a serial, device, order, lot, oem, ek_issuer or maker")
	}
	return kind, value, nil
}

func (s *Server) revoke(c *call, in admin.Revoke) (out admin.Revocation, err error) {
	account := c.account()
	kind, value, err := selector(&in)
	if err != nil {
		return out, err
	}
	ch := provider.StateChange(in.Change)
	if ch == "" {
		ch = provider.Revoke
	}
	out = admin.Revocation{Account: account, Selector: kind, Value: value, Change: string(ch), Reason: in.Reason, State: "done", Total: 1, Changed: 1}
	var ev provider.FeedEvent
	switch kind {
	case "serial":
		_, ev, err = s.Provider.ChangeCertificate(c.ctx(), account, cradle.CertSerial(value), ch, in.Reason)
	case "device":
		ev, err = s.Provider.ChangeState(c.ctx(), account, cradle.DeviceID(value), ch, in.Reason)
	default:
		set := provider.Selector{Kind: provider.SelectorKind(kind), Value: value}
		if in.Preview {
			out.State, out.Changed = "preview", 0
			out.Total, err = s.Provider.CountSet(c.ctx(), account, set)
			return out, err
		}
		j, err := s.Provider.ChangeSet(c.ctx(), account, set, ch, in.Reason)
		if err != nil {
			return out, err
		}
		out = jobMessage(j)
		s.whenFollowed(c, &out)
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Feed, out.EST = ev.Seq, &ev.At
	s.whenFollowed(c, &out)
	return out, nil
}

// whenFollowed waits a little until the other services have applied what is done.
func (s *Server) whenFollowed(c *call, r *admin.Revocation) {
	if s.Followed == nil || r.State != "done" {
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx(), followedWithin)
	defer cancel()
	r.Provisioning, r.Hub = s.Followed(ctx, r.Feed)
}

func jobMessage(j provider.Job) admin.Revocation {
	out := admin.Revocation{ID: j.ID, Account: j.Account, Selector: string(j.Set.Kind), Value: j.Set.Value, Change: string(j.Change), Reason: j.Reason, State: "running",
		Total: j.Total, Changed: j.Changed, Feed: j.Feed, Created: &j.Created}
	if j.Done {
		out.State, out.Finished, out.EST = "done", &j.Finished, &j.Finished
	}
	return out
}

func (s *Server) revocations(c *call, _ none) ([]admin.Revocation, error) {
	jobs, err := s.Provider.Jobs(c.ctx(), c.account())
	out := make([]admin.Revocation, 0, len(jobs))
	for _, j := range jobs {
		out = append(out, jobMessage(j))
	}
	return out, err
}

func (s *Server) revocation(c *call, _ none) (out admin.Revocation, err error) {
	j, err := s.Provider.Job(c.ctx(), c.account(), c.path("id"))
	if err != nil {
		return out, err
	}
	out = jobMessage(j)
	s.whenFollowed(c, &out)
	return out, nil
}

func (s *Server) makers(c *call, _ none) (out admin.TPMMakers, err error) {
	makers, keys, err := s.Provider.Makers(c.ctx())
	if err != nil {
		return out, err
	}
	out.Makers, out.Distrusted = []admin.TPMMaker{}, []admin.DistrustedKey{}
	for _, m := range makers {
		t := admin.TPMMaker{Maker: m.ID, Devices: m.Devices}
		for _, a := range m.Anchors {
			row := admin.TPMAnchor{Fingerprint: a.Fingerprint, Tier: a.Tier, Distrusted: a.Distrusted}
			if cert, err := x509.ParseCertificate(a.Cert); err == nil {
				row.Subject, row.NotAfter = cert.Subject.String(), cert.NotAfter
			}
			t.Anchors = append(t.Anchors, row)
		}
		out.Makers = append(out.Makers, t)
	}
	for _, k := range keys {
		out.Distrusted = append(out.Distrusted, admin.DistrustedKey(k))
	}
	return out, nil
}

func distrusting(in admin.Distrust) provider.Distrusting {
	return provider.Distrusting{Maker: in.Maker, Certificate: in.Certificate, EK: in.EK}
}

func (s *Server) distrust(c *call, in admin.Distrust) (out admin.Concern, err error) {
	found, err := s.Provider.Distrust(c.ctx(), distrusting(in), in.Reason, in.Confirm)
	if err != nil {
		return out, err
	}
	out = admin.Concern{Confirmed: in.Confirm, Keys: found.Keys, Accounts: found.Accounts, Devices: []admin.AccountDevice{}}
	for _, d := range found.Devices {
		out.Devices = append(out.Devices, admin.AccountDevice(d))
	}
	for _, j := range found.Jobs {
		out.Jobs = append(out.Jobs, jobMessage(j))
	}
	return out, nil
}

func (s *Server) trust(c *call, in admin.Distrust) (out admin.Concern, err error) {
	out.Keys, err = s.Provider.Trust(c.ctx(), distrusting(in), in.Reason)
	out.Confirmed, out.Devices, out.Accounts = true, []admin.AccountDevice{}, map[cradle.AccountID]int64{}
	return out, err
}
