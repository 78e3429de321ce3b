package hubdb

import (
	"context"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

// CAs implements hub.Authorities.
func (s *Store) CAs(ctx context.Context, name hub.Name) ([]hub.TrustedCA, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	return sqldb.List(ctx, s.db, func(r sqldb.Row) (ca hub.TrustedCA, err error) {
		var added int64
		err = r.Scan(&ca.Name, &ca.DER, &added)
		ca.Added = fromMicros(added)
		return ca, err
	}, `SELECT name, der, added FROM trusted_cas WHERE hub = ? ORDER BY name`, h)
}

// AddCA implements hub.Authorities.
func (s *Store) AddCA(ctx context.Context, name hub.Name, ca *hub.TrustedCA) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	var n int64
	err = s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(`INSERT INTO trusted_cas (hub, name, der, added) VALUES (?, ?, ?, ?) ON CONFLICT (hub, name) DO NOTHING`,
			h, ca.Name, ca.DER, micros(ca.Added))
		return err
	})
	if err == nil && n == 0 {
		return cradle.Errorf(cradle.Conflict, "hub %s trusts a CA %q already", name, ca.Name)
	}
	return err
}

// RemoveCA implements hub.Authorities.
func (s *Store) RemoveCA(ctx context.Context, name hub.Name, ca string) error {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return err
	}
	var n int64
	err = s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		n, err = tx.Exec(`DELETE FROM trusted_cas WHERE hub = ? AND name = ?`, h, ca)
		return err
	})
	if err == nil && n == 0 {
		return cradle.Errorf(cradle.NotFound, "hub %s trusts no CA %.64q", name, ca)
	}
	return err
}
