package providerdb

import (
	"database/sql"
	"errors"

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
		keys := ekKeys(&want)
		err := tx.QueryRow(`INSERT INTO devices (account, id, oem, order_id, lot, serial, tier, maker, anchor, ek_digest, ek_cert, iak, idevid_cert, iak_cert, state, epoch, reason, created)
			VALUES (?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, '', '', ?, 0, '', ?) ON CONFLICT DO NOTHING
			RETURNING CASE WHEN EXISTS (SELECT 1 FROM revocation_jobs j WHERE j.account = ? AND j.state = 'running')
				OR EXISTS (SELECT 1 FROM distrusts x WHERE x.digest IN `+places(keys)+`) THEN 1 ELSE 0 END`,
			append([]any{want.Account, want.ID, want.OEM, want.Order, want.Serial, want.Tier, want.Maker, want.Anchor, want.EKDigest, want.EKCert, want.IAK,
				cradle.Made, micros(want.Created), want.Account}, keys...)...).Scan(&doubt)
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
	err = tx.QueryRow(`SELECT `+deviceColumns+`, `+running+` FROM devices d WHERE d.ek_digest = ? AND d.ek_digest <> '' FOR UPDATE`, want.EKDigest).
		Scan(append(deviceFields(h, &created), &doubt)...)
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

// rest records on which issuers' word a new device rests.
func rest(tx *sqldb.Tx, v *provider.Device) error {
	if v.EKDigest == "" {
		return nil
	}
	for _, k := range v.Issuers {
		if err := tx.Queue(`INSERT INTO device_ek_issuers (issuer, account, device) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, k, v.Account, v.ID); err != nil {
			return err
		}
	}
	return nil
}
