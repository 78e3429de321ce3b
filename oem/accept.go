package oem

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/durable"
	"github.com/cradle-iot/cradle/protocol/order"
)

// AcceptRequest is an order to accept.
type AcceptRequest struct {
	Order      []byte           // JWS as the account sent it
	AccountKey *ecdsa.PublicKey // the account's order key, where it is known otherwise; nil: as pinned, else the order's own
	Anchors    string           // PEM, TLS anchors in place of the order's; may be empty
}

// Acceptance is what AcceptOrder did.
type Acceptance struct {
	Order    *order.Order
	Dir      string            // the order's folder
	Station  *x509.Certificate // the station's certificate
	KeyID    string            // of the account's order key
	NewKey   bool              // the account's key was not known before: compare KeyID with what the account says
	Services []string          // SHA-256 fingerprints of the anchors that TLS is verified by
}

// AcceptOrder verifies an order, countersigns it, hands it in to the provider, pins its account's key and
// stores what the line needs. Run again after a crash or for the same order, it does the rest or asks for a
// fresh station certificate; the order itself never changes. Of an order that the provider refused nothing stays: neither may
// it keep the genuine one of that id out, nor its key be taken for the account's.
func (s *Station) AcceptOrder(ctx context.Context, r AcceptRequest) (*Acceptance, error) {
	pub, err := s.Public()
	if err != nil {
		return nil, err
	}
	o, key, fresh, err := s.verifyNew(r)
	if err != nil {
		return nil, err
	}
	if !s.now().Before(o.NotAfter) {
		return nil, cradle.Errorf(cradle.Forbidden, "order %s expired at %s", o.ID, o.NotAfter.Format(time.RFC3339)).
			WithHint("have the account place a new order")
	}
	doc, err := s.storeOrder(o, r, key, pub.Order)
	if err != nil {
		return nil, err
	}
	a := &Acceptance{Order: o, Dir: s.orderPath(o.ID), KeyID: order.KeyID(key), NewKey: fresh}
	l := &line{Station: s, order: o, doc: doc}
	if a.Services, err = l.fingerprints(); err != nil {
		return nil, err
	}
	a.Station, err = s.register(ctx, l, func() error { return s.pin(o.Account, key, r.AccountKey != nil) })
	return a, err
}

// verifyNew verifies an order by the account's key: the one given, else the pinned one, else (fresh)
// the order's own.
func (s *Station) verifyNew(r AcceptRequest) (o *order.Order, key *ecdsa.PublicKey, fresh bool, err error) {
	o, err = order.Peek(r.Order)
	if err != nil {
		return nil, nil, false, err
	}
	pinned, err := s.accountKey(o.Account)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, false, err
	}
	if key = r.AccountKey; key == nil {
		key = pinned
	}
	if key == nil {
		key, err = order.ParsePublic(o.AccountKey)
		return o, key, true, err
	}
	if _, err := order.Verify(r.Order, key, nil); err != nil {
		return nil, nil, false, cradle.Errorf(cradle.KindOf(err), "%w", err).
			WithHint("the known order key of account %s is %s; if the account has another now, give it with --account-key FILE", o.Account, order.KeyID(key))
	}
	return o, key, false, nil
}

func (s *Station) accountKey(a cradle.AccountID) (*ecdsa.PublicKey, error) {
	b, err := os.ReadFile(s.path("accounts", string(a)+".pub"))
	if err != nil {
		return nil, err
	}
	return order.DecodePublic(b)
}

// pin keeps the account's key for the orders to come.
func (s *Station) pin(a cradle.AccountID, key *ecdsa.PublicKey, replace bool) error {
	b, err := order.EncodePublic(key)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(s.path("accounts"), 0o700); err != nil {
		return err
	}
	path := s.path("accounts", string(a)+".pub")
	if replace {
		return durable.WriteFile(path, b, 0o644)
	}
	if err := durable.CreateFile(path, b, 0o644); !errors.Is(err, fs.ErrExist) {
		return err
	}
	if old, err := s.accountKey(a); err != nil || !old.Equal(key) {
		return cradle.Errorf(cradle.Conflict, "another order key of account %s was accepted at this moment", a)
	}
	return nil
}

// storeOrder countersigns an order and keeps it; one that is there already stays as it is.
func (s *Station) storeOrder(o *order.Order, r AcceptRequest, account, oem *ecdsa.PublicKey) ([]byte, error) {
	if err := durable.MkdirAll(s.orderPath(o.ID), 0o700); err != nil {
		return nil, err
	}
	// Anchors first: an order without them would use its own.
	if r.Anchors != "" {
		if _, err := order.Anchors(r.Anchors); err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "anchors: %w", err)
		}
		if err := durable.WriteFile(s.orderPath(o.ID, "anchors.pem"), []byte(r.Anchors), 0o644); err != nil {
			return nil, err
		}
	}
	path := s.orderPath(o.ID, "order.jws")
	if old, err := os.ReadFile(path); err == nil {
		have, err := order.Verify(old, account, oem)
		if err != nil || have.Digest() != o.Digest() {
			return nil, cradle.Errorf(cradle.Conflict, "another order %s was accepted before", o.ID).
				WithHint("an order never changes; have the account place a new one with another id")
		}
		return old, nil
	}
	key, err := order.LoadKey(s.path("order.key"))
	if err != nil {
		return nil, err
	}
	doc, err := order.Countersign(r.Order, key)
	if err != nil {
		return nil, err
	}
	if _, err := order.Verify(doc, account, oem); err != nil {
		return nil, err // order.key and oem.pub do not fit
	}
	return doc, durable.WriteFile(path, doc, 0o644)
}

// register hands the countersigned order in and, when it was accepted, pins the account's key and stores the station's
// certificate.
func (s *Station) register(ctx context.Context, l *line, pin func() error) (*x509.Certificate, error) {
	id := l.order.ID
	key, err := order.EnsureKey(s.orderPath(id, "station.key"))
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "station of " + string(id)}}, key)
	if err != nil {
		return nil, err
	}
	anchors, err := l.anchors()
	if err != nil {
		return nil, err
	}
	hc, err := s.client(anchors, nil)
	if err != nil {
		return nil, err
	}
	defer hc.CloseIdleConnections()
	c := order.Client{HTTP: hc, URL: l.order.ProviderURL}
	got, err := c.Accept(ctx, id, order.AcceptRequest{Order: l.doc, StationCSR: csr})
	switch cradle.KindOf(err) {
	case cradle.Unauthorized, cradle.Forbidden, cradle.NotFound, cradle.Conflict:
		if _, accepted := os.Stat(s.orderPath(id, "line.json")); errors.Is(accepted, fs.ErrNotExist) {
			return nil, errors.Join(err, os.RemoveAll(s.orderPath(id)))
		}
	}
	if err != nil {
		return nil, err
	}
	l.accepted = *got
	cert, err := l.checkAccepted(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := pin(); err != nil {
		return nil, err
	}
	both := append(pemCert(got.StationCertificate), pemCert(got.StationIssuer)...)
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(s.orderPath(id, "station.pem"), both, 0o644); err != nil {
		return nil, err
	}
	return cert, durable.WriteFile(s.orderPath(id, "line.json"), b, 0o644) // last: the order is ready with it
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
