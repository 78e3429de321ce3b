package adminserver

import (
	"bytes"
	"context"
	"encoding/pem"
	"net/http"
	"strconv"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/timestamp"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func (s *Server) routes() {
	p := s.Provider
	s.handle("GET /status", func(r *http.Request, c caller) (any, error) { return s.Status(r.Context()), nil })
	s.handle("GET /anchors", func(r *http.Request, c caller) (any, error) {
		return map[string]string{"pem": admin.PEM(p.Services().Raw)}, nil
	})
	s.handle("GET /service-key/{service}", func(r *http.Request, c caller) (any, error) {
		if err := c.operator(); err != nil {
			return nil, err
		}
		cs, err := s.ServiceKey(r.Context(), r.PathValue("service"))
		return admin.ServiceKey{ConnectionString: cs}, err
	})
	s.handle("POST /accounts", s.createAccount)
	s.handle("GET /accounts/{account}", func(r *http.Request, c caller) (any, error) {
		id := cradle.AccountID(r.PathValue("account"))
		if err := c.may(id); err != nil {
			return nil, err
		}
		return s.account(r.Context(), id)
	})
	s.handle("POST /oems", s.createOEM)
	s.handle("POST /tpm-makers", s.importMaker)
	s.handle("POST /orders", s.createOrder)
	s.handle("GET /orders/{id}", func(r *http.Request, c caller) (any, error) {
		o, err := s.order(r, c)
		return orderMessage(o), err
	})
	s.handle("POST /orders/{id}/withdraw", s.withdrawOrder)
	s.handle("GET /lots", s.lots)
	s.handle("GET /lots/{id}", func(r *http.Request, c caller) (any, error) {
		l, err := s.lot(r, c)
		return lotMessage(l), err
	})
	s.handle("POST /lots/{id}/accept", s.acceptLot)
	s.handle("GET /devices", s.devices)
	s.handle("GET /accounts/{account}/devices/{id}", s.device)
	for _, ch := range []provider.StateChange{provider.Suspend, provider.Release, provider.Revoke, provider.Retire} {
		s.handle("POST /accounts/{account}/devices/{id}/"+string(ch), func(r *http.Request, c caller) (any, error) {
			return s.changeState(r, c, ch)
		})
	}
	s.mux.HandleFunc("GET "+admin.Prefix+"/audit/{log}", s.export)

	s.open("GET /status/v1/feed", func(r *http.Request) (any, error) {
		after, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
		if err != nil || after < 0 {
			return nil, cradle.Errorf(cradle.Invalid, "after must be the number of the last event that you know, 0 for none")
		}
		return p.After(r.Context(), after)
	})
	s.open("GET "+timestamp.Path, func(r *http.Request) (any, error) {
		nonce, err := timestamp.ParseNonce(r.URL.Query().Get("nonce"))
		if err != nil {
			return nil, err
		}
		return p.Timestamp(nonce)
	})
	s.open("POST /oem/v1/orders/{id}/accept", func(r *http.Request) (any, error) {
		in, err := body[order.AcceptRequest](r)
		if err != nil {
			return nil, err
		}
		return p.AcceptOrder(r.Context(), cradle.OrderID(r.PathValue("id")), in, s.Public.URL)
	})
	s.open("GET /oem/v1/orders/{id}", func(r *http.Request) (any, error) {
		o, err := p.Order(r.Context(), cradle.OrderID(r.PathValue("id")))
		return order.Status{ID: o.ID, State: string(o.State), Quantity: o.Quantity, Used: o.Used}, err
	})
	s.open("POST /oem/v1/orders/{id}/lots", func(r *http.Request) (any, error) {
		in, err := body[order.LotRequest](r)
		if err != nil {
			return nil, err
		}
		return p.CloseLot(r.Context(), cradle.OrderID(r.PathValue("id")), in)
	})
}

func (s *Server) createAccount(r *http.Request, c caller) (any, error) {
	if err := c.operator(); err != nil {
		return nil, err
	}
	in, err := body[admin.CreateAccount](r)
	if err != nil {
		return nil, err
	}
	var pr provider.Profiles
	for _, f := range []struct {
		text string
		to   *time.Duration
	}{{in.OperationalValidity, &pr.OperationalValidity}, {in.LDevIDValidity, &pr.LDevIDValidity}} {
		if f.text != "" {
			if *f.to, err = time.ParseDuration(f.text); err != nil {
				return nil, cradle.Errorf(cradle.Invalid, "validity %q: %v", f.text, err).WithHint("write it like 24h or 10m")
			}
		}
	}
	_, err = s.Provider.CreateAccount(r.Context(), in.Name, in.OrderKey, pr)
	if cradle.KindOf(err) == cradle.Conflict {
		// The builder who holds the account's order key asks again: the answer, with the token, was lost.
		if a, _, aerr := s.Provider.Account(r.Context(), in.Name); aerr == nil && bytes.Equal(a.OrderKey, in.OrderKey) {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	a, err := s.account(r.Context(), in.Name)
	if err != nil {
		return nil, err
	}
	a.Token = Token(s.Key, in.Name)
	return a, nil
}

func (s *Server) account(ctx context.Context, id cradle.AccountID) (*admin.Account, error) {
	a, cas, err := s.Provider.Account(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &admin.Account{Name: id, Region: a.Region, ESTHost: s.Public.ESTHost(id), Created: a.Created, Authorities: authorities(cas)}
	for _, pr := range []cradle.Profile{cradle.IDevID, cradle.IAK, cradle.LDevID, cradle.Operational} {
		label := cradle.Label(id, pr)
		out.Labels = append(out.Labels, admin.Label{Profile: pr, Label: label, URL: s.Public.URL + "/.well-known/est/" + label})
	}
	out.Profiles = []admin.Profile{
		{Profile: cradle.IDevID, Validity: "no end (99991231235959Z)", Evidence: true},
		{Profile: cradle.IAK, Validity: "no end (99991231235959Z)", Evidence: true},
		{Profile: cradle.LDevID, Validity: a.Profiles.LDevIDValidity.String(), Evidence: true},
		{Profile: cradle.Operational, Validity: a.Profiles.OperationalValidity.String(), Evidence: true},
	}
	return out, nil
}

func authorities(cas []provider.Authority) []admin.Authority {
	var out []admin.Authority
	for _, a := range cas {
		out = append(out, admin.Authority{Kind: string(a.Kind), Class: a.Class, Fingerprint: a.ID, PEM: admin.PEM(a.Cert)})
	}
	return out
}

func (s *Server) createOEM(r *http.Request, c caller) (any, error) {
	if err := c.operator(); err != nil {
		return nil, err
	}
	in, err := body[admin.CreateOEM](r)
	if err != nil {
		return nil, err
	}
	public, err := order.ParseOEMPublic([]byte(in.Public))
	if err != nil {
		return nil, err
	}
	o, cas, err := s.Provider.CreateOEM(r.Context(), in.Name, public)
	if err != nil {
		return nil, err
	}
	return admin.OEM{Name: o.ID, Created: o.Created, Authorities: authorities(cas)}, nil
}

func (s *Server) importMaker(r *http.Request, c caller) (any, error) {
	if err := c.operator(); err != nil {
		return nil, err
	}
	in, err := body[admin.ImportMaker](r)
	if err != nil {
		return nil, err
	}
	var certs [][]byte
	for rest := []byte(in.PEM); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			return nil, cradle.Errorf(cradle.Invalid, "the bundle holds a PEM block %q; only CERTIFICATE is wanted", b.Type)
		}
		certs = append(certs, b.Bytes)
	}
	anchors, added, err := s.Provider.ImportMaker(r.Context(), in.Maker, in.Tier, certs)
	if err != nil {
		return nil, err
	}
	out := admin.Maker{Maker: in.Maker, Tier: in.Tier, Certificates: len(anchors), Added: added}
	for _, a := range anchors {
		out.Fingerprints = append(out.Fingerprints, a.Fingerprint)
	}
	return out, nil
}

func (s *Server) createOrder(r *http.Request, c caller) (any, error) {
	in, err := body[admin.CreateOrder](r)
	if err != nil {
		return nil, err
	}
	o, err := s.Provider.CreateOrder(r.Context(), in.JWS, c.may)
	if err != nil {
		return nil, err
	}
	return orderMessage(*o), nil
}

func (s *Server) order(r *http.Request, c caller) (provider.Order, error) {
	id := cradle.OrderID(r.PathValue("id"))
	o, err := s.Provider.Order(r.Context(), id)
	if err == nil && c.may(o.Account) != nil {
		err = cradle.Errorf(cradle.NotFound, "no order %q", id)
	}
	return o, err
}

func orderMessage(o provider.Order) admin.Order {
	return admin.Order{ID: o.ID, Account: o.Account, OEM: o.OEM, State: string(o.State), Used: o.Used, Quantity: o.Quantity,
		Reason: o.Reason, Created: o.Created}
}

func (s *Server) withdrawOrder(r *http.Request, c caller) (any, error) {
	in, err := body[admin.ChangeState](r)
	if err != nil {
		return nil, err
	}
	o, err := s.order(r, c)
	if err != nil {
		return nil, err
	}
	affected, err := s.Provider.WithdrawOrder(r.Context(), o.ID, in.Reason)
	if err != nil {
		return nil, err
	}
	if o, err = s.Provider.Order(r.Context(), o.ID); err != nil {
		return nil, err
	}
	out := orderMessage(o)
	out.Devices = affected
	return out, nil
}

func lotMessage(l provider.Lot) admin.Lot {
	m := admin.Lot{ID: l.ID, Account: l.Account, Order: l.Order, OEM: l.OEM, State: l.State, Units: l.Units, Findings: l.Findings,
		Closed: l.Closed, Report: l.Report, Custody: l.Custody}
	if !l.Accepted.IsZero() {
		m.Accepted = &l.Accepted
	}
	return m
}

func (s *Server) lots(r *http.Request, c caller) (any, error) {
	account := cradle.AccountID(r.URL.Query().Get("account"))
	if err := c.may(account); err != nil {
		return nil, err
	}
	lots, err := s.Provider.Lots(r.Context(), account)
	if err != nil {
		return nil, err
	}
	out := make([]admin.Lot, 0, len(lots))
	for _, l := range lots {
		out = append(out, lotMessage(l))
	}
	return out, nil
}

func (s *Server) lot(r *http.Request, c caller) (provider.Lot, error) {
	id := cradle.LotID(r.PathValue("id"))
	l, err := s.Provider.Lot(r.Context(), id)
	if err == nil && c.may(l.Account) != nil {
		err = cradle.Errorf(cradle.NotFound, "no lot %q", id)
	}
	return l, err
}

func (s *Server) acceptLot(r *http.Request, c caller) (any, error) {
	l, err := s.lot(r, c)
	if err != nil {
		return nil, err
	}
	in, err := body[admin.AcceptLot](r)
	if err != nil {
		return nil, err
	}
	l, err = s.Provider.AcceptLot(r.Context(), l.ID, in.Custody)
	return lotMessage(l), err
}

func deviceMessage(d provider.Device) admin.Device {
	return admin.Device{ID: d.ID, Account: d.Account, OEM: d.OEM, Order: d.Order, Lot: d.Lot, Serial: d.Serial, State: d.State,
		Tier: d.Tier, Maker: d.Maker, EKDigest: d.EKDigest, Epoch: d.Epoch, Reason: d.Reason, Created: d.Created}
}

func (s *Server) devices(r *http.Request, c caller) (any, error) {
	q := r.URL.Query()
	account := cradle.AccountID(q.Get("account"))
	if err := c.may(account); err != nil {
		return nil, err
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	devices, err := s.Provider.DeviceList(r.Context(), account, provider.DeviceFilter{Order: cradle.OrderID(q.Get("order")),
		Lot: cradle.LotID(q.Get("lot")), State: cradle.DeviceState(q.Get("state")), After: cradle.DeviceID(q.Get("after")), Limit: limit})
	if err != nil {
		return nil, err
	}
	out := make([]admin.Device, 0, len(devices))
	for _, d := range devices {
		out = append(out, deviceMessage(d))
	}
	return out, nil
}

func (s *Server) deviceIDs(r *http.Request, c caller) (cradle.AccountID, cradle.DeviceID, error) {
	account := cradle.AccountID(r.PathValue("account"))
	return account, cradle.DeviceID(r.PathValue("id")), c.may(account)
}

func (s *Server) device(r *http.Request, c caller) (any, error) {
	account, id, err := s.deviceIDs(r, c)
	if err != nil {
		return nil, err
	}
	d, err := s.Provider.Device(r.Context(), account, id)
	if err != nil {
		return nil, err
	}
	certs, err := s.Provider.Certificates(r.Context(), account, id)
	if err != nil {
		return nil, err
	}
	m := deviceMessage(d)
	for i := len(certs) - 1; i >= 0; i-- {
		k := certs[i]
		cr := admin.Credential{Profile: k.Profile, Serial: k.Serial, Fingerprint: k.Digest, Slot: string(k.Slot), NotBefore: k.NotBefore,
			NotAfter: k.NotAfter, Issued: k.Issued, Reason: k.Reason, PEM: admin.PEM(k.DER)}
		if !k.Revoked.IsZero() {
			cr.Revoked = &k.Revoked
		}
		for _, up := range s.Provider.Chain(k) {
			cr.Chain += admin.PEM(up)
		}
		m.Credentials = append(m.Credentials, cr)
	}
	history, err := s.Provider.History(r.Context(), d)
	if err != nil {
		return nil, err
	}
	for _, h := range history {
		m.History = append(m.History, admin.Happening(h))
	}
	return m, nil
}

// followedWithin is how long a state change waits to report when the other services refuse the device.
const followedWithin = 5 * time.Second

func (s *Server) changeState(r *http.Request, c caller, ch provider.StateChange) (any, error) {
	account, id, err := s.deviceIDs(r, c)
	if err != nil {
		return nil, err
	}
	in, err := body[admin.ChangeState](r)
	if err != nil {
		return nil, err
	}
	ev, err := s.Provider.ChangeState(r.Context(), account, id, ch, in.Reason)
	if err != nil {
		return nil, err
	}
	out := admin.Changed{Device: id, Account: account, State: ev.State, Feed: ev.Seq, EST: ev.At}
	if s.Followed != nil {
		ctx, cancel := context.WithTimeout(r.Context(), followedWithin)
		defer cancel()
		out.Provisioning, out.Hub = s.Followed(ctx, ev.Seq)
	}
	return out, nil
}

// export streams a log. A failure in the middle cuts the connection, so that a half is not taken for the whole.
func (s *Server) export(w http.ResponseWriter, r *http.Request) {
	c, err := s.caller(r)
	log := r.PathValue("log")
	if err == nil {
		if log == provider.InstallationLog {
			err = c.operator()
		} else if err = c.may(cradle.AccountID(log)); err == nil {
			_, _, err = s.Provider.Account(r.Context(), cradle.AccountID(log))
		}
	}
	if err != nil {
		s.answer(w, r, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	if err := s.Provider.Export(r.Context(), log, ledger.NewWriter(w)); err != nil {
		s.Log.Error("audit export", "log", log, "err", err)
		panic(http.ErrAbortHandler)
	}
}
