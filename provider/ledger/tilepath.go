package ledger

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/cradle-iot/cradle"
)

// TileRef names a tile or a bundle of entries as C2SP tlog-tiles does.
type TileRef struct {
	Entries bool // leaves instead of hashes; then Level is 0
	Level   int
	N       int64
	Width   int // TileWidth, or less at the right edge
}

// maxTileLevel is the highest level of C2SP tlog-tiles: 2^48 leaves.
const maxTileLevel = 5

// ParseTilePath reads a path that begins with "tile/". It accepts only the one spelling that Path gives.
func ParseTilePath(path string) (TileRef, error) {
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > 100 {
		return TileRef{}, noTile(path)
	}
	var r TileRef
	if after, ok := strings.CutPrefix(rest, "entries/"); ok {
		r.Entries, rest = true, "data/"+after
	} else if strings.HasPrefix(rest, "data/") {
		return TileRef{}, noTile(path)
	}
	t, err := tlog.ParseTilePath(fmt.Sprintf("tile/%d/%s", tileHeight, rest))
	if err != nil || t.L > maxTileLevel {
		return TileRef{}, noTile(path)
	}
	r.Level, r.N, r.Width = max(t.L, 0), t.N, t.W
	return r, nil
}

func noTile(path string) error {
	return cradle.Errorf(cradle.NotFound, "no tile %.100q", path).WithHint("paths are tile/L/N, tile/L/N.p/W and tile/entries/N of C2SP tlog-tiles")
}

// Path is where the tile is.
func (r TileRef) Path() string {
	t := tlog.Tile{H: tileHeight, L: r.Level, N: r.N, W: r.Width}
	if r.Entries {
		t.L = -1
	}
	p := strings.TrimPrefix(t.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if after, ok := strings.CutPrefix(p, "data/"); ok {
		p = "entries/" + after
	}
	return "tile/" + p
}

// Within reports whether a log of size leaves has all that the tile names.
func (r TileRef) Within(size int64) bool {
	have := size >> (tileHeight * r.Level)
	return r.N < have/TileWidth || r.N == have/TileWidth && int64(r.Width) <= have%TileWidth
}

// Full reports whether the tile will never grow.
func (r TileRef) Full() bool { return r.Width == TileWidth }

// AppendEntry appends a leaf to a bundle's bytes: its length in two bytes, then itself.
func AppendEntry(bundle, leaf []byte) ([]byte, error) {
	if len(leaf) > MaxLeaf {
		return nil, fmt.Errorf("internal error: a leaf of %d bytes", len(leaf))
	}
	return append(binary.BigEndian.AppendUint16(bundle, uint16(len(leaf))), leaf...), nil
}
