package provider

import (
	"context"
	"crypto/ed25519"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Restores keeps what a store must know of its own restoration.
type Restores interface {
	Restored(ctx context.Context) ([]Restored, error)
	// MarkRestored closes every log and takes back what an older state would give away again: the key that seals challenges, open
	// intents, approvals that were not used yet, leases.
	MarkRestored(ctx context.Context, at time.Time) error
	// SetKnown remembers the newest checkpoint that is known outside.
	SetKnown(ctx context.Context, log string, checkpoint []byte) error
	// CatchUp takes over what a verified export holds beyond the store, all or nothing, and leaves the log closed. read
	// calls its function with each line of the export.
	CatchUp(ctx context.Context, log string, read func(func(*ledger.Line) error) error) (CaughtUp, error)
	// DeclareLost takes out of use what may have been ended since the backup, and appends the leaf, which names it.
	DeclareLost(ctx context.Context, log string, leaf func(h Head, out OutOfUse) (ledger.Leaf, error)) error
	// OpenLog ends the restoration of a log. With the last one the feed goes on above seq: numbers that nobody knows any more
	// are filled with events about nothing.
	OpenLog(ctx context.Context, log string, seq int64) error
	// ThawOrder opens a frozen order with that many units used; Conflict when it is not frozen, fewer than are
	// on record, or more than its quantity.
	ThawOrder(ctx context.Context, id cradle.OrderID, used int64, leaf func(Order) (ledger.Leaf, error)) (Order, error)
}

// CaughtUp is what a catch-up did.
type CaughtUp struct {
	Log          string    `json:"log"`
	Leaves       int64     `json:"leaves"` // taken over
	Size         int64     `json:"size"`
	Certificates int64     `json:"certificates"` // not known before
	Devices      int64     `json:"devices"`
	Blocked      int64     `json:"blocked"` // devices and certificates whose standing changed
	Feed         int64     `json:"feed"`    // newest number of the status feed in the export
	Todo         []Undone  `json:"todo"`
	Open         bool      `json:"open"`
	Until        time.Time `json:"until_at"` // time of the newest leaf
}

// Undone is something that the log tells and the export does not bring back: an operator does it again.
type Undone struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
	Leaf string    `json:"leaf"`
}

// OutOfUse is what a loss takes out of use until an operator says that it still holds.
type OutOfUse struct {
	Orders     []cradle.OrderID `json:"orders"`      // frozen: how many units were born is not known
	Operators  []string         `json:"operators"`   // their tokens end
	BasicUsers []string         `json:"basic_users"` // profile/name, disabled
	ClientCAs  []string         `json:"client_cas"`  // disabled
	// Settings are what is left of the rows, for the leaf.
	Settings []ledger.SettingRow `json:"-"`
}

// Recovery brings a restored store up to date, while no provider runs on it.
type Recovery struct {
	p *Provider
}

// OpenRecovery opens a store for its recovery.
func OpenRecovery(ctx context.Context, store Store, vault *filekey.Vault, now func() time.Time) (*Recovery, error) {
	p := &Provider{store: store, vault: vault, now: now}
	seed, err := p.secret(ctx, "log-key", ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	p.logKey = ed25519.NewKeyFromSeed(seed)
	return &Recovery{p}, nil
}

// closed finds the restoration of a log.
func (r *Recovery) closed(ctx context.Context, log string) (Restored, error) {
	rows, err := r.p.store.Restored(ctx)
	if err != nil {
		return Restored{}, err
	}
	i := slices.IndexFunc(rows, func(x Restored) bool { return x.Log == log })
	if i >= 0 {
		return rows[i], nil
	}
	if _, err := r.p.store.Head(ctx, log); err != nil {
		return Restored{}, cradle.Errorf(cradle.NotFound, "the store has no log %q: its account was made after the backup, and its keys are lost with the store", log)
	}
	return Restored{}, cradle.Errorf(cradle.Conflict, "log %s is open: it is not being restored", log).
		WithHint("nothing was changed; if an older export opened it too early, restore the backup again into a new folder and give the newest")
}

// key is the verifier key of a log. Its origin is what the store's own checkpoint says; a backup of a log's first second
// may have none, then it is as it was told.
func (r *Recovery) key(h Head, told string) (string, error) {
	origin, err := ledger.OriginOf(h.Checkpoint)
	if h.Checkpoint == nil {
		origin, err = told, nil
	}
	if err == nil && !strings.HasSuffix(origin, "/"+h.Log) {
		err = cradle.Errorf(cradle.Invalid, "the origin %q is not that of log %s", origin, h.Log)
	}
	if err != nil {
		return "", err
	}
	return ledger.VerifierKey(origin, r.p.logKey.Public().(ed25519.PublicKey))
}

// Known takes a checkpoint that is known outside. It opens the log when the store contains it already: then nothing
// was lost.
func (r *Recovery) Known(ctx context.Context, log string, checkpoint []byte) (CaughtUp, error) {
	x, err := r.closed(ctx, log)
	if err != nil {
		return CaughtUp{}, err
	}
	h, err := r.p.store.Head(ctx, log)
	if err != nil {
		return CaughtUp{}, err
	}
	told, err := ledger.OriginOf(checkpoint)
	if err != nil {
		return CaughtUp{}, err
	}
	key, err := r.key(h, told)
	if err != nil {
		return CaughtUp{}, err
	}
	c, err := ledger.OpenCheckpoint(checkpoint, key)
	if err != nil {
		return CaughtUp{}, err
	}
	out := CaughtUp{Log: log, Size: h.Size, Todo: []Undone{}}
	if x.Known != nil {
		if k, err := ledger.OpenCheckpoint(x.Known, key); err == nil && k.Size > c.Size {
			return out, nil
		}
	}
	if c.Size == h.Size && c.Root != h.Root {
		return out, cradle.Errorf(cradle.Conflict, "the checkpoint of size %d is of another history of log %s than the store's", c.Size, log).
			WithHint("keep it as evidence; the store or the checkpoint's keeper has been deceived")
	}
	if err := r.p.store.SetKnown(ctx, log, checkpoint); err != nil {
		return out, err
	}
	if c.Size != h.Size { // an older one proves nothing of what came later
		return out, nil
	}
	out.Open = true
	return out, r.p.store.OpenLog(ctx, log, 0)
}

// CatchUp verifies an export and takes over what it holds beyond the store. open gives the export anew at each
// call. The log opens when no newer checkpoint is known. What is wrong with the export is returned as findings, and nothing taken over then.
func (r *Recovery) CatchUp(ctx context.Context, open func() (io.ReadCloser, error)) (CaughtUp, []ledger.Finding, error) {
	log, told, err := exportOf(open)
	if err != nil {
		return CaughtUp{}, nil, err
	}
	x, err := r.closed(ctx, log)
	if err != nil {
		return CaughtUp{}, nil, err
	}
	h, err := r.p.store.Head(ctx, log)
	if err != nil {
		return CaughtUp{}, nil, err
	}
	key, err := r.key(h, told)
	if err != nil {
		return CaughtUp{}, nil, err
	}
	o := ledger.Options{Key: key, Contains: []ledger.Checkpoint{{Size: h.Size, Root: h.Root}}}
	var known int64
	if x.Known != nil {
		c, err := ledger.OpenCheckpoint(x.Known, key)
		if err != nil {
			return CaughtUp{}, nil, err
		}
		known = c.Size
	}
	f, err := open()
	if err != nil {
		return CaughtUp{}, nil, err
	}
	findings, sum, err := ledger.Verify(f, o)
	f.Close()
	if err != nil || len(findings) > 0 {
		return CaughtUp{Log: log, Size: h.Size}, findings, err
	}
	out, err := r.p.store.CatchUp(ctx, log, func(each func(*ledger.Line) error) error {
		f, err := open()
		if err != nil {
			return err
		}
		defer f.Close()
		return ledger.Read(f, each)
	})
	if err != nil {
		return out, nil, err
	}
	if now, err := r.p.store.Head(ctx, log); err != nil || ledger.Hash(now.Root).String() != sum.Root {
		return out, nil, cradle.Errorf(cradle.Conflict, "the export was changed while it was read: %v", err).WithHint("restore the backup again")
	}
	if out.Open = sum.Signed >= known; out.Open {
		err = r.p.store.OpenLog(ctx, log, out.Feed)
	}
	return out, nil, err
}

// exportOf reads whose log an export is, and the origin that it names.
func exportOf(open func() (io.ReadCloser, error)) (log, origin string, err error) {
	f, err := open()
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	err = ledger.Read(f, func(l *ledger.Line) error {
		if l.Header != nil {
			log, origin = l.Header.Log, l.Header.Origin
		}
		return io.EOF
	})
	if err == io.EOF {
		err = nil
	}
	return log, origin, err
}

// lostFeed is how far the feed moves on when leaves are lost and nobody says how far it was.
const lostFeed = 1000

// DeclareLost opens a log whose newer leaves are lost for good. Open orders are frozen, since how many units were born under them is not
// known, and operators, Basic users and client CAs end, since they may have been ended.
// A leaf records it, so that an auditor with a newer checkpoint sees the loss by name. feed is the
// newest number of the status feed known outside, 0 if nobody knows.
func (r *Recovery) DeclareLost(ctx context.Context, log, reason string, feed int64) (OutOfUse, error) {
	if reason == "" || len(reason) > maxReason {
		return OutOfUse{}, cradle.Errorf(cradle.Invalid, "say in at most %d bytes why the newer leaves are lost", maxReason)
	}
	var out OutOfUse
	x, err := r.closed(ctx, log)
	if err != nil {
		return out, err
	}
	err = r.p.store.DeclareLost(ctx, log, func(h Head, o OutOfUse) (ledger.Leaf, error) {
		out = o
		return r.p.operatorLeaf(WithActor(ctx, "restore"), log, ledger.ActionLost, map[string]any{"size": h.Size, "root": ledger.Hash(h.Root).String(), "known": string(x.Known),
			"reason": reason, "orders": o.Orders, "operators": o.Operators, "basic_users": o.BasicUsers, "client_cas": o.ClientCAs, "settings": settings(o.Settings...)})
	})
	if err != nil {
		return out, err
	}
	if feed == 0 {
		feed = -lostFeed
	}
	return out, r.p.store.OpenLog(ctx, log, feed)
}

// ThawOrder opens an order that a loss has frozen. used is how many units were born under it, by the OEM's account.
func (p *Provider) ThawOrder(ctx context.Context, id cradle.OrderID, used int64, reason string) (Order, error) {
	if len(reason) > maxReason {
		return Order{}, cradle.Errorf(cradle.Invalid, "the reason has %d bytes; at most %d", len(reason), maxReason)
	}
	row, err := p.Order(ctx, id)
	if err != nil {
		return row, err
	}
	o, err := p.store.ThawOrder(ctx, id, used, func(was Order) (ledger.Leaf, error) {
		return p.leafBy(ctx, string(row.Account), ledger.KindOrder, map[string]any{"order": id, "state": OrderOpen, "lost": used - was.Used, "reason": reason})
	})
	p.forgetOrder(id)
	return o, err
}
