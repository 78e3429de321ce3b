package providerdb

import (
	"context"
	"errors"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Unit is a device with its credentials, as LoadDevices takes it.
type Unit struct {
	Device provider.Device // IDevIDCert and IAKCert name two of Issued
	Issued []Issued
}

// Issued is a certificate with the intent that led to it (Certificate.Intent is its id) and its log entry.
type Issued struct {
	Certificate provider.Certificate
	Intent      provider.Intent
	Leaf        ledger.Leaf
}

// LoadDevices is the import path of a fleet that exists already, as when installations are joined: it
// stores the units of one order with their certificates, closed intents and log entries in one
// transaction, as many issuances would have, and counts them in the order. All leaves are of the
// account's log. A few hundred units per call are quickest.
//
// It checks nothing that its caller signed; who imports answers for it, and an audit shows it: leaves
// are appended, so they are later than what they record. Conflict when the order has no room left for
// the units, or one of them, or a certificate of theirs, is there already; then nothing is stored.
func (d *DB) LoadDevices(ctx context.Context, account cradle.AccountID, order cradle.OrderID, units []Unit) error {
	var devices, certs, intents, keys, issuers, blocked [][]any
	shards := map[string]*provider.Certificate{} // one of each shard's, the one that lasts longest
	claimed := map[string]cradle.DeviceID{}
	var leaves []ledger.Leaf
	for i := range units {
		v := &units[i].Device
		if v.Account != account || v.Order != order {
			return cradle.Errorf(cradle.Invalid, "device %s is not of order %s of account %s", v.ID, order, account)
		}
		devices = append(devices, []any{v.Account, v.ID, v.OEM, v.Order, v.Lot, v.Serial, v.Tier, v.Maker, v.Anchor, v.EKDigest, v.EKCert, v.IAK,
			v.IDevIDCert, v.IAKCert, v.State, v.Epoch, v.Reason, micros(v.Created)})
		for _, k := range v.Issuers {
			issuers = append(issuers, []any{k, v.Account, v.ID})
		}
		for _, is := range units[i].Issued {
			c, n := &is.Certificate, &is.Intent
			if c.Lineage == "" {
				c.Lineage, n.Lineage = string(c.Profile), string(c.Profile)
			}
			if c.Account != account || c.Device != v.ID || c.Intent != n.ID || is.Leaf.Log != string(account) {
				return cradle.Errorf(cradle.Invalid, "certificate %s does not belong to device %s, its intent and its leaf", c.Digest, v.ID)
			}
			certs = append(certs, []any{c.Digest, c.Serial, c.Account, c.Device, c.Profile, c.Authority, c.DER, micros(c.NotBefore), micros(c.NotAfter),
				c.Slot, c.Intent, micros(c.Issued), micros(c.Revoked), c.Reason, c.Lineage})
			if shard, url := provider.PointOf(c.DER); shard != 0 {
				if last := shards[url]; last == nil || last.NotAfter.Before(c.NotAfter) {
					shards[url] = c
				}
				if !c.Revoked.IsZero() {
					blocked = append(blocked, []any{c.Serial, c.Account, c.Device, c.Authority, shard, micros(c.NotAfter), micros(c.Revoked), int64(cradle.Unspecified), int64(0)})
				}
			}
			intents = append(intents, []any{n.ID, n.Account, n.Device, n.Profile, n.Operation, n.Authority, n.AuthCert, n.AuthProfile, n.CSR, n.SPKI,
				n.Challenge, n.Serial, n.Epoch, "done", c.Digest, "", micros(n.Created), n.Replica, n.Lineage})
			leaves = append(leaves, is.Leaf)
			if owner, there := claimed[n.SPKI]; !there {
				claimed[n.SPKI] = v.ID
				keys = append(keys, []any{n.SPKI, n.Account, n.Device})
			} else if owner != v.ID {
				return cradle.Errorf(cradle.Conflict, "devices %s and %s have the same key", owner, v.ID)
			}
		}
	}
	err := d.update(ctx, string(account), func(tx *sqldb.Tx) error {
		o, err := lockOrder(tx, order)
		if err != nil {
			return err
		}
		if o.Used+int64(len(units)) > o.Quantity {
			return cradle.Errorf(cradle.Conflict, "order %s has %d of %d units; %d more do not fit", order, o.Used, o.Quantity, len(units))
		}
		for _, t := range []struct {
			table   string
			columns []string
			rows    [][]any
		}{
			{"devices", []string{"account", "id", "oem", "order_id", "lot", "serial", "tier", "maker", "anchor", "ek_digest", "ek_cert", "iak",
				"idevid_cert", "iak_cert", "state", "epoch", "reason", "created"}, devices},
			{"device_ek_issuers", []string{"issuer", "account", "device"}, issuers},
			{"certificates", []string{"digest", "serial", "account", "device", "profile", "authority", "der", "not_before", "not_after", "slot", "intent",
				"issued", "revoked", "reason", "lineage"}, certs},
			{"intents", []string{"id", "account", "device", "profile", "operation", "authority", "auth_cert", "auth_profile", "csr", "spki", "challenge",
				"serial", "epoch", "state", "certificate", "reason", "created", "replica", "lineage"}, intents},
			{"device_keys", []string{"spki", "account", "device"}, keys},
			{"revocations", []string{"serial", "account", "device", "authority", "shard", "not_after", "at", "code", "by_device"}, blocked},
		} {
			if err := tx.InsertMany(t.table, t.columns, t.rows); err != nil {
				return fmt.Errorf("loading %s: %w", t.table, err)
			}
		}
		for _, c := range shards {
			if err := keepShard(tx, c.Authority, c.DER, c.NotAfter); err != nil {
				return err
			}
		}
		o.Used += int64(len(units))
		return appendLeaf(tx, leaves...)
	})
	if errors.Is(err, sqldb.ErrUnique) {
		return &cradle.Error{Kind: cradle.Conflict, Detail: "a device, certificate or key of these is there already", Err: err}
	}
	return err
}
