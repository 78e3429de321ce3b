package providerdb

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// SetProfiles implements provider.ProfileStore.
func (d *DB) SetProfiles(ctx context.Context, account cradle.AccountID, changes []provider.ProfileChange, leaf ledger.Leaf) error {
	return d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		var text string
		err := tx.QueryRow(`SELECT profiles FROM accounts WHERE id = ? FOR UPDATE`, account).Scan(&text)
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("account", account)
		}
		if err != nil {
			return err
		}
		var all map[cradle.Profile]string
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return err
		}
		for _, c := range changes {
			if all[c.Profile] != c.Old {
				return cradle.Errorf(cradle.Conflict, "profile %s was changed meanwhile", c.Profile).WithHint("look at it again: cradle account profile show %s", account)
			}
			all[c.Profile] = c.New
		}
		if _, err := tx.Exec(`UPDATE accounts SET profiles = ? WHERE id = ?`, jsonText(all), account); err != nil {
			return err
		}
		return appendLeaf(tx, leaf)
	})
}
