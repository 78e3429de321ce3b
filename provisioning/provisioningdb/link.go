package provisioningdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provisioning"
)

const linkColumns = `name, etag, settings, secret, created_at, updated_at`

func linkSecret(name string) string { return "linked_hub/" + name }

func (d *DB) scanLink(s row) (provisioning.Link, error) {
	var l provisioning.Link
	var name, settings, etag string
	var secret []byte
	var created, updated int64
	if err := s.Scan(&name, &etag, &settings, &secret, &created, &updated); err != nil {
		return l, err
	}
	if err := json.Unmarshal([]byte(settings), &l); err != nil {
		return l, fmt.Errorf("settings of linked hub %q: %w", name, err)
	}
	if len(secret) > 0 {
		var err error
		if secret, err = d.vault.Open(linkSecret(name), secret); err != nil {
			return l, fmt.Errorf("credentials of linked hub %q: %w", name, err)
		}
	}
	l.Name, l.ETag, l.Secret, l.Created, l.Updated = name, etag, provisioning.Secret(secret), fromMicros(created), fromMicros(updated)
	return l, nil
}

func (d *DB) getLink(tx *sqldb.Tx, name string) (*provisioning.Link, error) {
	l, err := d.scanLink(tx.QueryRow(`SELECT `+linkColumns+` FROM linked_hub WHERE name = ? FOR UPDATE`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &l, err
}

// Links implements provisioning.Store.
func (d *DB) Links(ctx context.Context) ([]provisioning.Link, error) {
	return sqldb.List(ctx, d.db, d.scanLink, `SELECT `+linkColumns+` FROM linked_hub ORDER BY name`)
}

// PutLink implements provisioning.Store.
func (d *DB) PutLink(ctx context.Context, name string, change func(*provisioning.Link) (provisioning.Link, error)) (provisioning.Link, error) {
	var out provisioning.Link
	err := again(func() error {
		return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			cur, err := d.getLink(tx, name)
			if err != nil {
				return err
			}
			if out, err = change(cur); err != nil {
				return err
			}
			settings, err := json.Marshal(out)
			if err != nil {
				return err
			}
			var secret any
			if out.Secret != "" {
				secret = d.vault.Seal(linkSecret(name), []byte(out.Secret))
			}
			if cur == nil {
				_, err = tx.Exec(`INSERT INTO linked_hub (`+linkColumns+`) VALUES (?, ?, ?, ?, ?, ?)`,
					name, out.ETag, string(settings), secret, micros(out.Created), micros(out.Updated))
			} else {
				_, err = tx.Exec(`UPDATE linked_hub SET etag = ?, settings = ?, secret = ?, updated_at = ? WHERE name = ?`,
					out.ETag, string(settings), secret, micros(out.Updated), name)
			}
			return err
		})
	})
	return out, err
}

// DeleteLink implements provisioning.Store. It looks through all registrations: there is no index by hub, which each
// registration would pay for.
func (d *DB) DeleteLink(ctx context.Context, name string, check func(provisioning.Link, bool) error) error {
	return d.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		l, err := d.getLink(tx, name)
		if err != nil {
			return err
		}
		if l == nil {
			return cradle.Errorf(cradle.NotFound, "hub %q is not linked", name)
		}
		var used int
		err = tx.QueryRow(`SELECT CASE WHEN EXISTS (SELECT 1 FROM outbox WHERE hub = ?) OR EXISTS (SELECT 1 FROM registration WHERE hub = ?) THEN 1 ELSE 0 END`, name, name).Scan(&used)
		if err != nil {
			return err
		}
		if err := check(*l, used != 0); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM linked_hub WHERE name = ?`, name)
		return err
	})
}

// WaitingFor implements provisioning.Outbox.
func (d *DB) WaitingFor(ctx context.Context, id provisioning.RegistrationID) ([]provisioning.Waiting, error) {
	return sqldb.List(ctx, d.db, func(r row) (w provisioning.Waiting, err error) {
		var due int64
		err = r.Scan(&w.Hub, &due, &w.Attempts, &w.Reason)
		w.Due = fromMicros(due)
		return w, err
	}, `SELECT hub, due_at, attempts, last_error FROM outbox WHERE registration_id = ? ORDER BY hub`, string(id))
}

// WaitingByHub implements provisioning.Outbox.
func (d *DB) WaitingByHub(ctx context.Context) (map[string]int, error) {
	var out map[string]int
	err := d.db.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out = map[string]int{}
		rows, err := tx.Query(`SELECT hub, count(*) FROM outbox GROUP BY hub`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var hub string
			var n int
			if err := rows.Scan(&hub, &n); err != nil {
				return err
			}
			out[hub] = n
		}
		return rows.Err()
	})
	return out, err
}
