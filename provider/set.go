package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// SelectorKind is by what devices are selected.
type SelectorKind string

// The kinds. Certificates are selected by ChangeCertificate, one device by ChangeState.
const (
	ByOrder    SelectorKind = "order"
	ByLot      SelectorKind = "lot"
	ByOEM      SelectorKind = "oem"
	ByMaker    SelectorKind = "maker"
	ByEKIssuer SelectorKind = "ek-issuer"
)

// Selector names a set of an account's devices.
type Selector struct {
	Kind  SelectorKind
	Value string // of ByEKIssuer: SHA-256 of SPKIs, joined by commas
}

// Keys are the values of a selector by issuers.
func (s Selector) Keys() []string { return strings.Split(s.Value, ",") }

// Holds reports whether a device is in the set. issuers are the keys on the path of its EK certificate.
func (s Selector) Holds(d *Device, issuers []string) bool {
	switch s.Kind {
	case ByOrder:
		return string(d.Order) == s.Value
	case ByLot:
		return d.Lot != "" && string(d.Lot) == s.Value
	case ByOEM:
		return string(d.OEM) == s.Value
	case ByMaker:
		return string(d.Maker) == s.Value
	case ByEKIssuer:
		return slices.ContainsFunc(s.Keys(), func(k string) bool { return slices.Contains(issuers, k) })
	}
	return false
}

// Job is a change of a whole set. It is durable: a batch of devices and the place that was reached are one transaction, so that
// any replica goes on after a crash.
type Job struct {
	ID       string
	Account  cradle.AccountID
	Set      Selector
	Change   StateChange
	Code     cradle.Reason
	Reason   string
	Actor    string
	Done     bool
	Cursor   cradle.DeviceID // the last device that was looked at
	Total    int64           // devices in the set when it began
	Changed  int64           // devices that this job changed
	Feed     int64           // number of its newest event
	Created  time.Time
	Finished time.Time
}

// jobBatch is how many devices one transaction changes: others wait for no longer than that.
const jobBatch = 64

// Sets keeps the jobs.
type Sets interface {
	// StartJob stores a job. From then on BeginIssue refuses the devices of its set (Forbidden; births too).
	StartJob(ctx context.Context, j Job, leaf ledger.Leaf) error
	// Barrier returns when every birth that was under way has ended: later ones see what is stored now.
	Barrier(ctx context.Context, account cradle.AccountID) error
	// CountSet counts the devices of a set; an empty account means all accounts.
	CountSet(ctx context.Context, account cradle.AccountID, s Selector) (map[cradle.AccountID]int64, error)
	// SetDevices returns up to limit devices of a set with ids after the given one.
	SetDevices(ctx context.Context, account cradle.AccountID, s Selector, after cradle.DeviceID, limit int) ([]cradle.DeviceID, error)
	// WorkJob changes devices as SetState does and moves the cursor from j's to the last of them; a device that cannot
	// be changed so (it is revoked already) is passed over. Without devices the job is done. Conflict when the job is done or
	// its cursor is elsewhere: another replica is at it.
	WorkJob(ctx context.Context, j Job, devices []cradle.DeviceID, s Standing, leaf StandingLeaf) (Job, error)
	Job(ctx context.Context, account cradle.AccountID, id string) (Job, error) // NotFound
	Jobs(ctx context.Context, account cradle.AccountID) ([]Job, error)         // newest first, at most 1000
	RunningJobs(ctx context.Context) ([]Job, error)
}

// ChangeSet revokes, suspends or releases every device of a set. It returns when that is done, or after patience with the job
// under way; Run of any replica brings it to its end.
func (p *Provider) ChangeSet(ctx context.Context, account cradle.AccountID, s Selector, c StateChange, reason string) (Job, error) {
	if _, err := p.account(ctx, account); err != nil {
		return Job{}, err
	}
	if err := p.checkSet(ctx, account, &s); err != nil {
		return Job{}, err
	}
	return p.startJob(ctx, account, s, c, reason)
}

// checkSet refuses a set of nothing that exists, and finds the keys that an EK issuer stands for.
func (p *Provider) checkSet(ctx context.Context, account cradle.AccountID, s *Selector) error {
	switch s.Kind {
	case ByOrder:
		return p.CheckOrder(ctx, account, cradle.OrderID(s.Value))
	case ByLot:
		return p.CheckLot(ctx, account, "", cradle.LotID(s.Value))
	case ByOEM:
		_, err := p.store.OEM(ctx, cradle.OEMID(s.Value))
		return err
	case ByMaker:
		if err := cradle.CheckID("TPM maker", s.Value); err != nil {
			return err
		}
		if !slices.ContainsFunc(p.dir.Load().makers, func(a Anchor) bool { return string(a.Maker) == s.Value }) {
			return cradle.Errorf(cradle.NotFound, "no TPM maker %q", s.Value).WithHint("cradle tpm-maker list")
		}
		return nil
	case ByEKIssuer:
		keys, err := p.issuerKeys(ctx, s.Value)
		s.Value = strings.Join(keys, ",")
		return err
	}
	return cradle.Errorf(cradle.Invalid, "no such selector %q", s.Kind).WithHint("use order, lot, oem, maker or ek-issuer")
}

// issuerKeys returns the key that a digest means, of an imported certificate or of a SubjectPublicKeyInfo, and with it the keys of
// the anchors that it signed: a path is recorded up to the first anchor.
func (p *Provider) issuerKeys(ctx context.Context, digest string) ([]string, error) {
	digest = strings.ToLower(strings.ReplaceAll(digest, ":", ""))
	d := p.dir.Load()
	spki := map[string]string{} // of the anchors, by fingerprint
	for _, a := range d.makers {
		cert, err := attest.ParseAnchor(a.Cert)
		if err != nil {
			return nil, err
		}
		spki[a.Fingerprint] = hexDigest(cert.RawSubjectPublicKeyInfo)
	}
	key, anchor := spki[digest]
	if !anchor {
		key = digest
		for _, k := range spki {
			anchor = anchor || k == key
		}
	}
	if !anchor {
		if n, err := p.store.CountSet(ctx, "", Selector{ByEKIssuer, key}); err != nil || len(n) == 0 {
			return nil, errors.Join(err, cradle.Errorf(cradle.NotFound, "no issuer of EK certificates has the digest %.70q", digest).
				WithHint("give the SHA-256 of a certificate that cradle tpm-maker list shows, or of an issuer's public key"))
		}
	}
	set, err := anchorSet(d.makers, []Distrusted{{Kind: DistrustedIssuer, Digest: key}}, p.ekCache)
	if err != nil {
		return nil, err
	}
	keys := []string{key}
	for _, k := range spki {
		if !slices.Contains(keys, k) && set.Distrusts(attest.EKFacts{Issuers: []string{k}}) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys[1:])
	return keys, nil
}

func (p *Provider) startJob(ctx context.Context, account cradle.AccountID, s Selector, c StateChange, reason string) (Job, error) {
	code, err := reasonOf(c, reason)
	if err != nil {
		return Job{}, err
	}
	if c == Retire {
		return Job{}, cradle.Errorf(cradle.Invalid, "devices are retired one by one")
	}
	n, err := p.store.CountSet(ctx, account, s)
	if err != nil {
		return Job{}, err
	}
	j := Job{ID: newID(), Account: account, Set: s, Change: c, Code: code, Reason: reason, Actor: actorOf(ctx), Total: n[account], Created: p.now()}
	leaf, err := p.operatorLeaf(ctx, string(account), string(c), map[string]any{"account": account, "job": j.ID, "set": s.Kind, "value": s.Value,
		"code": code.String(), "reason": reason, "devices": j.Total})
	if err != nil {
		return Job{}, err
	}
	if err := p.store.StartJob(ctx, j, leaf); err != nil {
		return Job{}, err
	}
	p.log.Info("change of a set begins", "account", account, "job", j.ID, "change", c, "set", s.Kind, "value", s.Value, "devices", j.Total)
	// The job is there: whoever asked may go away now, and Run takes over.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobPatience)
	defer cancel()
	done, err := p.workJob(work, j)
	if err != nil {
		if work.Err() == nil && cradle.KindOf(err) != cradle.Conflict {
			p.log.Error("change of a set; it goes on", "job", j.ID, "err", err)
		}
		return p.store.Job(context.WithoutCancel(ctx), account, j.ID)
	}
	return done, nil
}

// jobPatience is how long a caller waits for a whole set.
const jobPatience = 3 * time.Second

// workJob brings a job on until it is done or ctx ends.
func (p *Provider) workJob(ctx context.Context, j Job) (Job, error) {
	if j.Cursor == "" {
		if err := p.store.Barrier(ctx, j.Account); err != nil {
			return j, err
		}
	}
	by := WithActor(ctx, j.Actor)
	leaf := p.standingLeaf(by, j.Account, j.Code, j.Reason, j.ID)
	for !j.Done {
		ids, err := p.store.SetDevices(ctx, j.Account, j.Set, j.Cursor, jobBatch)
		if err != nil {
			return j, err
		}
		if j, err = p.store.WorkJob(ctx, j, ids, Standing{j.Change, j.Code, j.Reason, p.now()}, leaf); err != nil {
			return j, err
		}
		p.feed.notify()
	}
	p.log.Info("change of a set is done", "account", j.Account, "job", j.ID, "changed", j.Changed)
	return j, nil
}

// runJobs goes on with what is under way: jobs that outlast their caller's patience, and those of replicas that died. Several replicas
// may be at one job for a moment: each batch is done by one.
func (p *Provider) runJobs(ctx context.Context) error {
	jobs, err := p.store.RunningJobs(ctx)
	for _, j := range jobs {
		now := p.now()
		if now.Sub(j.Created) < jobPatience {
			continue // its caller is at it
		}
		held, lerr := p.store.Lease(ctx, "job "+j.ID, p.replica, now, now.Add(leaseLife))
		if lerr != nil || !held {
			err = errors.Join(err, lerr)
			continue
		}
		part, cancel := context.WithTimeout(ctx, leaseLife/2)
		_, werr := p.workJob(part, j)
		ended := part.Err() != nil
		cancel()
		if werr != nil && !ended && cradle.KindOf(werr) != cradle.Conflict {
			err = errors.Join(err, fmt.Errorf("job %s: %w", j.ID, werr))
		}
	}
	return err
}

// Job returns one change of a set.
func (p *Provider) Job(ctx context.Context, account cradle.AccountID, id string) (Job, error) {
	return p.store.Job(ctx, account, id)
}

// Jobs returns an account's changes of sets, newest first.
func (p *Provider) Jobs(ctx context.Context, account cradle.AccountID) ([]Job, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	return p.store.Jobs(ctx, account)
}

// CountSet says how many devices a set has.
func (p *Provider) CountSet(ctx context.Context, account cradle.AccountID, s Selector) (int64, error) {
	if _, err := p.account(ctx, account); err != nil {
		return 0, err
	}
	if err := p.checkSet(ctx, account, &s); err != nil {
		return 0, err
	}
	n, err := p.store.CountSet(ctx, account, s)
	return n[account], err
}
