package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const deviceColumns = `d.account, d.id, d.oem, d.order_id, d.lot, d.serial, d.tier, d.maker, d.anchor, d.ek_digest, d.ek_cert, d.iak, d.idevid_cert, d.iak_cert, d.state, d.epoch, d.reason, d.created, d.origin`

// deviceOrNone are deviceColumns where there may be no device, as a station's certificate has none: then all are empty.
var deviceOrNone = func() string {
	columns := strings.Split(deviceColumns, ", ")
	for i, c := range columns {
		switch c {
		case "d.ek_cert", "d.iak": // NULL is no bytes
		case "d.epoch", "d.created":
			columns[i] = "COALESCE(" + c + ", 0)"
		default:
			columns[i] = "COALESCE(" + c + ", '')"
		}
	}
	return strings.Join(columns, ", ")
}()

func deviceFields(v *provider.Device, created *int64) []any {
	return []any{&v.Account, &v.ID, &v.OEM, &v.Order, &v.Lot, &v.Serial, &v.Tier, &v.Maker, &v.Anchor, &v.EKDigest, &v.EKCert, &v.IAK,
		&v.IDevIDCert, &v.IAKCert, &v.State, &v.Epoch, &v.Reason, created, &v.Origin}
}

func scanDevice(r row, v *provider.Device) error {
	var created int64
	err := r.Scan(deviceFields(v, &created)...)
	v.Created = fromMicros(created)
	return err
}

// Credential implements provider.Devices.
func (d *DB) Credential(ctx context.Context, serial cradle.CertSerial, digest string) (provider.Credential, error) {
	if c, ok := d.stations.get(digest); ok {
		return c, nil
	}
	var out provider.Credential
	err := d.db.Find(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		out = provider.Credential{}
		var v provider.Device
		var created, quarantined int64
		fields, done := certFields(&out.Cert)
		fields = append(append(fields, deviceFields(&v, &created)...), &quarantined)
		err := tx.QueryRow(`SELECT `+certColumns+`, `+deviceOrNone+`,
			CASE WHEN EXISTS (SELECT 1 FROM quarantines q WHERE q.account = c.account AND q.device = c.device AND q.lineage = c.lineage) THEN 1 ELSE 0 END
			FROM certificates c LEFT JOIN devices d ON d.account = c.account AND d.id = c.device WHERE c.serial = ? AND c.digest = ?`, serial, digest).Scan(fields...)
		if err != nil {
			return err
		}
		done()
		v.Created = fromMicros(created)
		out.Device, out.Quarantined = v, quarantined != 0
		return nil
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = notFound("certificate", digest)
	}
	if err == nil && out.Cert.Profile == provider.StationProfile {
		d.stations.put(out)
	}
	return out, err
}

// stations remembers the certificates of lines' stations, each of which authenticates thousands of units. Its
// order's state is looked at apart; that it was revoked by another replica is seen after stationAge.
type stations struct {
	mu sync.Mutex
	m  map[string]station
}

type station struct {
	provider.Credential
	read time.Time
}

const (
	stationAge  = 2 * time.Second
	maxStations = 1024
)

func (s *stations) get(digest string) (provider.Credential, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[digest]
	return c.Credential, ok && time.Since(c.read) < stationAge
}

// forget is for a change of the certificate's standing by this process; others read it anew after stationAge.
func (s *stations) forget(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, digest)
}

func (s *stations) put(c provider.Credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil || len(s.m) >= maxStations {
		s.m = map[string]station{}
	}
	s.m[c.Cert.Digest] = station{c, time.Now()}
}

// Device implements provider.Devices.
func (d *DB) Device(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) (provider.Device, error) {
	return one(ctx, d, scanDevice, notFound("device", id), `SELECT `+deviceColumns+` FROM devices d WHERE d.account = ? AND d.id = ?`, account, id)
}

// DevicesOf implements provider.Devices.
func (d *DB) DevicesOf(ctx context.Context, account cradle.AccountID, ids []cradle.DeviceID) (out []provider.Device, err error) {
	const these = `SELECT ` + deviceColumns + ` FROM devices d WHERE d.account = ? AND d.id = `
	if d.db.Engine() == sqldb.PostgreSQL {
		return collect(ctx, d, scanDevice, these+`ANY (?)`, account, ids)
	}
	err = d.db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		out = nil
		for _, id := range ids {
			var v provider.Device
			switch err := scanDevice(tx.QueryRow(these+`?`, account, id), &v); {
			case err == nil:
				out = append(out, v)
			case !errors.Is(err, sql.ErrNoRows):
				return err
			}
		}
		return nil
	})
	return out, err
}

// DeviceList implements provider.Devices.
func (d *DB) DeviceList(ctx context.Context, account cradle.AccountID, f provider.DeviceFilter) ([]provider.Device, error) {
	q := `SELECT ` + deviceColumns + ` FROM devices d WHERE d.account = ? AND d.id > ?`
	args := []any{account, f.After}
	for _, c := range []struct{ column, value string }{{"order_id", string(f.Order)}, {"lot", string(f.Lot)}, {"state", string(f.State)}} {
		if c.value != "" {
			q += ` AND d.` + c.column + ` = ?`
			args = append(args, c.value)
		}
	}
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 1000
	}
	return collect(ctx, d, scanDevice, q+` ORDER BY d.id LIMIT ?`, append(args, f.Limit)...)
}

// IAKCertificate implements provider.Devices.
func (d *DB) IAKCertificate(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) (provider.Certificate, error) {
	return one(ctx, d, scanCert, notFound("IAK certificate of device", id), `SELECT `+certColumns+` FROM devices d
		JOIN certificates c ON c.account = d.account AND c.device = d.id AND c.lineage = ? AND c.digest = d.iak_cert WHERE d.account = ? AND d.id = ?`, cradle.IAK, account, id)
}

// Certificates implements provider.Devices.
func (d *DB) Certificates(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) ([]provider.Certificate, error) {
	var out []provider.Certificate
	err := d.db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		var err error
		if out, err = rows(tx, scanCert, `SELECT `+certColumns+` FROM certificates c WHERE c.account = ? AND c.device = ? ORDER BY c.issued, c.serial`, account, id); err != nil {
			return err
		}
		held, err := rows(tx, func(r row, s *cradle.CertSerial) error { return r.Scan(s) },
			`SELECT serial FROM revocations WHERE account = ? AND device = ? AND code = ?`, account, id, int64(cradle.CertificateHold))
		for i := range out {
			out[i].Hold = slices.Contains(held, out[i].Serial)
		}
		return err
	})
	return out, err
}

// appendFeed numbers and stores an event. The head row serialises writers of the feed, so that numbers
// appear in order and without gaps.
func appendFeed(tx *sqldb.Tx, ev *provider.FeedEvent) error {
	if err := tx.QueryRow(`UPDATE feed_head SET seq = seq + 1 WHERE one = 1 RETURNING seq`).Scan(&ev.Seq); err != nil {
		return err
	}
	return tx.Queue(`INSERT INTO feed (`+feedColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		ev.Seq, ev.Account, ev.Device, ev.State, ev.Epoch, ev.Reason, micros(ev.At), ev.Certificate, flag(ev.Released))
}

// Quarantine implements provider.Devices.
func (d *DB) Quarantine(ctx context.Context, c provider.Credential, at time.Time, leaf ledger.Leaf) error {
	return d.update(ctx, string(c.Cert.Account), func(tx *sqldb.Tx) error {
		var seen int64
		if err := tx.QueryRow(`SELECT count(*) FROM feed WHERE account = ? AND device = ? AND certificate = ?`, c.Cert.Account, c.Cert.Device, c.Cert.Digest).Scan(&seen); err != nil || seen > 0 {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO quarantines (account, device, lineage) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, c.Cert.Account, c.Cert.Device, c.Cert.Lineage); err != nil {
			return err
		}
		v, err := lockDevice(tx, c.Cert.Account, c.Cert.Device)
		if err != nil {
			return err
		}
		ev := provider.FeedEvent{Account: c.Cert.Account, Device: c.Cert.Device, State: v.State, Epoch: v.Epoch,
			Reason: provider.QuarantineReason, At: at, Certificate: c.Cert.Digest}
		if err := appendFeed(tx, &ev); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}

func scanFeed(r row, e *provider.FeedEvent) error {
	var at, released int64
	err := r.Scan(&e.Seq, &e.Account, &e.Device, &e.State, &e.Epoch, &e.Reason, &at, &e.Certificate, &released)
	e.At, e.Released = fromMicros(at), released != 0
	return err
}

const feedColumns = `seq, account, device, state, epoch, reason, at, certificate, released`

// FeedAfter implements provider.Devices.
func (d *DB) FeedAfter(ctx context.Context, seq int64, limit int) ([]provider.FeedEvent, error) {
	out, err := collect(ctx, d, scanFeed, `SELECT `+feedColumns+` FROM feed WHERE seq > ? ORDER BY seq LIMIT ?`, seq, limit)
	if err != nil || len(out) > 0 || seq == 0 {
		return out, err
	}
	var head int64
	err = d.db.Read(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		return tx.QueryRow(`SELECT seq FROM feed_head`).Scan(&head)
	})
	if err == nil && seq > head {
		err = cradle.Errorf(cradle.Conflict, "the feed ends at %d, its reader knows %d: was the store restored from a backup?", head, seq).
			WithHint("cradle restore status; give the reader's number to cradle restore declare-lost --feed")
	}
	return nil, err
}

// FeedOf implements provider.Devices.
func (d *DB) FeedOf(ctx context.Context, account cradle.AccountID, id cradle.DeviceID) ([]provider.FeedEvent, error) {
	return collect(ctx, d, scanFeed, `SELECT `+feedColumns+` FROM feed WHERE account = ? AND device = ? ORDER BY seq`, account, id)
}
