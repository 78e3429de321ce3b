package hubdb

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/internal/sqldb"
)

const credentialColumns = `id, correlation, csr, state, chain, code, message, told, asked, expires, begun, count`

func credentialValues(r *hub.CredentialRequest) []any {
	return []any{r.ID, r.Correlation, r.CSR, string(r.State), blob(r.Chain), int64(r.Code), r.Message, flag(r.Told), micros(r.Asked), micros(r.Expires), micros(r.Begun), int64(r.Count)}
}

func (s *Store) credential(tx *sqldb.Tx, h int64, id cradle.DeviceID, lock string) (*hub.CredentialRequest, error) {
	var r hub.CredentialRequest
	var told, asked, expires, begun int64
	err := tx.QueryRow(`SELECT `+credentialColumns+` FROM credential_requests WHERE hub = ? AND device = ?`+lock, h, string(id)).
		Scan(&r.ID, &r.Correlation, &r.CSR, &r.State, &r.Chain, &r.Code, &r.Message, &told, &asked, &expires, &begun, &r.Count)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	unblob(&r.Chain)
	r.Told, r.Asked, r.Expires, r.Begun = told != 0, fromMicros(asked), fromMicros(expires), fromMicros(begun)
	return &r, err
}

// CredentialRequest implements hub.Credentials.
func (s *Store) CredentialRequest(ctx context.Context, name hub.Name, id cradle.DeviceID) (*hub.CredentialRequest, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var out *hub.CredentialRequest
	err = s.db.Find(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		out, err = s.credential(tx, h, id, "")
		return err
	})
	return out, err
}

// ChangeCredentialRequest implements hub.Credentials.
func (s *Store) ChangeCredentialRequest(ctx context.Context, name hub.Name, id cradle.DeviceID, change func(*hub.CredentialRequest) (*hub.CredentialRequest, error)) (*hub.CredentialRequest, error) {
	h, err := s.hubID(ctx, name)
	if err != nil {
		return nil, err
	}
	var out *hub.CredentialRequest
	err = s.db.Update(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var there string // locked, so that changes follow each other
		err := tx.QueryRow(`SELECT id FROM devices WHERE hub = ? AND id = ? FOR UPDATE`, h, string(id)).Scan(&there)
		if errors.Is(err, sql.ErrNoRows) {
			return noDevice(id)
		} else if err != nil {
			return err
		}
		cur, err := s.credential(tx, h, id, "")
		if err != nil {
			return err
		}
		if out, err = change(cur); err != nil || out == nil || out == cur {
			return err
		}
		_, err = tx.Exec(`INSERT INTO credential_requests (hub, device, `+credentialColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (hub, device) DO UPDATE SET id = excluded.id, correlation = excluded.correlation, csr = excluded.csr, state = excluded.state, chain = excluded.chain,
				code = excluded.code, message = excluded.message, told = excluded.told, asked = excluded.asked, expires = excluded.expires, begun = excluded.begun, count = excluded.count`,
			append([]any{h, string(id)}, credentialValues(out)...)...)
		return err
	})
	return out, err
}
