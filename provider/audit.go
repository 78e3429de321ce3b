package provider

import (
	"context"
	"errors"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// Witness is somebody whose cosignatures are taken on a log's checkpoints (C2SP tlog-cosignature).
type Witness struct {
	Log   string
	Name  string // of its key
	Key   string // ledger.WitnessKey
	Added time.Time
}

// Audit keeps what serves a log to its auditors. Everything in it but the witnesses can be made again from the leaves.
type Audit interface {
	// AddWitness fails with Conflict when the log has a witness of that name with another key.
	AddWitness(ctx context.Context, w Witness, leaf ledger.Leaf) error
	RemoveWitness(ctx context.Context, log, name string, leaf ledger.Leaf) error // NotFound
	Witnesses(ctx context.Context, log string) ([]Witness, error)
	// ReplaceCheckpoint lets merge rewrite the stored checkpoint of that size; NotFound when there is none. What merge
	// returns as an error is returned.
	ReplaceCheckpoint(ctx context.Context, log string, size int64, merge func(stored []byte) ([]byte, error)) error
	// SetPublic says whether the log's tiles are served without a token.
	SetPublic(ctx context.Context, log string, public bool, leaf ledger.Leaf) error
	Head(ctx context.Context, log string) (Head, error) // NotFound
	// Leaves returns the bytes of the leaves from one index up to before another.
	Leaves(ctx context.Context, log string, from, to int64) ([][]byte, error)
	// Hashes returns the remembered hashes of a level (1 and above) with index in [from, to), by index; those
	// that are not remembered are left out.
	Hashes(ctx context.Context, log string, level int, from, to int64) (map[int64]ledger.Hash, error)
	// SaveHashes remembers hashes of a level; those that are there already stay.
	SaveHashes(ctx context.Context, log string, level int, hashes map[int64]ledger.Hash) error
}

// AddWitness takes cosignatures of this key on the log's checkpoints from now on.
func (p *Provider) AddWitness(ctx context.Context, log, key string) (Witness, error) {
	name, err := ledger.CheckWitnessKey(key)
	if err != nil {
		return Witness{}, err
	}
	have, err := p.store.Witnesses(ctx, log)
	if err != nil {
		return Witness{}, err
	}
	if len(have) >= ledger.MaxCosignatures {
		return Witness{}, cradle.Errorf(cradle.TooLarge, "log %s has %d witnesses already", log, len(have))
	}
	w := Witness{Log: log, Name: name, Key: key, Added: p.now()}
	leaf, err := p.operatorLeaf(ctx, log, "audit witness add", map[string]any{"witness": key, "settings": settings(w.Setting())})
	if err != nil {
		return Witness{}, err
	}
	return w, p.store.AddWitness(ctx, w, leaf)
}

// RemoveWitness takes no further cosignatures of that witness; those that are there stay.
func (p *Provider) RemoveWitness(ctx context.Context, log, name string) error {
	leaf, err := p.operatorLeaf(ctx, log, "audit witness remove", map[string]any{"witness": name, "settings": settings(gone(witnessSetting(name)))})
	if err != nil {
		return err
	}
	return p.store.RemoveWitness(ctx, log, name, leaf)
}

// Witnesses returns a log's witnesses.
func (p *Provider) Witnesses(ctx context.Context, log string) ([]Witness, error) {
	return p.store.Witnesses(ctx, log)
}

// Cosign adds the cosignatures by the log's witnesses that a copy of one of its checkpoints carries, and returns
// those that were new. It needs no other authority than those signatures: they can only add to what is proved.
func (p *Provider) Cosign(ctx context.Context, log string, copied []byte) ([]ledger.Cosignature, error) {
	key, err := p.LogKey(log)
	if err != nil {
		return nil, err
	}
	c, err := ledger.OpenCheckpoint(copied, key)
	if err != nil {
		return nil, err
	}
	witnesses, err := p.store.Witnesses(ctx, log)
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(witnesses))
	for i, w := range witnesses {
		keys[i] = w.Key
	}
	if found, err := ledger.Cosignatures(copied, key, keys); err != nil {
		return nil, err
	} else if len(found) == 0 {
		return nil, cradle.Errorf(cradle.Forbidden, "the checkpoint carries no cosignature by a witness of log %s", log).
			WithHint("cradle audit witness list; cradle audit witness add KEY")
	}
	var added []ledger.Cosignature
	err = p.store.ReplaceCheckpoint(ctx, log, c.Size, func(stored []byte) (merged []byte, err error) {
		merged, added, err = ledger.MergeCosignatures(stored, copied, key, keys)
		return merged, err
	})
	return added, err
}

// Publish says whether anybody may read the log's checkpoint and tiles, which hold every leaf of it.
func (p *Provider) Publish(ctx context.Context, log string, public bool) error {
	leaf, err := p.operatorLeaf(ctx, log, "audit publish", map[string]any{"public": public, "settings": settings(PublicSetting(public))})
	if err != nil {
		return err
	}
	return p.store.SetPublic(ctx, log, public, leaf)
}

// LogHead returns a log's head.
func (p *Provider) LogHead(ctx context.Context, log string) (Head, error) {
	return p.store.Head(ctx, log)
}

// Tile returns the bytes of a tile or a bundle of entries (C2SP tlog-tiles) of a log's newest checkpoint; NotFound
// beyond it.
func (p *Provider) Tile(ctx context.Context, log string, r ledger.TileRef) ([]byte, error) {
	h, err := p.store.Head(ctx, log)
	if err != nil {
		return nil, err
	}
	if !r.Within(h.Signed) {
		return nil, cradle.Errorf(cradle.NotFound, "log %s has no tile %s yet: its checkpoint is of size %d", log, r.Path(), h.Signed)
	}
	from := r.N * ledger.TileWidth
	to := from + int64(r.Width)
	var out []byte
	if r.Entries {
		leaves, err := p.store.Leaves(ctx, log, from, to)
		if err != nil {
			return nil, err
		}
		for _, l := range leaves {
			if out, err = ledger.AppendEntry(out, l); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	work := tileWork{p.store, log, maxTileWork}
	hashes, err := work.hashes(ctx, r.Level, from, to)
	if err != nil {
		return nil, err
	}
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out, nil
}

// maxTileWork is how many leaves one request may have hashed. What was hashed is remembered, so that a large log that was never
// asked for before becomes available within some requests.
const maxTileWork = 1 << 19

type tileWork struct {
	store Store
	log   string
	left  int64
}

// hashes returns the hashes [from, to) of a level, and remembers those above the leaves.
func (w *tileWork) hashes(ctx context.Context, level int, from, to int64) (out []ledger.Hash, err error) {
	out = make([]ledger.Hash, 0, to-from)
	if level == 0 {
		if w.left -= to - from; w.left < 0 {
			return nil, cradle.Errorf(cradle.Busy, "the tiles of log %s are being made", w.log).WithHint("ask again")
		}
		leaves, err := w.store.Leaves(ctx, w.log, from, to)
		if err != nil {
			return nil, err
		}
		for _, l := range leaves {
			out = append(out, ledger.Leaf{Data: l}.Hash())
		}
		return out, nil
	}
	have, err := w.store.Hashes(ctx, w.log, level, from, to)
	if err != nil {
		return nil, err
	}
	fresh := map[int64]ledger.Hash{}
	defer func() { // also what was made before the work was over
		if len(fresh) > 0 {
			err = errors.Join(err, w.store.SaveHashes(context.WithoutCancel(ctx), w.log, level, fresh))
		}
	}()
	for n := from; n < to; n++ {
		h, ok := have[n]
		if !ok {
			below, err := w.hashes(ctx, level-1, n*ledger.TileWidth, (n+1)*ledger.TileWidth)
			if err != nil {
				return nil, err
			}
			h = ledger.Subtree(below)
			fresh[n] = h
		}
		out = append(out, h)
	}
	return out, nil
}
