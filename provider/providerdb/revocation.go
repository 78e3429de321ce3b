package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
)

// SetState implements provider.Revocations.
func (d *DB) SetState(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, s provider.Standing, leaf provider.StandingLeaf) (provider.FeedEvent, error) {
	var ev provider.FeedEvent
	err := d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		var err error
		ev, err = setState(tx, account, id, s, leaf)
		return err
	})
	return ev, err
}

// setState is one device's change: everything or nothing.
func setState(tx *sqldb.Tx, account cradle.AccountID, id cradle.DeviceID, s provider.Standing, leaf provider.StandingLeaf) (provider.FeedEvent, error) {
	var ev provider.FeedEvent
	v, err := lockDevice(tx, account, id)
	if err != nil {
		return ev, err
	}
	var w provider.Whereabouts
	if s.Change == provider.Release {
		if w, err = whereabouts(tx, v); err != nil {
			return ev, err
		}
	}
	to, err := s.Change.Apply(v.State, w)
	if err != nil {
		var e *cradle.Error
		if errors.As(err, &e) {
			err = cradle.Errorf(e.Kind, "device %s: %s", id, e.Detail)
		}
		return ev, err
	}
	if _, err := tx.Exec(`UPDATE devices SET state = ?, epoch = epoch + 1, reason = ? WHERE account = ? AND id = ?`, to, s.Reason, account, id); err != nil {
		return ev, err
	}
	if to.Blocked() {
		err = blockCerts(tx, v, to != cradle.Suspended, s)
	} else {
		err = releaseCerts(tx, v)
	}
	if err != nil {
		return ev, err
	}
	ev = provider.FeedEvent{Account: account, Device: id, State: to, Epoch: v.Epoch + 1, Reason: s.Reason, At: s.At}
	if err := appendFeed(tx, &ev); err != nil {
		return ev, err
	}
	l, err := leaf(v, to, nil)
	if err != nil {
		return ev, err
	}
	return ev, appendLeaf(tx, l)
}

func lockDevice(tx *sqldb.Tx, account cradle.AccountID, id cradle.DeviceID) (*provider.Device, error) {
	v := new(provider.Device)
	err := scanDevice(tx.QueryRow(`SELECT `+deviceColumns+` FROM devices d WHERE d.account = ? AND d.id = ? FOR UPDATE`, account, id), v)
	if errors.Is(err, sql.ErrNoRows) {
		err = notFound("device", id)
	}
	return v, err
}

func whereabouts(tx *sqldb.Tx, v *provider.Device) (provider.Whereabouts, error) {
	var ldevids, accepted int64
	err := tx.QueryRow(`SELECT (SELECT count(*) FROM certificates WHERE account = ? AND device = ? AND profile = ?), (SELECT count(*) FROM lots WHERE id = ? AND accepted > 0)`,
		v.Account, v.ID, cradle.LDevID, v.Lot).Scan(&ldevids, &accepted)
	return provider.Whereabouts{LDevID: ldevids > 0, LotAccepted: accepted > 0, Credential: v.Origin != ""}, err
}

// revoked is a row of revocations.
type revoked struct {
	serial, authority string
	shard             int64
	der               []byte
	notAfter          int64
}

func scanUnrevoked(r row, c *revoked) error {
	err := r.Scan(&c.serial, &c.authority, &c.der, &c.notAfter)
	c.shard = provider.ShardOf(c.der)
	return err
}

func scanRevoked(r row, c *revoked) error {
	return r.Scan(&c.serial, &c.authority, &c.shard, &c.notAfter)
}

// rows reads a few rows to their end, so that the next statement may follow.
func rows[T any](tx *sqldb.Tx, scan func(row, *T) error, query string, args ...any) ([]T, error) {
	var out []T
	err := each(tx, scan, func(v *T) error { out = append(out, *v); return nil }, query, args...)
	return out, err
}

// blockCerts revokes a device's unexpired certificates, or puts them on hold with it. Those that are on hold
// already become revoked with it; their revocation date stays that of the hold.
func blockCerts(tx *sqldb.Tx, v *provider.Device, final bool, s provider.Standing) error {
	if final {
		held, err := rows(tx, scanRevoked, `SELECT serial, authority, shard, not_after FROM revocations WHERE account = ? AND device = ? AND code = ?`,
			v.Account, v.ID, int64(cradle.CertificateHold))
		if err != nil {
			return err
		}
		for _, c := range held {
			if err := finalHold(tx, c, s); err != nil {
				return err
			}
		}
	}
	free, err := rows(tx, scanUnrevoked, `SELECT serial, authority, der, not_after FROM certificates WHERE account = ? AND device = ? AND revoked = 0 AND not_after > ? AND profile <> ?`,
		v.Account, v.ID, micros(s.At), provider.StationProfile)
	if err != nil {
		return err
	}
	for _, c := range free {
		if err := block(tx, c, v.Account, v.ID, s, !final); err != nil {
			return err
		}
	}
	return nil
}

// block writes one certificate's revocation or hold.
func block(tx *sqldb.Tx, c revoked, account cradle.AccountID, device cradle.DeviceID, s provider.Standing, byDevice bool) error {
	if err := tx.Queue(`UPDATE certificates SET revoked = ?, reason = ? WHERE serial = ?`, micros(s.At), s.Reason, c.serial); err != nil {
		return err
	}
	if err := tx.Queue(`INSERT INTO revocations (serial, account, device, authority, shard, not_after, at, code, by_device) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.serial, account, device, c.authority, c.shard, c.notAfter, micros(s.At), int64(s.Code), flag(byDevice)); err != nil {
		return err
	}
	return wantCRL(tx, c)
}

func finalHold(tx *sqldb.Tx, c revoked, s provider.Standing) error {
	if err := tx.Queue(`UPDATE revocations SET code = ?, by_device = 0 WHERE serial = ?`, int64(s.Code), c.serial); err != nil {
		return err
	}
	if err := tx.Queue(`UPDATE certificates SET reason = ? WHERE serial = ?`, s.Reason, c.serial); err != nil {
		return err
	}
	return wantCRL(tx, c)
}

func unblock(tx *sqldb.Tx, c revoked) error {
	if err := tx.Queue(`UPDATE certificates SET revoked = 0, reason = '' WHERE serial = ?`, c.serial); err != nil {
		return err
	}
	if err := tx.Queue(`DELETE FROM revocations WHERE serial = ?`, c.serial); err != nil {
		return err
	}
	return wantCRL(tx, c)
}

// releaseCerts ends the holds that came with the device's; a certificate that is on hold by itself stays so.
func releaseCerts(tx *sqldb.Tx, v *provider.Device) error {
	held, err := rows(tx, scanRevoked, `SELECT serial, authority, shard, not_after FROM revocations WHERE account = ? AND device = ? AND by_device = 1`, v.Account, v.ID)
	if err != nil {
		return err
	}
	for _, c := range held {
		if err := unblock(tx, c); err != nil {
			return err
		}
	}
	return nil
}

// wantCRL asks for a new CRL of the certificate's shard. A certificate without a distribution point is in no shard: OCSP
// alone speaks of it.
func wantCRL(tx *sqldb.Tx, c revoked) error {
	if c.shard == 0 {
		return nil
	}
	return tx.Queue(`UPDATE crl_shards SET wanted = wanted + 1 WHERE authority = ? AND shard = ?`, c.authority, c.shard)
}

// keepShard makes sure of the shard that a certificate from elsewhere names, as one that was restored or loaded: its CRL has to be made
// here from now on.
func keepShard(tx *sqldb.Tx, authority string, der []byte, notAfter time.Time) error {
	shard, url := provider.PointOf(der)
	if shard == 0 {
		return nil
	}
	return tx.Queue(`INSERT INTO crl_shards (`+shardColumns+`, replica) VALUES (?, ?, ?, 0, ?, 1, 0, 0, 0, 0, '')
		ON CONFLICT (authority, shard) DO UPDATE SET last_expiry = CASE WHEN crl_shards.last_expiry < excluded.last_expiry THEN excluded.last_expiry ELSE crl_shards.last_expiry END`,
		authority, shard, url, micros(notAfter))
}

// ChangeCertificate implements provider.Revocations.
func (d *DB) ChangeCertificate(ctx context.Context, account cradle.AccountID, serial cradle.CertSerial, s provider.Standing, leaf provider.StandingLeaf) (provider.Certificate, provider.FeedEvent, error) {
	var cert provider.Certificate
	var ev provider.FeedEvent
	err := d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		cert, ev = provider.Certificate{}, provider.FeedEvent{}
		find := func() error {
			err := scanCert(tx.QueryRow(`SELECT `+certColumns+` FROM certificates c WHERE c.serial = ? AND c.account = ?`, serial, account), &cert)
			if errors.Is(err, sql.ErrNoRows) {
				err = cradle.Errorf(cradle.NotFound, "account %s has no certificate with the serial number %q", account, serial).
					WithHint("write it in hexadecimal, as cradle device show does")
			}
			return err
		}
		if err := find(); err != nil {
			return err
		}
		v := &provider.Device{Account: account}
		if cert.Profile != provider.StationProfile && cert.Profile != provider.RegistrarProfile {
			var err error
			if v, err = lockDevice(tx, account, cert.Device); err != nil {
				return err
			}
			if err := find(); err != nil { // as it is now that nobody else changes it
				return err
			}
		}
		next, err := moveCert(tx, &cert, v, s)
		if err != nil {
			return err
		}
		ev = provider.FeedEvent{Account: account, Device: cert.Device, State: v.State, Epoch: v.Epoch + 1, Reason: s.Reason, At: s.At,
			Certificate: cert.Digest, Released: standingState(next) == cradle.Active}
		if v.ID != "" {
			if err := tx.Queue(`UPDATE devices SET epoch = epoch + 1 WHERE account = ? AND id = ?`, account, v.ID); err != nil {
				return err
			}
		}
		if err := appendFeed(tx, &ev); err != nil {
			return err
		}
		l, err := leaf(v, standingState(next), &cert)
		if err != nil {
			return err
		}
		return appendLeaf(tx, l)
	})
	d.stations.forget(cert.Digest)
	return cert, ev, err
}

// standingState is how a leaf writes a certificate's own standing: a hold that is its device's does not count.
func standingState(s provider.CertStanding) cradle.DeviceState {
	switch {
	case s.Revoked:
		return cradle.Revoked
	case s.Hold && !s.ByDevice:
		return cradle.Suspended
	}
	return cradle.Active
}

func moveCert(tx *sqldb.Tx, cert *provider.Certificate, v *provider.Device, s provider.Standing) (provider.CertStanding, error) {
	c := revoked{serial: string(cert.Serial), authority: cert.Authority, shard: provider.ShardOf(cert.DER), notAfter: micros(cert.NotAfter)}
	var have provider.CertStanding
	var code, byDevice int64
	err := tx.QueryRow(`SELECT code, by_device FROM revocations WHERE serial = ?`, cert.Serial).Scan(&code, &byDevice)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		have.Revoked = !cert.Revoked.IsZero() // marked before there was this table
	case err != nil:
		return have, err
	default:
		have = provider.CertStanding{Revoked: cradle.Reason(code) != cradle.CertificateHold, Hold: cradle.Reason(code) == cradle.CertificateHold, ByDevice: byDevice != 0}
	}
	next, err := s.Change.ApplyCert(have, v.State == cradle.Suspended)
	if err != nil {
		return have, err
	}
	if s.At.After(cert.NotAfter) {
		return have, cradle.Errorf(cradle.Conflict, "the certificate expired on %s", cert.NotAfter.Format(time.RFC3339))
	}
	switch {
	case !next.Revoked && !next.Hold:
		err = unblock(tx, c)
	case !have.Hold:
		err = block(tx, c, cert.Account, cert.Device, s, false)
	case next.Revoked:
		err = finalHold(tx, c, s)
	default: // from one kind of hold to the other
		err = tx.Queue(`UPDATE revocations SET by_device = ? WHERE serial = ?`, flag(next.ByDevice), cert.Serial)
	}
	return next, err
}
