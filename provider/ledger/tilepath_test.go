package ledger_test

import (
	"strings"
	"testing"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func TestTilePaths(t *testing.T) {
	for path, want := range map[string]ledger.TileRef{
		"tile/0/000":                {Level: 0, N: 0, Width: 256},
		"tile/0/x001/x234/067":      {Level: 0, N: 1234067, Width: 256},
		"tile/1/003.p/5":            {Level: 1, N: 3, Width: 5},
		"tile/entries/x001/000.p/9": {Entries: true, N: 1000, Width: 9},
		"tile/entries/000":          {Entries: true, Width: 256},
	} {
		got, err := ledger.ParseTilePath(path)
		if err != nil || got != want || got.Path() != path {
			t.Errorf("%s: got %+v (%s), %v", path, got, got.Path(), err)
		}
	}
	for _, path := range []string{"", "tile", "tile/", "tile/0", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/00/000", "tile/6/000", "tile/63/000", "tile/-1/000", "tile/0/-01",
		"tile/data/000", "tile/8/0/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/05", "tile/0/000.p/", "tile/0/x000/001", "tile/0/000/", "tile/0//000",
		"tile/0/../0/000", "tile/entries/entries/000", "/tile/0/000", "tile/0/x999/x999/x999/x999/x999/x999/x999/999", "tile/0/000.p/5/6", "checkpoint",
		"tile/" + strings.Repeat("x001/", 40) + "000"} {
		if got, err := ledger.ParseTilePath(path); cradle.KindOf(err) != cradle.NotFound || err == nil {
			t.Errorf("%q: got %+v, %v", path, got, err)
		}
	}
	for _, c := range []struct {
		path string
		size int64
		want bool
	}{
		{"tile/0/000", 255, false}, {"tile/0/000", 256, true}, {"tile/0/000.p/3", 2, false}, {"tile/0/000.p/3", 3, true}, {"tile/0/000.p/3", 300, true},
		{"tile/1/000.p/1", 255, false}, {"tile/1/000.p/1", 256, true}, {"tile/1/000", 65535, false}, {"tile/1/000", 65536, true}, {"tile/0/001.p/1", 256, false},
		{"tile/5/000.p/1", 1 << 39, false}, {"tile/5/000.p/1", 1 << 40, true},
	} {
		r := must(ledger.ParseTilePath(c.path))
		if got := r.Within(c.size); got != c.want {
			t.Errorf("%s within %d: %v", c.path, c.size, got)
		}
	}
}

// FuzzTilePath: what is accepted is spelled in one way, and stays within what a log can have.
func FuzzTilePath(f *testing.F) {
	for _, s := range []string{"tile/0/000", "tile/entries/x001/000.p/9", "tile/5/x001/x234/067", "tile/0/x999/x999/999.p/255"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r, err := ledger.ParseTilePath(path)
		if err != nil {
			if cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("%q: %v", path, err)
			}
			return
		}
		if r.Path() != path || r.N < 0 || r.Width < 1 || r.Width > ledger.TileWidth || r.Level < 0 || r.Level > 5 || r.Within(0) {
			t.Errorf("%q: %+v, path %q", path, r, r.Path())
		}
	})
}
