package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const shardColumns = `authority, shard, url, issued, last_expiry, wanted, made, number, this_update, next_update`

func shardFields(s *provider.Shard, t *[3]int64) []any {
	return []any{&s.Authority, &s.Number, &s.URL, &s.Issued, &t[0], &s.Wanted, &s.Made, &s.CRLNumber, &t[1], &t[2]}
}

func setShardTimes(s *provider.Shard, t *[3]int64) {
	s.LastExpiry, s.ThisUpdate, s.NextUpdate = fromMicros(t[0]), fromMicros(t[1]), fromMicros(t[2])
}

func scanShard(r row, s *provider.Shard) error {
	var t [3]int64
	err := r.Scan(shardFields(s, &t)...)
	setShardTimes(s, &t)
	return err
}

// OpenShard implements provider.CRLs.
func (d *DB) OpenShard(ctx context.Context, authority, replica string, url func(shard int64) string) (provider.Shard, error) {
	var s provider.Shard
	open := func(tx *sqldb.Tx) error {
		s = provider.Shard{}
		mine, err := rows(tx, scanShard, `SELECT `+shardColumns+` FROM crl_shards WHERE authority = ? AND replica = ? ORDER BY shard`, authority, replica)
		if err != nil {
			return err
		}
		for _, m := range mine {
			if m.Issued < provider.ShardSize && m.URL == url(m.Number) && s.Authority == "" {
				s = m
				continue
			}
			if _, err := tx.Exec(`UPDATE crl_shards SET replica = '' WHERE authority = ? AND shard = ?`, authority, m.Number); err != nil {
				return err
			}
		}
		if s.Authority != "" {
			return nil
		}
		var last int64
		if err := tx.QueryRow(`SELECT COALESCE(max(shard), 0) FROM crl_shards WHERE authority = ?`, authority).Scan(&last); err != nil {
			return err
		}
		s = provider.Shard{Authority: authority, Number: last + 1, URL: url(last + 1), LastExpiry: ca.Forever, Wanted: 1}
		_, err = tx.Exec(`INSERT INTO crl_shards (`+shardColumns+`, replica) VALUES (?, ?, ?, 0, ?, 1, 0, 0, 0, 0, ?)`,
			authority, s.Number, s.URL, micros(s.LastExpiry), replica)
		return err
	}
	for range 10 { // another replica may take the same number
		err := d.update(ctx, "crl "+authority, open)
		if !errors.Is(err, sqldb.ErrUnique) {
			return s, err
		}
	}
	return s, cradle.Errorf(cradle.Busy, "many replicas open CRL shards at once").WithHint("try again")
}

// FillShards implements provider.CRLs.
func (d *DB) FillShards(ctx context.Context, fill []provider.Shard) error {
	return d.update(ctx, "crl", func(tx *sqldb.Tx) error {
		for _, s := range fill {
			if err := tx.Queue(`UPDATE crl_shards SET issued = ?, last_expiry = ? WHERE authority = ? AND shard = ?`,
				s.Issued, micros(s.LastExpiry), s.Authority, s.Number); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddShard implements provider.CRLs.
func (d *DB) AddShard(ctx context.Context, s provider.Shard) error {
	return d.update(ctx, "crl "+s.Authority, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO crl_shards (`+shardColumns+`, replica) VALUES (?, ?, ?, 0, ?, 1, 0, 0, 0, 0, '') ON CONFLICT (authority, shard) DO NOTHING`,
			s.Authority, s.Number, s.URL, micros(s.LastExpiry))
		return err
	})
}

// Shard implements provider.CRLs.
func (d *DB) Shard(ctx context.Context, authority string, shard int64) (provider.Shard, error) {
	return one(ctx, d, scanShard, noShard(shard), `SELECT `+shardColumns+` FROM crl_shards WHERE authority = ? AND shard = ?`, authority, shard)
}

func noShard(shard int64) error { return cradle.Errorf(cradle.NotFound, "no CRL shard %d", shard) }

// ShardCRL implements provider.CRLs.
func (d *DB) ShardCRL(ctx context.Context, authority string, shard int64) (provider.Shard, []byte, error) {
	type full struct {
		provider.Shard
		der []byte
	}
	scan := func(r row, f *full) error {
		var t [3]int64
		err := r.Scan(append(shardFields(&f.Shard, &t), &f.der)...)
		setShardTimes(&f.Shard, &t)
		return err
	}
	f, err := one(ctx, d, scan, noShard(shard), `SELECT `+shardColumns+`, der FROM crl_shards WHERE authority = ? AND shard = ?`, authority, shard)
	return f.Shard, f.der, err
}

// DueShards implements provider.CRLs.
func (d *DB) DueShards(ctx context.Context, alive, renew time.Time, limit int) ([]provider.Shard, error) {
	var out []provider.Shard
	err := d.db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		var err error
		if out, err = rows(tx, scanShard, `SELECT `+shardColumns+` FROM crl_shards WHERE wanted > made LIMIT ?`, limit); err != nil || len(out) == limit {
			return err
		}
		old, err := rows(tx, scanShard, `SELECT `+shardColumns+` FROM crl_shards WHERE next_update < ? AND wanted = made AND last_expiry > ? ORDER BY next_update LIMIT ?`,
			micros(renew), micros(alive), limit-len(out))
		out = append(out, old...)
		return err
	})
	return out, err
}

// ShardURLs implements provider.CRLs.
func (d *DB) ShardURLs(ctx context.Context, authority string, alive time.Time) ([]string, error) {
	return collect(ctx, d, func(r row, url *string) error { return r.Scan(url) },
		`SELECT url FROM crl_shards WHERE authority = ? AND last_expiry > ? ORDER BY shard`, authority, micros(alive))
}

// ShardEntries implements provider.CRLs.
func (d *DB) ShardEntries(ctx context.Context, authority string, shard int64) (provider.Shard, []ca.Revoked, error) {
	var s provider.Shard
	var out []ca.Revoked
	err := d.db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		out = nil
		err := scanShard(tx.QueryRow(`SELECT `+shardColumns+` FROM crl_shards WHERE authority = ? AND shard = ?`, authority, shard), &s)
		if errors.Is(err, sql.ErrNoRows) {
			return noShard(shard)
		}
		if err != nil {
			return err
		}
		out, err = rows(tx, func(r row, e *ca.Revoked) error {
			var at, code int64
			err := r.Scan(&e.Serial, &at, &code)
			e.At, e.Code = fromMicros(at), cradle.Reason(code)
			return err
		}, `SELECT serial, at, code FROM revocations WHERE authority = ? AND shard = ? AND not_after > ? ORDER BY serial`, authority, shard, micros(s.ThisUpdate))
		return err
	})
	return s, out, err
}

// SaveCRL implements provider.CRLs.
func (d *DB) SaveCRL(ctx context.Context, s provider.Shard, previous int64, der []byte) error {
	return d.update(ctx, "crl "+s.Authority, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`UPDATE crl_shards SET made = ?, number = ?, this_update = ?, next_update = ?, der = ? WHERE authority = ? AND shard = ? AND number = ?`,
			s.Made, s.CRLNumber, micros(s.ThisUpdate), micros(s.NextUpdate), der, s.Authority, s.Number, previous)
		if err == nil && n == 0 {
			err = cradle.Errorf(cradle.Conflict, "shard %d has a newer CRL", s.Number)
		}
		return err
	})
}

// DropShards implements provider.CRLs.
func (d *DB) DropShards(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.update(ctx, "crl", func(tx *sqldb.Tx) error {
		n, err = tx.Exec(`DELETE FROM crl_shards WHERE next_update < ? AND next_update > 0 AND last_expiry < ? AND replica = ''`, micros(before), micros(before))
		return err
	})
	return n, err
}

// Lease implements provider.CRLs.
func (d *DB) Lease(ctx context.Context, name, holder string, now, until time.Time) (bool, error) {
	var held bool
	err := d.update(ctx, "lease "+name, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO leases (name, holder, until) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
			WHERE leases.holder = excluded.holder OR leases.until < ?`, name, holder, micros(until), micros(now))
		held = n > 0
		return err
	})
	return held, err
}

// CertStatus implements provider.CRLs.
func (d *DB) CertStatus(ctx context.Context, serial cradle.CertSerial) (provider.CertStatus, error) {
	return one(ctx, d, func(r row, s *provider.CertStatus) error {
		var revoked, at, code int64
		err := r.Scan(&s.Authority, &revoked, &at, &code)
		s.Revoked, s.Code = fromMicros(revoked), cradle.Reason(code)
		if at != 0 {
			s.Revoked = fromMicros(at)
		}
		return err
	}, notFound("certificate", serial), `SELECT c.authority, c.revoked, COALESCE(r.at, 0), COALESCE(r.code, 0) FROM certificates c LEFT JOIN revocations r ON r.serial = c.serial WHERE c.serial = ?`, serial)
}

// Responder implements provider.CRLs.
func (d *DB) Responder(ctx context.Context, authority string) (provider.Responder, error) {
	return one(ctx, d, func(r row, v *provider.Responder) error { return r.Scan(&v.Authority, &v.Cert, &v.SealedKey) },
		cradle.Errorf(cradle.NotFound, "no OCSP responder for authority %s", authority),
		`SELECT authority, cert, sealed_key FROM ocsp_responders WHERE authority = ? AND length(cert) > 0`, authority)
}

// SaveResponder implements provider.CRLs.
func (d *DB) SaveResponder(ctx context.Context, r provider.Responder, previous []byte, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		n, err := tx.Exec(`INSERT INTO ocsp_responders (authority, cert, sealed_key, wanted) VALUES (?, ?, ?, 0) ON CONFLICT (authority) DO UPDATE
			SET cert = excluded.cert, sealed_key = excluded.sealed_key, wanted = 0 WHERE ocsp_responders.cert = ?`, r.Authority, r.Cert, r.SealedKey, nonNil(previous))
		if err != nil {
			return fmt.Errorf("storing an OCSP responder: %w", err)
		}
		if n == 0 {
			return cradle.Errorf(cradle.Conflict, "the OCSP responder of %s was renewed by another replica", r.Authority)
		}
		return appendLeaf(tx, leaf)
	})
}

// WantResponder implements provider.CRLs.
func (d *DB) WantResponder(ctx context.Context, authority string) error {
	return d.update(ctx, "ocsp", func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO ocsp_responders (authority, cert, sealed_key, wanted) VALUES (?, ?, ?, 1) ON CONFLICT (authority) DO UPDATE SET wanted = 1`,
			authority, []byte{}, []byte{})
		return err
	})
}

// WantedResponders implements provider.CRLs.
func (d *DB) WantedResponders(ctx context.Context) ([]string, error) {
	return collect(ctx, d, func(r row, a *string) error { return r.Scan(a) }, `SELECT authority FROM ocsp_responders WHERE wanted = 1`)
}
