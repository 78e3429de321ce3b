package adminserver

import (
	"net/http"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/protocol/status"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

func (s *Server) routes() {
	handle(s, op{pattern: "GET /status", does: "The services, their health, and the logs' newest checkpoints.", need: know}, s.status)
	handle(s, op{pattern: "GET /anchors", does: "The services CA: what a TLS client must trust.", need: know}, func(*call, none) (admin.Anchors, error) {
		return admin.Anchors{PEM: admin.PEM(s.Provider.Services().Raw)}, nil
	})
	handle(s, op{pattern: "GET /service-key/{service}", does: "The connection string of a service API: dps or hub.", need: own, scope: installation},
		func(c *call, _ none) (admin.ServiceKey, error) {
			cs, err := s.ServiceKey(c.ctx(), c.path("service"))
			return admin.ServiceKey{ConnectionString: cs}, err
		})
	s.operatorRoutes()
	s.accountRoutes()
	s.caRoutes()
	s.orderRoutes()
	s.deviceRoutes()
	s.revocationRoutes()
	s.clientRoutes()
	s.approvalRoutes()
	s.auditRoutes()
	s.openRoutes()
}

// openRoutes are those without a token.
func (s *Server) openRoutes() {
	p := s.Provider
	type after struct {
		After int64 `query:"after" doc:"The number of the last event that you know, 0 for none."`
		Now   bool  `query:"now" doc:"Answer at once, also when there is no news."`
	}
	handle(s, op{pattern: "GET /status/v1/feed", does: "The status feed, signed."}, func(c *call, in after) (status.Envelope, error) {
		return p.After(c.ctx(), in.After, in.Now)
	})
	type nonce struct {
		Nonce string `query:"nonce" doc:"Base64url."`
	}
	handle(s, op{pattern: "GET " + timestamp.Path, does: "The time, signed over your nonce."}, func(c *call, in nonce) (*timestamp.Statement, error) {
		n, err := timestamp.ParseNonce(in.Nonce)
		if err != nil {
			return nil, err
		}
		return p.Timestamp(n)
	})
	handle(s, op{pattern: "POST /oem/v1/orders/{id}/accept", does: "Hand in an order that the OEM countersigned."},
		func(c *call, in order.AcceptRequest) (*order.Accepted, error) {
			return p.AcceptOrder(c.ctx(), cradle.OrderID(c.path("id")), in, s.Public.URL)
		})
	handle(s, op{pattern: "GET /oem/v1/orders/{id}", does: "How an order stands."}, func(c *call, _ none) (order.Status, error) {
		o, err := p.Order(c.ctx(), cradle.OrderID(c.path("id")))
		return order.Status{ID: o.ID, State: string(o.State), Quantity: o.Quantity, Used: o.Used}, err
	})
	handle(s, op{pattern: "POST /oem/v1/orders/{id}/lots", does: "Close a lot by the OEM's signed report."},
		func(c *call, in order.LotRequest) (*order.LotAnswer, error) {
			return p.CloseLot(c.ctx(), cradle.OrderID(c.path("id")), in)
		})
	handleStream(s, op{pattern: "GET " + admin.Prefix + "/openapi.json", does: "This document."}, "application/json", func(w http.ResponseWriter, _ *call) error {
		doc, err := s.document()
		if err != nil {
			return err
		}
		_, err = w.Write(doc)
		return err
	})
}

// status hides the logs of other accounts from an account's token.
func (s *Server) status(c *call, _ none) (admin.Status, error) {
	st := s.Status(c.ctx())
	own := st.Checkpoint[:0]
	for _, cp := range st.Checkpoint {
		if c.may(cradle.AccountID(cp.Log)) == nil {
			own = append(own, cp)
		}
	}
	st.Checkpoint = own
	return st, nil
}
