package adminserver

import (
	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
)

func (s *Server) orderRoutes() {
	handle(s, op{pattern: "POST /orders", does: "Register an order that the account signed.", need: work, scope: found}, s.createOrder)
	handle(s, op{pattern: "GET /orders/{id}", does: "An order.", need: follow, scope: found}, func(c *call, _ none) (admin.Order, error) {
		o, err := s.order(c)
		return orderMessage(o), err
	})
	handle(s, op{pattern: "POST /orders/{id}/thaw", does: "Say how many units were born under an order that a loss has frozen, and open it.", need: own, scope: found},
		func(c *call, in admin.ThawOrder) (admin.Order, error) {
			o, err := s.order(c)
			if err != nil {
				return admin.Order{}, err
			}
			o, err = s.Provider.ThawOrder(c.ctx(), o.ID, in.Used, in.Reason)
			return orderMessage(o), err
		})
	handle(s, op{pattern: "POST /orders/{id}/withdraw", does: "End an order; the answer names the devices affected.", need: work, scope: found}, s.withdrawOrder)
	handle(s, op{pattern: "GET /lots", does: "An account's lots.", need: follow, scope: named}, s.lots)
	handle(s, op{pattern: "GET /lots/{id}", does: "A lot.", need: follow, scope: found}, func(c *call, _ none) (admin.Lot, error) {
		l, err := s.lot(c)
		return lotMessage(l), err
	})
	handle(s, op{pattern: "POST /lots/{id}/accept", does: "Accept a lot that waits.", need: work, scope: found}, s.acceptLot)
}

func (s *Server) createOrder(c *call, in admin.CreateOrder) (admin.Order, error) {
	o, err := s.Provider.CreateOrder(c.ctx(), in.JWS, c.may)
	if err != nil {
		return admin.Order{}, err
	}
	return orderMessage(*o), nil
}

func (s *Server) order(c *call) (provider.Order, error) {
	id := cradle.OrderID(c.path("id"))
	o, err := s.Provider.Order(c.ctx(), id)
	if err == nil && c.may(o.Account) != nil {
		err = cradle.Errorf(cradle.NotFound, "no order %q", id)
	}
	return o, err
}

func orderMessage(o provider.Order) admin.Order {
	return admin.Order{ID: o.ID, Account: o.Account, OEM: o.OEM, State: string(o.State), Used: o.Used, Quantity: o.Quantity,
		Reason: o.Reason, Created: o.Created}
}

func (s *Server) withdrawOrder(c *call, in admin.ChangeState) (out admin.Order, err error) {
	o, err := s.order(c)
	if err != nil {
		return out, err
	}
	affected, err := s.Provider.WithdrawOrder(c.ctx(), o.ID, in.Reason)
	if err != nil {
		return out, err
	}
	if o, err = s.Provider.Order(c.ctx(), o.ID); err != nil {
		return out, err
	}
	out = orderMessage(o)
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

type ofAccount struct {
	Account cradle.AccountID `query:"account" doc:"Whose."`
}

func (s *Server) lots(c *call, in ofAccount) ([]admin.Lot, error) {
	lots, err := s.Provider.Lots(c.ctx(), in.Account)
	if err != nil {
		return nil, err
	}
	out := make([]admin.Lot, 0, len(lots))
	for _, l := range lots {
		out = append(out, lotMessage(l))
	}
	return out, nil
}

func (s *Server) lot(c *call) (provider.Lot, error) {
	id := cradle.LotID(c.path("id"))
	l, err := s.Provider.Lot(c.ctx(), id)
	if err == nil && c.may(l.Account) != nil {
		err = cradle.Errorf(cradle.NotFound, "no lot %q", id)
	}
	return l, err
}

func (s *Server) acceptLot(c *call, in admin.AcceptLot) (admin.Lot, error) {
	l, err := s.lot(c)
	if err != nil {
		return admin.Lot{}, err
	}
	l, err = s.Provider.AcceptLot(c.ctx(), l.ID, in.Custody)
	return lotMessage(l), err
}
