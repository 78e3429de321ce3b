package providerdb

import (
	"context"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/sqldb"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Export implements provider.Log.
func (d *DB) Export(ctx context.Context, h ledger.Header, w *ledger.Writer) error {
	return d.db.View(ctx, func(_ context.Context, tx *sqldb.Tx) error {
		if err := w.Header(h); err != nil {
			return err
		}
		for _, part := range []func(*sqldb.Tx, string, *ledger.Writer) error{exportDirectory, exportOrders, exportDevices, exportSettings, exportFeed, exportLog} {
			if err := part(tx, h.Log, w); err != nil {
				return err
			}
		}
		return w.Close()
	})
}

func exportDirectory(tx *sqldb.Tx, log string, w *ledger.Writer) error {
	err := each(tx, scanAccount, func(a *provider.Account) error {
		profiles := map[string]string{}
		for name, text := range a.Profiles {
			profiles[string(name)] = text
		}
		return w.Account(ledger.AccountRow{ID: string(a.ID), Region: a.Region, OrderKey: a.OrderKey, Profiles: profiles})
	}, `SELECT `+accountColumns+` FROM accounts WHERE id = ?`, log)
	if err != nil {
		return err
	}
	err = each(tx, scanOEM, func(o *provider.OEM) error {
		return w.OEM(ledger.OEMRow{ID: string(o.ID), OrderKey: o.OrderKey, LotKey: o.LotKey, Created: o.Created})
	}, `SELECT id, order_key, lot_key, created FROM oems WHERE id IN (SELECT oem FROM orders WHERE account = ?) ORDER BY id`, log)
	if err != nil {
		return err
	}
	last := "" // one external root may be that of both classes
	if log == provider.InstallationLog {
		if err := exportInstallation(tx, w); err != nil {
			return err
		}
	}
	return each(tx, scanAuthority, func(a *provider.Authority) error {
		if a.Digest() == last {
			return nil
		}
		last = a.Digest()
		return w.Authority(ledger.AuthorityRow{ID: last, Kind: string(a.Kind), Account: string(a.Account), OEM: string(a.OEM), Class: string(a.Class), Chain: a.Chain, Created: a.Created, State: string(a.State), DER: a.Cert})
	}, `SELECT `+authorityColumns+` FROM authorities WHERE account = ? OR kind = ? AND oem IN (SELECT oem FROM orders WHERE account = ?) ORDER BY id`,
		log, provider.StationCA, log)
}

func exportInstallation(tx *sqldb.Tx, w *ledger.Writer) error {
	err := each(tx, scanOEM, func(o *provider.OEM) error {
		return w.OEM(ledger.OEMRow{ID: string(o.ID), OrderKey: o.OrderKey, LotKey: o.LotKey, Created: o.Created})
	}, `SELECT id, order_key, lot_key, created FROM oems ORDER BY id`)
	if err != nil {
		return err
	}
	return each(tx, func(r row, a *ledger.AnchorRow) error { return r.Scan(&a.ID, &a.Maker, &a.Tier, &a.DER) }, func(a *ledger.AnchorRow) error { return w.Anchor(*a) },
		`SELECT fingerprint, maker, tier, cert FROM anchors ORDER BY fingerprint`)
}

func exportOrders(tx *sqldb.Tx, log string, w *ledger.Writer) error {
	err := each(tx, scanOrder, func(o *provider.Order) error {
		return w.Order(ledger.OrderRow{ID: string(o.ID), Account: string(o.Account), OEM: string(o.OEM), JWS: o.JWS, Quantity: o.Quantity, Used: o.Used, State: string(o.State),
			Reason: o.Reason, Created: o.Created})
	}, `SELECT `+orderColumns+` FROM orders WHERE account = ? ORDER BY id`, log)
	if err != nil {
		return err
	}
	return each(tx, scanLot, func(l *provider.Lot) error {
		return w.Lot(ledger.LotRow{ID: string(l.ID), Order: string(l.Order), OEM: string(l.OEM), Report: l.Report, Custody: l.Custody, Head: l.Head, Units: l.Units,
			State: l.State, Findings: l.Findings, Closed: l.Closed, Accepted: l.Accepted})
	}, `SELECT `+lotColumns+` FROM lots WHERE account = ? ORDER BY id`, log)
}

func exportDevices(tx *sqldb.Tx, log string, w *ledger.Writer) error {
	err := each(tx, scanDevice, func(v *provider.Device) error { return w.Device(*v.Row()) },
		`SELECT `+deviceColumns+` FROM devices d WHERE d.account = ? ORDER BY d.id`, log)
	if err != nil {
		return err
	}
	type spent struct {
		provider.Certificate
		challenge, csr, by, key, crl string
		code, shard                  int64 // CRLReason, -1: not in CRLs; of which CRL
	}
	err = each(tx, func(r row, c *spent) error {
		fields, done := certFields(&c.Certificate)
		err := r.Scan(append(fields, &c.challenge, &c.csr, &c.by, &c.key, &c.code, &c.shard)...)
		done()
		if c.code < 0 {
			return err
		}
		if shard, _ := provider.PointOf(c.DER); shard == c.shard { // else it is in none that a reader asks for
			c.crl = cradle.Reason(c.code).String()
		}
		return err
	}, func(c *spent) error {
		return w.Certificate(ledger.CertificateRow{Digest: c.Digest, Serial: string(c.Serial), Account: string(c.Account), Device: string(c.Device),
			Profile: string(c.Profile), Authority: c.Authority, DER: c.DER, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Lineage: c.Lineage, Slot: string(c.Slot), Intent: c.Intent,
			Challenge: c.challenge, CSR: c.csr, By: c.by, Key: c.key, Issued: c.Issued, Revoked: !c.Revoked.IsZero(), RevokedAt: c.Revoked, CRLReason: c.crl, Reason: c.Reason})
	}, `SELECT `+certColumns+`, COALESCE(i.challenge, ''), COALESCE(i.csr, ''), COALESCE(i.auth_cert, ''), COALESCE(k.spki, ''), COALESCE(r.code, -1), COALESCE(r.shard, 0)
		FROM certificates c LEFT JOIN intents i ON i.id = c.intent AND i.state = 'done' AND i.certificate = c.digest AND i.account = c.account
			AND i.device = c.device AND i.profile = c.profile AND i.authority = c.authority AND i.serial = c.serial AND i.lineage = c.lineage
		LEFT JOIN device_keys k ON k.spki = i.spki AND k.account = c.account AND k.device = c.device
		LEFT JOIN revocations r ON r.serial = c.serial AND r.account = c.account AND r.device = c.device AND r.authority = c.authority AND r.not_after = c.not_after
		WHERE c.account = ? AND c.slot <> '`+string(provider.Sealed)+`' ORDER BY c.serial`, log)
	if err != nil {
		return err
	}
	return each(tx, func(r row, q *ledger.QuarantineRow) error { return r.Scan(&q.Device, &q.Lineage) }, func(q *ledger.QuarantineRow) error { return w.Quarantine(*q) },
		`SELECT device, lineage FROM quarantines WHERE account = ? ORDER BY device, lineage`, log)
}

// exportSettings writes the rows by which somebody may do something.
func exportSettings(tx *sqldb.Tx, log string, w *ledger.Writer) error {
	err := each(tx, scanWitness, func(x *provider.Witness) error { return w.Setting(x.Setting()) }, `SELECT log, name, key, added FROM witnesses WHERE log = ? ORDER BY name`, log)
	if err != nil {
		return err
	}
	var public int64
	if err := tx.QueryRow(`SELECT public FROM logs WHERE log = ?`, log).Scan(&public); err != nil {
		return err
	}
	if public != 0 {
		if err := w.Setting(provider.PublicSetting(true)); err != nil {
			return err
		}
	}
	account := log
	if log == provider.InstallationLog {
		account = ""
		if err := each(tx, scanDistrusted, func(k *provider.Distrusted) error { return w.Setting(k.Setting()) }, `SELECT `+distrustColumns+` FROM distrusts ORDER BY digest`); err != nil {
			return err
		}
	}
	if err := each(tx, scanOperator, func(o *provider.Operator) error { return w.Setting(o.Setting()) }, `SELECT `+operatorColumns+` FROM operators WHERE account = ? ORDER BY name`, account); err != nil {
		return err
	}
	if err := each(tx, scanBasic, func(u *provider.BasicUser) error { return w.Setting(u.Setting()) },
		`SELECT `+basicColumns+` FROM basic_users WHERE account = ? ORDER BY profile, name`, account); err != nil {
		return err
	}
	cas, err := rows(tx, scanClientCA, `SELECT `+clientCAColumns+` FROM client_cas WHERE account = ? ORDER BY id`, account)
	if err != nil {
		return err
	}
	for _, c := range cas {
		units, err := rows(tx, func(r row, u *provider.ClientUnit) error { return r.Scan(&u.Unit, &u.Name) }, `SELECT unit, name FROM client_units WHERE ca = ?`, c.ID)
		if err != nil {
			return err
		}
		if err := w.Setting(c.Setting(units)); err != nil {
			return err
		}
	}
	if err := each(tx, scanApproval, func(a *provider.Approval) error { return w.Setting(a.Setting()) },
		`SELECT `+approvalColumns+` FROM approvals WHERE account = ? ORDER BY id`, account); err != nil {
		return err
	}
	var issuers []string
	var device cradle.DeviceID
	put := func() error {
		if len(issuers) == 0 {
			return nil
		}
		return w.Setting(provider.EKIssuersSetting(device, issuers))
	}
	type path struct {
		device cradle.DeviceID
		issuer string
	}
	err = each(tx, func(r row, p *path) error { return r.Scan(&p.device, &p.issuer) }, func(p *path) error {
		if p.device != device {
			if err := put(); err != nil {
				return err
			}
			device, issuers = p.device, nil
		}
		issuers = append(issuers, p.issuer)
		return nil
	}, `SELECT device, issuer FROM device_ek_issuers WHERE account = ? ORDER BY device`, account)
	if err == nil {
		err = put()
	}
	if err != nil {
		return err
	}
	type kek struct {
		id     string
		sealed []byte
	}
	return each(tx, func(r row, k *kek) error { return r.Scan(&k.id, &k.sealed) }, func(k *kek) error { return w.Setting(provider.KEKSetting(k.id, k.sealed)) },
		`SELECT id, sealed FROM keks WHERE account = ? ORDER BY id`, account)
}

func exportFeed(tx *sqldb.Tx, log string, w *ledger.Writer) error {
	return each(tx, scanFeed, func(e *provider.FeedEvent) error {
		return w.Feed(ledger.FeedRow{Seq: e.Seq, Device: string(e.Device), State: string(e.State), Epoch: e.Epoch, Reason: e.Reason, At: e.At,
			Certificate: e.Certificate, Released: e.Released})
	}, `SELECT `+feedColumns+` FROM feed WHERE account = ? ORDER BY seq`, log)
}

func exportLog(tx *sqldb.Tx, log string, w *ledger.Writer) error {
	type sized struct {
		n    int64
		data []byte
	}
	scan := func(r row, s *sized) error { return r.Scan(&s.n, &s.data) }
	var h provider.Head
	if err := scanHead(tx.QueryRow(`SELECT `+headColumns+` FROM logs WHERE log = ?`, log), &h); err != nil {
		return err
	}
	head := ledger.HeadRow{Root: ledger.Hash(h.Root).String(), Signed: h.Signed, Checkpoint: string(h.Checkpoint)}
	if err := tx.QueryRow(`SELECT size, (SELECT seq FROM feed_head) FROM logs WHERE log = ?`, log).Scan(&head.Size, &head.Feed); err != nil {
		return err
	}
	if err := w.Head(head); err != nil {
		return err
	}
	if err := each(tx, scan, func(s *sized) error { return w.Checkpoint(s.n, s.data) },
		`SELECT size, note FROM checkpoints WHERE log = ? ORDER BY size`, log); err != nil {
		return err
	}
	if err := each(tx, func(r row, h *ledger.HashRow) error { return r.Scan(&h.Level, &h.N, &h.Hash) }, func(h *ledger.HashRow) error { return w.Hash(*h) },
		`SELECT level, n, hash FROM log_hashes WHERE log = ? ORDER BY level, n`, log); err != nil {
		return err
	}
	return each(tx, scan, func(s *sized) error { return w.Leaf(s.n, s.data) }, `SELECT idx, data FROM leaves WHERE log = ? ORDER BY idx`, log)
}
