package provider_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/testenv"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// fill appends refusals until the account's log has n leaves.
func (r *rig) fill(n int) {
	r.t.Helper()
	h, err := r.p.LogHead(r.t.Context(), "acme")
	if err != nil {
		r.t.Fatal(err)
	}
	var wg sync.WaitGroup
	limit := make(chan struct{}, 64)
	for i := int(h.Size); i < n; i++ {
		leaf, err := ledger.NewLeaf("acme", ledger.KindRefusal, r.now(), map[string]any{"reason": fmt.Sprint(i)})
		if err != nil {
			r.t.Fatal(err)
		}
		limit <- struct{}{}
		wg.Go(func() {
			if err := r.db.Append(r.t.Context(), leaf); err != nil {
				r.t.Error(err)
			}
			<-limit
		})
	}
	wg.Wait()
	r.export() // signs a checkpoint
}

// tiles reads a log's tiles as any client of C2SP tlog-tiles does: golang.org/x/mod's verifies each against the root.
type tiles struct{ r *rig }

func (t tiles) Height() int { return 8 }

func (t tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, w := range want {
		b, err := t.r.p.Tile(t.r.t.Context(), "acme", ledger.TileRef{Level: w.L, N: w.N, Width: w.W})
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (r *rig) checkpoint() ledger.Checkpoint {
	r.t.Helper()
	h, err := r.p.LogHead(r.t.Context(), "acme")
	if err != nil {
		r.t.Fatal(err)
	}
	key, err := r.p.LogKey("acme")
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := ledger.OpenCheckpoint(h.Checkpoint, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func TestTiles(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.fill(300)
		early := r.checkpoint()
		r.fill(1000)
		c := r.checkpoint()
		tree := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tiles{r})
		proof, err := tlog.ProveTree(c.Size, early.Size, tree)
		if err != nil {
			t.Fatal(err)
		}
		if err := ledger.CheckConsistency(proof, early, c); err != nil {
			t.Errorf("consistency by tiles: %v", err)
		}
		for _, index := range []int64{0, 255, 256, 511, 999} {
			bundle := ledger.TileRef{Entries: true, N: index / 256, Width: 256}
			if !bundle.Within(c.Size) {
				bundle.Width = int(c.Size % 256)
			}
			b, err := r.p.Tile(t.Context(), "acme", bundle)
			if err != nil {
				t.Fatal(err)
			}
			var leaf []byte
			for range index%256 + 1 {
				n := binary.BigEndian.Uint16(b)
				leaf, b = b[2:2+n], b[2+n:]
			}
			proof, err := tlog.ProveRecord(c.Size, index, tree)
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.CheckInclusion(proof, ledger.Leaf{Data: leaf}.Hash(), index, c); err != nil {
				t.Errorf("leaf %d: %v", index, err)
			}
		}
		for _, ref := range []ledger.TileRef{{N: 3, Width: 256}, {N: 3, Width: 233}, {N: 4, Width: 1}, {Level: 1, Width: 4}, {Level: 2, Width: 1}, {Entries: true, N: 9, Width: 1}} {
			if _, err := r.p.Tile(t.Context(), "acme", ref); cradle.KindOf(err) != cradle.NotFound {
				t.Errorf("%s beyond the checkpoint: %v", ref.Path(), err)
			}
		}
		if _, err := r.p.Tile(t.Context(), "nobody", ledger.TileRef{Width: 1}); cradle.KindOf(err) != cradle.NotFound {
			t.Errorf("of no log: %v", err)
		}
		r.check()
	})
}

func TestWitnesses(t *testing.T) {
	testenv.EachStore(t, func(t *testing.T, url string) {
		r := newRig(t, url)
		r.export()
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		vkey, err := ledger.WitnessKey("w1", key.Public().(ed25519.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		logKey, err := r.p.LogKey("acme")
		if err != nil {
			t.Fatal(err)
		}
		cosigned := func() []byte {
			h, err := r.p.LogHead(t.Context(), "acme")
			if err != nil {
				t.Fatal(err)
			}
			b, err := ledger.Cosign(h.Checkpoint, logKey, "w1", key, r.now())
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		_, err = r.p.Cosign(t.Context(), "acme", cosigned())
		refused(t, err, cradle.Forbidden, "no cosignature by a witness")
		if _, err := r.p.AddWitness(t.Context(), "acme", vkey); err != nil {
			t.Fatal(err)
		}
		if _, err := r.p.AddWitness(t.Context(), "acme", vkey); err != nil {
			t.Errorf("the same witness again: %v", err)
		}
		other, err := ledger.WitnessKey("w1", r.otherKey())
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.p.AddWitness(t.Context(), "acme", other)
		refused(t, err, cradle.Conflict, "another key")
		r.export()
		msg := cosigned()
		r.fill(20) // the witness was slow: a newer checkpoint is there
		added, err := r.p.Cosign(t.Context(), "acme", msg)
		if err != nil || len(added) != 1 || added[0].Witness != "w1" {
			t.Fatalf("got %v, %v", added, err)
		}
		if added, err := r.p.Cosign(t.Context(), "acme", msg); err != nil || len(added) != 0 {
			t.Errorf("again: %v, %v", added, err)
		}
		if added, err = r.p.Cosign(t.Context(), "acme", cosigned()); err != nil || len(added) != 1 {
			t.Fatalf("the newest: %v, %v", added, err)
		}
		h, err := r.p.LogHead(t.Context(), "acme")
		if err != nil {
			t.Fatal(err)
		}
		if found, err := ledger.Cosignatures(h.Checkpoint, logKey, []string{vkey}); err != nil || len(found) != 1 {
			t.Errorf("the newest checkpoint carries %v, %v", found, err)
		}
		findings, sum, err := ledger.Verify(bytes.NewReader(r.export()), ledger.Options{Key: logKey, Witnesses: []string{vkey}})
		if err != nil || len(findings) > 0 || len(sum.Witnessed) != 1 || sum.Witnessed[0].Size != h.Signed {
			t.Errorf("audit: %v, %v, %+v", findings, err, sum.Witnessed)
		}

		// A second checkpoint of one size, signed by the log's own key, is a fork: refused, and said so.
		forged, err := r.forge(provider.Head{Log: "acme", Size: h.Signed, Root: [32]byte{1}})
		if err == nil {
			forged, err = ledger.Cosign(forged, logKey, "w1", key, r.now())
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.p.Cosign(t.Context(), "acme", forged)
		refused(t, err, cradle.Conflict, "not the one that is stored")

		if err := r.p.RemoveWitness(t.Context(), "acme", "w1"); err != nil {
			t.Fatal(err)
		}
		refused(t, r.p.RemoveWitness(t.Context(), "acme", "w1"), cradle.NotFound, "no witness")
		r.advance(time.Second)
		_, err = r.p.Cosign(t.Context(), "acme", cosigned())
		refused(t, err, cradle.Forbidden, "no cosignature by a witness")
		r.check()
	})
}

func (r *rig) otherKey() ed25519.PublicKey {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	return pub
}

// forge signs a checkpoint with the log's own key, as somebody who took it would.
func (r *rig) forge(h provider.Head) ([]byte, error) {
	key := provider.LogPrivate(r.p)
	origin, err := r.p.LogKey(h.Log)
	if err != nil {
		return nil, err
	}
	name, _, ok := bytes.Cut([]byte(origin), []byte("+"))
	if !ok {
		return nil, errors.New("the log's key has no name")
	}
	return ledger.SignCheckpoint(ledger.Checkpoint{Origin: string(name), Size: h.Size, Root: h.Root}, key)
}

func TestPublish(t *testing.T) {
	r := newRig(t, t.TempDir()+"/p.db")
	for _, want := range []bool{true, true, false} {
		if err := r.p.Publish(t.Context(), "acme", want); err != nil {
			t.Fatal(err)
		}
		if h, err := r.p.LogHead(t.Context(), "acme"); err != nil || h.Public != want {
			t.Errorf("public %v, %v; want %v", h.Public, err, want)
		}
	}
	if n := bytes.Count(r.export(), []byte(`audit publish`)); n != 2 {
		t.Errorf("%d leaves say so, want 2", n)
	}
}
