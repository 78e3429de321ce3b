package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

const jobColumns = `id, account, selector, value, action, code, comment, actor, state, cursor, total, done, feed, created, finished`

func scanJob(r row, j *provider.Job) error {
	var state string
	var code, created, finished int64
	err := r.Scan(&j.ID, &j.Account, &j.Set.Kind, &j.Set.Value, &j.Change, &code, &j.Reason, &j.Actor, &state, &j.Cursor, &j.Total, &j.Changed, &j.Feed, &created, &finished)
	j.Code, j.Done, j.Created, j.Finished = cradle.Reason(code), state == "done", fromMicros(created), fromMicros(finished)
	return err
}

// StartJob implements provider.Sets.
func (d *DB) StartJob(ctx context.Context, j provider.Job, leaf ledger.Leaf) error {
	return d.update(ctx, string(j.Account), func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`INSERT INTO revocation_jobs (`+jobColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running', '', ?, 0, 0, ?, 0)`,
			j.ID, j.Account, j.Set.Kind, j.Set.Value, j.Change, int64(j.Code), j.Reason, j.Actor, j.Total, micros(j.Created)); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}

// Barrier implements provider.Sets. A birth holds its order's row, or where it has none its account's, from before it looks for
// jobs and distrusted keys until it has ended.
func (d *DB) Barrier(ctx context.Context, account cradle.AccountID) error {
	return d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		ids := func(r row, id *string) error { return r.Scan(id) }
		if _, err := rows(tx, ids, `SELECT id FROM accounts WHERE id = ? OR ? = '' ORDER BY id FOR UPDATE`, account, account); err != nil {
			return err
		}
		_, err := rows(tx, ids, `SELECT id FROM orders WHERE state = ? AND (account = ? OR ? = '') ORDER BY id FOR UPDATE`, provider.OrderOpen, account, account)
		return err
	})
}

// inSet is the condition of a selector on devices d. Those without an index of their own keep the engines from walking one
// that would sort: the primary key gives the order.
func inSet(s provider.Selector) (cond string, args []any) {
	switch s.Kind {
	case provider.ByOrder:
		return `d.order_id || '' = ?`, []any{s.Value}
	case provider.ByLot:
		return `d.lot = ? AND d.lot <> ''`, []any{s.Value}
	case provider.ByOEM:
		return `d.oem = ?`, []any{s.Value}
	case provider.ByMaker:
		return `d.maker = ?`, []any{s.Value}
	}
	panic("internal error: no such selector " + string(s.Kind))
}

func issuerList(s provider.Selector) (marks string, args []any) {
	for _, k := range s.Keys() {
		args = append(args, k)
	}
	return places(args), args
}

// places are those of at least one argument.
func places(args []any) string { return "(?" + strings.Repeat(", ?", len(args)-1) + ")" }

// CountSet implements provider.Sets.
func (d *DB) CountSet(ctx context.Context, account cradle.AccountID, s provider.Selector) (map[cradle.AccountID]int64, error) {
	var query string
	var args []any
	if s.Kind == provider.ByEKIssuer {
		var marks string
		marks, args = issuerList(s)
		query = `SELECT account, count(DISTINCT device) FROM device_ek_issuers WHERE issuer IN ` + marks
		if account != "" {
			query, args = query+` AND account = ?`, append(args, account)
		}
		query += ` GROUP BY account`
	} else {
		var cond string
		cond, args = inSet(s)
		query = `SELECT d.account, count(*) FROM devices d WHERE ` + cond
		if account != "" {
			query, args = query+` AND d.account = ?`, append(args, account)
		}
		query += ` GROUP BY d.account`
	}
	type count struct {
		account cradle.AccountID
		n       int64
	}
	list, err := collect(ctx, d, func(r row, c *count) error { return r.Scan(&c.account, &c.n) }, query, args...)
	out := make(map[cradle.AccountID]int64, len(list))
	for _, c := range list {
		out[c.account] = c.n
	}
	return out, err
}

// SetDevices implements provider.Sets.
func (d *DB) SetDevices(ctx context.Context, account cradle.AccountID, s provider.Selector, after cradle.DeviceID, limit int) ([]cradle.DeviceID, error) {
	scan := func(r row, id *cradle.DeviceID) error { return r.Scan(id) }
	if s.Kind == provider.ByEKIssuer { // each key's part comes off its index in order
		var parts []string
		var args []any
		for i, k := range s.Keys() {
			parts = append(parts, fmt.Sprintf(`SELECT device FROM (SELECT device FROM device_ek_issuers WHERE issuer = ? AND account = ? AND device > ? ORDER BY device LIMIT ?) AS p%d`, i))
			args = append(args, k, account, after, limit)
		}
		return collect(ctx, d, scan, strings.Join(parts, ` UNION `)+` ORDER BY device LIMIT ?`, append(args, limit)...)
	}
	cond, args := inSet(s)
	return collect(ctx, d, scan, `SELECT d.id FROM devices d WHERE d.account = ? AND d.id > ? AND `+cond+` ORDER BY d.id LIMIT ?`,
		append(append([]any{account, after}, args...), limit)...)
}

// WorkJob implements provider.Sets.
func (d *DB) WorkJob(ctx context.Context, at provider.Job, devices []cradle.DeviceID, s provider.Standing, leaf provider.StandingLeaf) (provider.Job, error) {
	var j provider.Job
	err := d.update(ctx, string(at.Account), func(tx *sqldb.Tx) error {
		j = provider.Job{}
		if err := scanJob(tx.QueryRow(`SELECT `+jobColumns+` FROM revocation_jobs WHERE id = ? FOR UPDATE`, at.ID), &j); err != nil {
			return err
		}
		if j.Done || j.Cursor != at.Cursor {
			return cradle.Errorf(cradle.Conflict, "job %s is being worked on elsewhere", at.ID)
		}
		for _, dev := range devices {
			ev, err := setState(tx, j.Account, dev, s, leaf)
			if k := cradle.KindOf(err); err != nil && (k == cradle.Conflict || k == cradle.NotFound) {
				continue // nothing was written for it
			}
			if err != nil {
				return err
			}
			j.Changed, j.Feed = j.Changed+1, ev.Seq
		}
		state := "running"
		if len(devices) > 0 {
			j.Cursor = devices[len(devices)-1]
		} else {
			j.Done, j.Finished, state = true, s.At, "done"
		}
		_, err := tx.Exec(`UPDATE revocation_jobs SET state = ?, cursor = ?, done = ?, feed = ?, finished = ? WHERE id = ?`, state, j.Cursor, j.Changed, j.Feed, micros(j.Finished), j.ID)
		return err
	})
	return j, err
}

// Job implements provider.Sets.
func (d *DB) Job(ctx context.Context, account cradle.AccountID, id string) (provider.Job, error) {
	return one(ctx, d, scanJob, notFound("job", id), `SELECT `+jobColumns+` FROM revocation_jobs WHERE account = ? AND id = ?`, account, id)
}

// Jobs implements provider.Sets.
func (d *DB) Jobs(ctx context.Context, account cradle.AccountID) ([]provider.Job, error) {
	return collect(ctx, d, scanJob, `SELECT `+jobColumns+` FROM revocation_jobs WHERE account = ? ORDER BY created DESC, id LIMIT 1000`, account)
}

// RunningJobs implements provider.Sets.
func (d *DB) RunningJobs(ctx context.Context) ([]provider.Job, error) {
	return collect(ctx, d, scanJob, `SELECT `+jobColumns+` FROM revocation_jobs WHERE state = 'running' ORDER BY created`)
}

// running tells in the same statement that reads a device whether the account has a job under way: there is hardly ever one.
const running = `CASE WHEN EXISTS (SELECT 1 FROM revocation_jobs j WHERE j.account = d.account AND j.state = 'running') THEN 1 ELSE 0 END`

// notInSet refuses a device that is in a set which is being revoked or suspended.
func notInSet(tx *sqldb.Tx, v *provider.Device) error {
	jobs, err := rows(tx, scanJob, `SELECT `+jobColumns+` FROM revocation_jobs WHERE account = ? AND state = 'running'`, v.Account)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Change == provider.Release {
			continue
		}
		in := j.Set.Holds(v, v.Issuers)
		if j.Set.Kind == provider.ByEKIssuer && v.Issuers == nil { // a device that was read from the store
			marks, args := issuerList(j.Set)
			var n int64
			if err := tx.QueryRow(`SELECT count(*) FROM device_ek_issuers WHERE issuer IN `+marks+` AND account = ? AND device = ?`, append(args, v.Account, v.ID)...).Scan(&n); err != nil {
				return err
			}
			in = n > 0
		}
		if in {
			return cradle.Errorf(cradle.Forbidden, "device %s is in a set (%s) that is being revoked or suspended: %s", v.ID, j.Set.Kind, j.Reason).
				WithHint("the account's operator knows why")
		}
	}
	return nil
}

// deviceNotInSet is notInSet for the device of an intent.
func deviceNotInSet(tx *sqldb.Tx, i *provider.Intent) error {
	v, err := lockDevice(tx, i.Account, i.Device)
	if err != nil {
		return err
	}
	return notInSet(tx, v)
}

// Distrust implements provider.Distrusts.
func (d *DB) Distrust(ctx context.Context, keys []provider.Distrusted, leaf ledger.Leaf) error {
	return d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		for _, k := range keys {
			if _, err := tx.Exec(`INSERT INTO distrusts (digest, kind, reason, at) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING`, k.Digest, k.Kind, k.Reason, micros(k.At)); err != nil {
				return err
			}
		}
		return appendLeaf(tx, leaf)
	})
}

// Trust implements provider.Distrusts.
func (d *DB) Trust(ctx context.Context, digests []string, leaf ledger.Leaf) (n int64, err error) {
	err = d.update(ctx, leaf.Log, func(tx *sqldb.Tx) error {
		n = 0
		for _, k := range digests {
			one, err := tx.Exec(`DELETE FROM distrusts WHERE digest = ?`, k)
			if err != nil {
				return err
			}
			n += one
		}
		if n == 0 {
			return nil
		}
		return appendLeaf(tx, leaf)
	})
	return n, err
}

// Distrusts implements provider.Distrusts.
func (d *DB) Distrusts(ctx context.Context) ([]provider.Distrusted, error) {
	return collect(ctx, d, scanDistrusted, `SELECT `+distrustColumns+` FROM distrusts ORDER BY at, digest`)
}

const distrustColumns = `digest, kind, reason, at`

func scanDistrusted(r row, k *provider.Distrusted) error {
	var at int64
	err := r.Scan(&k.Digest, &k.Kind, &k.Reason, &at)
	k.At = fromMicros(at)
	return err
}

// DeviceByEK implements provider.Distrusts.
func (d *DB) DeviceByEK(ctx context.Context, digest string) (provider.Device, error) {
	return one(ctx, d, scanDevice, notFound("device with the EK", digest), `SELECT `+deviceColumns+` FROM devices d WHERE d.ek_digest = ? AND d.ek_digest <> ''`, digest)
}

// CountMakers implements provider.Distrusts.
func (d *DB) CountMakers(ctx context.Context) (map[cradle.MakerID]int64, error) {
	out := map[cradle.MakerID]int64{}
	type count struct {
		maker cradle.MakerID
		n     int64
	}
	list, err := collect(ctx, d, func(r row, c *count) error { return r.Scan(&c.maker, &c.n) }, `SELECT maker, count(*) FROM devices GROUP BY maker`)
	for _, c := range list {
		out[c.maker] = c.n
	}
	return out, err
}

// trusted refuses a birth by keys that are distrusted. Its transaction holds the order's row already (Barrier).
func trusted(tx *sqldb.Tx, v *provider.Device) error {
	keys := toAny(ekKeys(v))
	var digest, kind string
	err := tx.QueryRow(`SELECT digest, kind FROM distrusts WHERE digest IN `+places(keys)+` LIMIT 1`, keys...).Scan(&digest, &kind)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return cradle.Errorf(cradle.Forbidden, "the TPM of %s is not believed any more: its %s key %s is distrusted", v.ID, kind, digest).
		WithHint("use a unit with another TPM; cradle tpm-maker list shows what is distrusted")
}

// ekKeys are the digests of a device's endorsement key and of its issuers'.
func ekKeys(v *provider.Device) []string { return append([]string{v.EKDigest}, v.Issuers...) }

func toAny(list []string) []any {
	out := make([]any, len(list))
	for i := range list {
		out[i] = list[i]
	}
	return out
}
