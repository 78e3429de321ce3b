package oem

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/order"
)

// Overview is what the OEM's folder knows of an order.
type Overview struct {
	Order        *order.Order
	Digest       string
	AccountKeyID string
	StationUntil time.Time // end of the station certificate; zero before the provider has answered
	Made         int       // units made here
	InLots       int       // of them in closed lots
	Lots         []cradle.LotID
}

// Show reads an order of this folder, verified.
func (s *Station) Show(id cradle.OrderID) (*Overview, error) {
	l, err := s.readOrder(id)
	if err != nil {
		return nil, err
	}
	key, err := order.ParsePublic(l.order.AccountKey)
	if err != nil {
		return nil, err
	}
	v := &Overview{Order: l.order, Digest: l.order.Digest(), AccountKeyID: order.KeyID(key)}
	if b, err := os.ReadFile(s.orderPath(id, "station.pem")); err == nil {
		if block, _ := pem.Decode(b); block != nil {
			if c, err := x509.ParseCertificate(block.Bytes); err == nil {
				v.StationUntil = c.NotAfter.UTC()
			}
		}
	}
	units, err := l.units()
	if err != nil {
		return nil, err
	}
	v.Made = len(units)
	if !exists(s.orderPath(id, "lots")) {
		return v, nil
	}
	fresh, closed, err := l.pending()
	if err != nil {
		return nil, err
	}
	v.InLots = v.Made - len(fresh)
	for _, c := range closed {
		v.Lots = append(v.Lots, c.report.Lot)
	}
	return v, nil
}
