package providerdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// catchUp is one run of CatchUp in its transaction.
type catchUp struct {
	tx      *sqldb.Tx
	log     string
	tree    *ledger.Frontier
	signed  ledger.CheckpointRow
	fresh   map[string]*provider.Certificate // by digest: not known before
	out     provider.CaughtUp
	devices map[string]bool // suspended
}

// CatchUp implements provider.Restores. Crash: nothing of it is stored, it is run again.
func (d *DB) CatchUp(ctx context.Context, log string, read func(func(*ledger.Line) error) error) (provider.CaughtUp, error) {
	var out provider.CaughtUp
	err := d.update(ctx, log, func(tx *sqldb.Tx) error {
		f, err := lockHead(tx, log)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM quarantines WHERE account = ?`, log); err != nil { // the export has those that hold
			return err
		}
		c := &catchUp{tx: tx, log: log, tree: f, fresh: map[string]*provider.Certificate{}, devices: map[string]bool{},
			out: provider.CaughtUp{Log: log, Todo: []provider.Undone{}}}
		if err := read(c.line); err != nil {
			return err
		}
		c.out.Size = f.Size()
		out = c.out
		b, err := f.MarshalBinary()
		if err != nil {
			return err
		}
		_, err = tx.Exec(`UPDATE logs SET size = ?, frontier = ?, signed = ?, checkpoint = ? WHERE log = ?`, f.Size(), b, c.signed.Size, []byte(c.signed.Note), log)
		return err
	})
	return out, err
}

func (c *catchUp) line(l *ledger.Line) error {
	switch {
	case l.Account != nil:
		return c.account(l.Account)
	case l.OEM != nil && c.log == provider.InstallationLog: // what it lacks is registered again, with new keys
		return nil
	case l.Anchor != nil:
		return c.tx.Queue(`INSERT INTO anchors (fingerprint, maker, tier, cert, distrusted, imported) VALUES (?, ?, ?, ?, 0, 0) ON CONFLICT (fingerprint) DO NOTHING`,
			l.Anchor.ID, l.Anchor.Maker, l.Anchor.Tier, l.Anchor.DER)
	case l.OEM != nil:
		return c.tx.Queue(`INSERT INTO oems (id, order_key, lot_key, created) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`,
			l.OEM.ID, l.OEM.OrderKey, nonNil(l.OEM.LotKey), micros(l.OEM.Created))
	case l.Authority != nil:
		return c.authority(l.Authority)
	case l.Order != nil:
		o := l.Order
		return c.tx.Queue(`INSERT INTO orders (`+orderColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET jws = excluded.jws, used = excluded.used, state = excluded.state, reason = excluded.reason`,
			o.ID, o.Account, o.OEM, o.JWS, o.Quantity, o.Used, o.State, o.Reason, micros(o.Created))
	case l.Lot != nil:
		return c.lot(l.Lot)
	case l.Device != nil:
		return c.device(l.Device)
	case l.Certificate != nil:
		return c.certificate(l.Certificate)
	case l.Quarantine != nil:
		return c.tx.Queue(`INSERT INTO quarantines (account, device, lineage) VALUES (?, ?, ?)`, c.log, l.Quarantine.Device, l.Quarantine.Lineage)
	case l.Feed != nil:
		return c.feed(l.Feed)
	case l.Head != nil:
		c.out.Feed = l.Head.Feed
	case l.Checkpoint != nil:
		c.signed = *l.Checkpoint // they come by size
		return c.tx.Queue(`INSERT INTO checkpoints (log, size, note, at) VALUES (?, ?, ?, 0) ON CONFLICT (log, size) DO UPDATE SET note = excluded.note`,
			c.log, l.Checkpoint.Size, []byte(l.Checkpoint.Note))
	case l.Leaf != nil:
		return c.leaf(l.Leaf)
	}
	return nil
}

func (c *catchUp) account(a *ledger.AccountRow) error {
	n, err := c.tx.Exec(`UPDATE accounts SET profiles = ? WHERE id = ? AND order_key = ?`, jsonText(a.Profiles), a.ID, a.OrderKey)
	if err == nil && n == 0 {
		err = cradle.Errorf(cradle.Conflict, "account %s has another order key in the store than in the export", a.ID)
	}
	return err
}

// authority takes over a CA that was made after the backup. Its key is gone with the store that had it: it verifies what
// it signed and signs nothing more; a new one is made in its place.
func (c *catchUp) authority(a *ledger.AuthorityRow) error {
	var there int64
	// By its bytes: an external root has a row for each class, under ids of their own.
	if err := c.tx.QueryRow(`SELECT count(*) FROM authorities WHERE account = ? AND kind = ? AND cert = ?`, a.Account, a.Kind, a.DER).Scan(&there); err != nil || there > 0 {
		return err
	}
	c.todo(ledger.Leaf{}, fmt.Sprintf("the key of the %s CA %s was made after the backup and is lost with the store; a new CA takes its place at the next need", a.Kind, a.ID))
	return insertAuthority(c.tx, &provider.Authority{ID: a.ID, Kind: provider.AuthorityKind(a.Kind), Account: cradle.AccountID(a.Account), OEM: cradle.OEMID(a.OEM),
		Class: cradle.Class(a.Class), Cert: a.DER, Chain: a.Chain, State: provider.SupersededCA, Created: a.Created})
}

func (c *catchUp) lot(l *ledger.LotRow) error {
	return c.tx.Queue(`INSERT INTO lots (`+lotColumns+`, report_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET custody = excluded.custody, state = excluded.state, accepted = excluded.accepted`,
		l.ID, c.log, l.OEM, l.Order, l.Report, l.Custody, l.Head, l.Units, l.State, jsonText(l.Findings), micros(l.Closed), micros(l.Accepted), ca.Digest(l.Report))
}

func (c *catchUp) device(v *ledger.DeviceRow) error {
	if v.State == string(cradle.Suspended) {
		c.devices[v.ID] = true
	}
	n, err := c.tx.Exec(`UPDATE devices SET lot = ?, state = ?, epoch = ?, reason = ?, idevid_cert = ?, iak_cert = ? WHERE account = ? AND id = ?`,
		v.Lot, v.State, v.Epoch, v.Reason, v.IDevIDCert, v.IAKCert, v.Account, v.ID)
	if err != nil || n > 0 {
		return err
	}
	c.out.Devices++
	_, err = c.tx.Exec(`INSERT INTO devices (account, id, oem, order_id, lot, serial, tier, maker, anchor, ek_digest, ek_cert, iak, idevid_cert, iak_cert, state, epoch, reason, created, origin)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		v.Account, v.ID, v.OEM, v.Order, v.Lot, v.Serial, v.Tier, v.Maker, v.Anchor, v.EK, nonNil(v.EKCert), nonNil(v.IAK), v.IDevIDCert, v.IAKCert, v.State, v.Epoch, v.Reason,
		micros(v.Created), v.Origin)
	return err
}

func (c *catchUp) certificate(r *ledger.CertificateRow) error {
	var was int64
	err := c.tx.QueryRow(`SELECT revoked FROM certificates WHERE serial = ? AND digest = ?`, r.Serial, r.Digest).Scan(&was)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		cert := &provider.Certificate{Digest: r.Digest, Serial: cradle.CertSerial(r.Serial), Account: cradle.AccountID(r.Account), Device: cradle.DeviceID(r.Device),
			Profile: cradle.Profile(r.Profile), Authority: r.Authority, Intent: r.Intent, Issued: r.Issued, Lineage: r.Lineage}
		if r.Intent != "" {
			c.fresh[r.Digest] = cert
		}
		c.out.Certificates++
		if err := c.tx.Queue(`INSERT INTO certificates (digest, serial, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason, lineage)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.Digest, r.Serial, r.Account, r.Device, r.Profile, r.Authority, r.DER, micros(r.NotBefore), micros(r.NotAfter),
			r.Slot, r.Intent, micros(r.Issued), micros(r.RevokedAt), r.Reason, r.Lineage); err != nil {
			return err
		}
		if err := keepShard(c.tx, r.Authority, r.DER, r.NotAfter); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := c.tx.Queue(`UPDATE certificates SET slot = ?, revoked = ?, reason = ? WHERE serial = ?`, r.Slot, micros(r.RevokedAt), r.Reason, r.Serial); err != nil {
			return err
		}
	}
	if (was != 0) != r.Revoked {
		c.out.Blocked++
	}
	return c.crl(r)
}

// crl brings what CRLs and OCSP say of a certificate up to date.
func (c *catchUp) crl(r *ledger.CertificateRow) error {
	var code int64
	err := c.tx.QueryRow(`SELECT code FROM revocations WHERE serial = ?`, r.Serial).Scan(&code)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	there := err == nil
	k := revoked{serial: r.Serial, authority: r.Authority, shard: provider.ShardOf(r.DER), notAfter: micros(r.NotAfter)}
	if r.CRLReason == "" {
		if !there {
			return nil
		}
		if err := c.tx.Queue(`DELETE FROM revocations WHERE serial = ?`, r.Serial); err != nil {
			return err
		}
		return wantCRL(c.tx, k)
	}
	why, err := cradle.ParseReason(r.CRLReason)
	if err != nil {
		return err
	}
	if there && code == int64(why) {
		return nil
	}
	byDevice := why == cradle.CertificateHold && c.devices[r.Device]
	if err := c.tx.Queue(`INSERT INTO revocations (serial, account, device, authority, shard, not_after, at, code, by_device) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (serial) DO UPDATE SET code = excluded.code, by_device = excluded.by_device`,
		r.Serial, r.Account, r.Device, r.Authority, k.shard, k.notAfter, micros(r.RevokedAt), int64(why), flag(byDevice)); err != nil {
		return err
	}
	return wantCRL(c.tx, k)
}

func (c *catchUp) feed(e *ledger.FeedRow) error {
	if err := insertFeed(c.tx, &provider.FeedEvent{Seq: e.Seq, Account: cradle.AccountID(c.log), Device: cradle.DeviceID(e.Device), State: cradle.DeviceState(e.State), Epoch: e.Epoch,
		Reason: e.Reason, At: e.At, Certificate: e.Certificate, Released: e.Released}); err != nil {
		return err
	}
	return c.tx.Queue(`UPDATE feed_head SET seq = ? WHERE seq < ?`, e.Seq, e.Seq)
}

func (c *catchUp) todo(l ledger.Leaf, what string) {
	c.out.Todo = append(c.out.Todo, provider.Undone{At: l.Time, What: what, Leaf: string(l.Data)})
}

// leaf appends a leaf that the store lacks, and does what no row of the export says.
func (c *catchUp) leaf(r *ledger.LeafRow) error {
	if r.Index < c.tree.Size() {
		return nil
	}
	l, b, err := ledger.ParseLeaf([]byte(r.Data))
	if err != nil {
		return err
	}
	c.tree.Append(l.Hash())
	c.out.Leaves++
	c.out.Until = l.Time
	if err := c.tx.Queue(`INSERT INTO leaves (log, idx, data) VALUES (?, ?, ?)`, c.log, r.Index, l.Data); err != nil {
		return err
	}
	switch l.Kind {
	case ledger.KindIssuance:
		for _, k := range b.EKIssuers {
			if err := c.tx.Queue(`INSERT INTO device_ek_issuers (issuer, account, device) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, k, c.log, b.Device); err != nil {
				return err
			}
		}
		return c.spent(l, b)
	case ledger.KindOEM:
		c.todo(l, "OEM "+b.OEM+" was registered after the backup, the keys of its CAs are lost: register it again, under another name where an account's export has brought its orders back")
	case ledger.KindOperator:
		return c.operator(l, b)
	}
	return nil
}

// spent makes the intent of a certificate that was not known: it answers a unit that is personalised again.
func (c *catchUp) spent(l ledger.Leaf, b ledger.Body) error {
	cert := c.fresh[b.Certificate]
	if cert == nil {
		return nil
	}
	var der []byte
	if err := c.tx.QueryRow(`SELECT der FROM certificates WHERE serial = ?`, cert.Serial).Scan(&der); err != nil {
		return err
	}
	spki, err := ca.SPKIDigest(der)
	if err != nil {
		return err
	}
	auth := provider.StationProfile
	if err := c.tx.QueryRow(`SELECT profile FROM certificates WHERE account = ? AND device = ? AND digest = ?`, cert.Account, cert.Device, b.AuthenticatedBy).Scan(&auth); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	challenge := b.Challenge
	if challenge == "" {
		challenge = "restored/" + b.Certificate
	}
	if err := c.tx.Queue(`INSERT INTO intents (id, account, device, profile, operation, authority, auth_cert, auth_profile, csr, spki, challenge, serial, epoch, state, certificate, reason, created, replica, lineage)
		VALUES (?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?, ?, 0, 'done', ?, 'restored', ?, '', ?) ON CONFLICT DO NOTHING`,
		b.Intent, cert.Account, cert.Device, cert.Profile, cert.Authority, b.AuthenticatedBy, auth, b.CSR, spki, challenge, cert.Serial, b.Certificate, micros(cert.Issued), cert.Lineage); err != nil {
		return err
	}
	return c.tx.Queue(`INSERT INTO device_keys (spki, account, device) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, spki, cert.Account, cert.Device)
}

// operator does again what an operator did to the log itself; what else he did he must do again himself, unless rows
// of the export have brought it.
func (c *catchUp) operator(l ledger.Leaf, b ledger.Body) error {
	switch b.Action {
	case "profile set", "device heal", "tpm-maker import", ledger.ActionLost:
		return nil
	case "operator remove":
		return c.tx.Queue(`DELETE FROM operators WHERE account = ? AND name = ?`, b.Account, b.Name)
	case "account basic --disable":
		return c.tx.Queue(`UPDATE basic_users SET disabled = 1, password = '' WHERE account = ? AND profile = ? AND name = ?`, b.Account, b.Profile, b.User)
	case "account trust-ca --remove":
		if err := c.tx.Queue(`DELETE FROM client_units WHERE ca = ?`, b.ClientCA); err != nil {
			return err
		}
		return c.tx.Queue(`UPDATE client_cas SET disabled = 1 WHERE account = ? AND id = ?`, b.Account, b.ClientCA)
	case "tpm-maker distrust":
		kind := provider.DistrustedIssuer
		if b.EK != "" {
			kind = provider.DistrustedEK
		}
		for _, k := range b.Keys {
			if err := c.tx.Queue(`INSERT INTO distrusts (digest, kind, reason, at) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING`, k, kind, b.Reason, micros(l.Time)); err != nil {
				return err
			}
		}
		return nil
	case "tpm-maker trust":
		for _, k := range b.Keys {
			if err := c.tx.Queue(`DELETE FROM distrusts WHERE digest = ?`, k); err != nil {
				return err
			}
		}
		return nil
	case "audit publish":
		return c.tx.Queue(`UPDATE logs SET public = ? WHERE log = ?`, flag(b.Public), c.log)
	case "audit witness add":
		if name, err := ledger.CheckWitnessKey(b.Witness); err == nil {
			return c.tx.Queue(`INSERT INTO witnesses (log, name, key, added) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`, c.log, name, b.Witness, micros(l.Time))
		}
	case "audit witness remove":
		return c.tx.Queue(`DELETE FROM witnesses WHERE log = ? AND name = ?`, c.log, b.Witness)
	}
	c.todo(l, b.Action)
	return nil
}
