package providerdb

import (
	"database/sql"
	"errors"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
)

// reserve finds the unit that was reserved before, or reserves it within the order's quantity. Once the order's row is held
// (Barrier), the statement that finds or stores the unit tells too whether a set of the account is being changed, or a new
// unit's TPM is distrusted: there is hardly ever such a thing, and inDoubt has notInSet look closer.
func reserve(tx *sqldb.Tx, profile cradle.Profile, want provider.Device, out *provider.Begun) (inDoubt bool, err error) {
	var doubt int64
	o, err := lockOrder(tx, want.Order)
	if err != nil {
		return false, err
	}
	if o.State != provider.OrderOpen {
		return false, cradle.Errorf(cradle.Forbidden, "order %s is %s", o.ID, o.State)
	}
	fresh := func() (bool, error) {
		var err error
		keys := ekKeys(&want)
		args := []any{want.Account, want.ID, want.OEM, want.Order, want.Serial, want.Tier, want.Maker, want.Anchor, want.EKDigest, want.EKCert, want.IAK, micros(want.Created)}
		if tx.Engine() == sqldb.PostgreSQL {
			err = tx.AskMany(bornMany, append(args, strings.Join(keys, ","))...).Scan(&doubt)
		} else {
			err = tx.QueryRow(`INSERT INTO devices (account, id, oem, order_id, serial, tier, maker, anchor, ek_digest, ek_cert, iak, created, lot, idevid_cert, iak_cert, state, epoch, reason)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', '', 'made', 0, '') ON CONFLICT DO NOTHING RETURNING `+doubtful(`?`, `IN `+places(toAny(keys))),
				append(append(args, want.Account), toAny(keys)...)...).Scan(&doubt)
		}
		if err != nil {
			if errors.Is(err, sql.ErrNoRows) {
				return false, nil
			}
			return false, err
		}
		out.Device = want
		out.Device.State, out.Device.Epoch = cradle.Made, 0
		o.Used++ // too many at once by births that run abreast are refused by the table, then each is asked alone
		if doubt != 0 {
			if err := trusted(tx, &out.Device); err != nil {
				return false, err
			}
		}
		return true, rest(tx, &out.Device)
	}
	if profile == cradle.IAK && o.Used < o.Quantity { // most likely it is new: a unit's first certificate is the IAK's
		if ok, err := fresh(); ok || err != nil {
			return doubt != 0, err
		}
	}
	h := &out.Device
	var created int64
	fields := append(deviceFields(h, &created), &doubt)
	if tx.Engine() == sqldb.PostgreSQL {
		err = tx.AskMany(unitMany, want.EKDigest).Scan(fields...)
	} else {
		err = tx.QueryRow(`SELECT `+deviceColumns+`, `+running+` FROM devices d WHERE d.ek_digest = ? AND d.ek_digest <> ''`, want.EKDigest).Scan(fields...)
	}
	h.Created = fromMicros(created)
	switch {
	case err == nil:
		if h.Account != want.Account || h.ID != want.ID || h.Order != want.Order || h.Serial != want.Serial || string(h.IAK) != string(want.IAK) {
			return false, cradle.Errorf(cradle.Forbidden, "this TPM (EK %s) is another unit already", want.EKDigest).
				WithHint("one TPM is one device; look for the serial under which it was personalised")
		}
		return doubt != 0, nil
	case !errors.Is(err, sql.ErrNoRows):
		return false, err
	}
	if o.Used >= o.Quantity {
		return false, cradle.Errorf(cradle.Forbidden, "the quantity of order %s is used up: %d of %d", o.ID, o.Used, o.Quantity).
			WithHint("the account has to place a further order")
	}
	ok, err := fresh()
	if err == nil && !ok {
		return false, cradle.Errorf(cradle.Forbidden, "serial %s (device %s) was given to another TPM already", want.Serial, want.ID).
			WithHint("each unit has a serial number of its own")
	}
	return doubt != 0, err
}

// doubtful tells whether a set of the account is being changed, or one of the keys is distrusted.
func doubtful(account, keys string) string {
	return `CASE WHEN EXISTS (SELECT 1 FROM revocation_jobs j WHERE j.account = ` + account + ` AND j.state = 'running')
		OR EXISTS (SELECT 1 FROM distrusts x WHERE x.digest ` + keys + `) THEN 1 ELSE 0 END`
}

var (
	bornMany = sqldb.NewMany(`account text, id text, oem text, order_id text, serial text, tier text, maker text, anchor text, ek_digest text, ek_cert bytea, iak bytea,`+
		` created bigint, keys text`, `,
		d AS (INSERT INTO devices (account, id, oem, order_id, serial, tier, maker, anchor, ek_digest, ek_cert, iak, created, lot, idevid_cert, iak_cert, state, epoch, reason)
			SELECT account, id, oem, order_id, serial, tier, maker, anchor, ek_digest, ek_cert, iak, created, '', '', '', 'made', 0, '' FROM asked
			ON CONFLICT DO NOTHING RETURNING account, id)
		SELECT n, `+doubtful(`asked.account`, `= ANY (string_to_array(asked.keys, ','))`)+` FROM asked WHERE ((account, id) IN (SELECT account, id FROM d)) IS TRUE`)
	unitMany = sqldb.NewMany(`ek text`, ` SELECT asked.n, `+deviceColumns+`, `+running+`
		FROM asked, devices d WHERE d.ek_digest = asked.ek AND d.ek_digest <> '' FOR UPDATE OF d`)
	restMany = sqldb.NewMany(`issuers text, account text, device text`, ` INSERT INTO device_ek_issuers (issuer, account, device)
		SELECT unnest(string_to_array(issuers, ',')), account, device FROM asked ON CONFLICT DO NOTHING`)
)

// rest records on which issuers' word a new device rests.
func rest(tx *sqldb.Tx, v *provider.Device) error {
	if v.EKDigest == "" {
		return nil
	}
	if tx.Engine() == sqldb.PostgreSQL {
		if len(v.Issuers) > 0 {
			tx.QueueMany(restMany, strings.Join(v.Issuers, ","), v.Account, v.ID)
		}
		return nil
	}
	for _, k := range v.Issuers {
		if err := tx.Queue(`INSERT INTO device_ek_issuers (issuer, account, device) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, k, v.Account, v.ID); err != nil {
			return err
		}
	}
	return nil
}
