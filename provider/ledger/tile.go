package ledger

import (
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// TileWidth is how many hashes a complete tile holds (C2SP tlog-tiles).
const TileWidth = 1 << tileHeight

const tileHeight = 8

// Tile is a complete tile: TileWidth neighbouring hashes of one level. Level 0 holds leaf
// hashes; a hash of level n+1 is the root over a whole tile of level n.
type Tile struct {
	Level  int
	N      int64
	Hashes []Hash
}

// Path is where C2SP tlog-tiles puts the tile.
func (t Tile) Path() string {
	p := tlog.Tile{H: tileHeight, L: t.Level, N: t.N, W: TileWidth}.Path() // tile/8/L/N
	return strings.Replace(p, fmt.Sprintf("tile/%d/", tileHeight), "tile/", 1)
}

// Tiler computes tiles from leaf hashes that come in order, from the first on. The zero value is ready.
type Tiler struct {
	levels []level
}

type level struct {
	n      int64
	hashes []Hash
}

// Add takes the next leaf hash and calls emit with each tile that it completes, lowest first. The
// tile is the receiver's to keep.
func (t *Tiler) Add(leaf Hash, emit func(Tile) error) error {
	h := leaf
	for l := 0; ; l++ {
		if l == len(t.levels) {
			t.levels = append(t.levels, level{})
		}
		v := &t.levels[l]
		v.hashes = append(v.hashes, h)
		if len(v.hashes) < TileWidth {
			return nil
		}
		if err := emit(Tile{Level: l, N: v.n, Hashes: v.hashes}); err != nil {
			return err
		}
		h = Subtree(v.hashes)
		*v = level{n: v.n + 1}
	}
}

// Subtree is the root over a power of two of hashes; over a complete tile it is a hash of the level above.
func Subtree(hashes []Hash) Hash {
	var f Frontier
	for _, h := range hashes {
		f.Append(h)
	}
	return f.Root()
}

// Tree holds all hashes of a log in memory (64 bytes per leaf), to make proofs.
type Tree struct {
	size   int64
	stored []Hash
}

// Append adds a leaf hash.
func (t *Tree) Append(leaf Hash) error {
	hs, err := tlog.StoredHashesForRecordHash(t.size, leaf, t)
	if err != nil {
		return fmt.Errorf("appending leaf %d: %w", t.size, err)
	}
	t.stored = append(t.stored, hs...)
	t.size++
	return nil
}

// Size is how many leaves the tree has.
func (t *Tree) Size() int64 { return t.size }

// ReadHashes implements tlog.HashReader.
func (t *Tree) ReadHashes(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(t.stored)) {
			return nil, fmt.Errorf("no hash at %d", x)
		}
		out[i] = t.stored[x]
	}
	return out, nil
}

// Root is the root hash of the first size leaves.
func (t *Tree) Root(size int64) (Hash, error) { return tlog.TreeHash(size, t) }

// Inclusion proves that the leaf at index is in the tree of the first size leaves (RFC 6962 §2.1.1).
func (t *Tree) Inclusion(index, size int64) ([]Hash, error) { return tlog.ProveRecord(size, index, t) }

// Consistency proves that the tree of size contains the tree of the first old leaves (RFC 6962 §2.1.2).
func (t *Tree) Consistency(old, size int64) ([]Hash, error) { return tlog.ProveTree(size, old, t) }

// CheckInclusion verifies a proof that Tree.Inclusion made.
func CheckInclusion(proof []Hash, leaf Hash, index int64, c Checkpoint) error {
	return tlog.CheckRecord(proof, c.Size, c.Root, index, leaf)
}

// CheckConsistency verifies a proof that Tree.Consistency made.
func CheckConsistency(proof []Hash, old, c Checkpoint) error {
	if old.Origin != c.Origin {
		return fmt.Errorf("checkpoints of two logs, %s and %s", old.Origin, c.Origin)
	}
	return tlog.CheckTree(proof, c.Size, c.Root, old.Size, old.Root)
}
