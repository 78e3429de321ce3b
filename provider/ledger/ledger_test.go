package ledger_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

func TestLeafIsDeterministic(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6789, time.FixedZone("x", 3600))
	a := must(ledger.NewLeaf("acme", ledger.KindOrder, at, map[string]any{"z": 1, "a": "<é>", "m": map[string]any{"y": nil, "x": []string{"b", "a"}}}))
	b := must(ledger.NewLeaf("acme", ledger.KindOrder, at.UTC(), struct {
		Z int    `json:"z"`
		M any    `json:"m"`
		A string `json:"a"`
	}{1, struct {
		Y *int     `json:"y"`
		X []string `json:"x"`
	}{nil, []string{"b", "a"}}, "<é>"}))
	if !bytes.Equal(a.Data, b.Data) || a.Hash() != b.Hash() {
		t.Errorf("got %s and %s, want equal bytes", a.Data, b.Data)
	}
	want := `{"log":"acme","kind":"order","time":"2026-01-02T02:04:05.000006Z","body":{"a":"\u003cé\u003e","m":{"x":["b","a"],"y":null},"z":1}}`
	if string(a.Data) != want {
		t.Errorf("got %s\nwant %s", a.Data, want)
	}
	l, _, err := ledger.ParseLeaf(a.Data)
	if err != nil || l.Log != a.Log || l.Kind != a.Kind || !l.Time.Equal(a.Time) {
		t.Errorf("parsed: got %+v, %v, want %+v", l, err, a)
	}
}

// id is a named string, as the vocabulary has them; shouted is one with a form of its own.
type (
	id      string
	shouted string
)

func (s shouted) MarshalText() ([]byte, error) { return []byte(strings.ToUpper(string(s))), nil }

// FuzzNewLeaf: a leaf is what encoding/json makes of it, and is read again.
func FuzzNewLeaf(f *testing.F) {
	f.Add("acme", "device", "d-1", "serial", int64(1767323045000000), int64(7), true, byte(0))
	f.Add("a\"b", "\x00<&>", "\u2028\xff", "é", int64(-1), int64(-1<<63), false, byte(0xff))
	f.Fuzz(func(t *testing.T, log, name, value, other string, micros, n int64, yes bool, which byte) {
		body := map[string]any{name: value, other: id(value), "n": n, "yes": yes, "none": nil, "list": []string{value, other}, "ids": []id{id(value)},
			"map": map[string]string{value: name, other: value}, "deep": map[string]any{name: []any{n, value}}, "at": time.UnixMicro(micros).UTC(),
			"loud": shouted(value), "size": int(n), "number": json.Number("1.50"), "no list": []string(nil), "no map": map[string]string(nil), "empty": []string{}}
		for i, k := range slices.Sorted(maps.Keys(body)) {
			if which>>(i%8)&1 != 0 {
				delete(body, k)
			}
		}
		at := time.UnixMicro(micros).UTC()
		want, err := json.Marshal(struct {
			Log  string         `json:"log"`
			Kind ledger.Kind    `json:"kind"`
			Time time.Time      `json:"time"`
			Body map[string]any `json:"body"`
		}{log, ledger.KindIssuance, at, body})
		l, lerr := ledger.NewLeaf(log, ledger.KindIssuance, at, body)
		if err != nil || len(want) > ledger.MaxLeaf {
			if lerr == nil {
				t.Fatalf("%s was taken, encoding/json says %v", l.Data, err)
			}
			return
		}
		if lerr != nil || !bytes.Equal(l.Data, want) {
			t.Fatalf("got %s, %v\nwant %s", l.Data, lerr, want)
		}
	})
}

func BenchmarkNewLeaf(b *testing.B) {
	digest := strings.Repeat("0a", 32)
	b.ReportAllocs()
	for b.Loop() {
		must(ledger.NewLeaf("acme", ledger.KindIssuance, start, map[string]any{"certificate": digest, "serial": cradle.CertSerial("5f0102030405060708090a0b0c0d0e0f"),
			"device": cradle.DeviceID("acme-sn0001"), "profile": cradle.LDevID, "order": cradle.OrderID("order-1"), "unit": "SN0001", "ek": digest, "intent": "abcdefghijklmnopqrstuvwx",
			"authenticated_by": digest, "csr": digest, "tier": cradle.Simulator, "maker": cradle.MakerID("soft"), "proved": true, "replaced": []string(nil),
			"challenge": digest, "lineage": "ldevid"}))
	}
}

func TestLeafRefuses(t *testing.T) {
	if _, err := ledger.NewLeaf("a", ledger.KindRefusal, start, map[string]any{"x": strings.Repeat("y", ledger.MaxLeaf)}); cradle.KindOf(err) != cradle.TooLarge {
		t.Errorf("got %v, want TooLarge", err)
	}
	for _, body := range []any{nil, 1, "x", []int{1}} {
		if _, err := ledger.NewLeaf("a", ledger.KindRefusal, start, body); err == nil {
			t.Errorf("body %v was taken", body)
		}
	}
	good := string(must(ledger.NewLeaf("a", ledger.KindRefusal, start, map[string]any{"device": "d", "state": "x"})).Data)
	for _, bad := range []string{"", "null", good + "\n", good[1:], strings.Replace(good, ":", ": ", 1), strings.Replace(good, `"log"`, `"Log"`, 1),
		strings.Replace(good, "Z", "+00:00", 1), strings.Replace(good, `"device":"d","state":"x"`, `"state":"x","device":"d"`, 1),
		strings.Replace(good, `"d"`, `7`, 1), strings.Replace(good, `{"device":"d","state":"x"}`, `null`, 1)} {
		if _, _, err := ledger.ParseLeaf([]byte(bad)); cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("%s: got %v, want Invalid", bad, err)
		}
	}
}

// TestVectors: roots of the test tree of certificate-transparency, also RFC 6962's reference implementation.
func TestVectors(t *testing.T) {
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	var f ledger.Frontier
	for i, want := range roots {
		if got := f.Root(); hex.EncodeToString(got[:]) != want {
			t.Errorf("size %d: got root %x, want %s", i, got, want)
		}
		if i < len(leaves) {
			f.Append(ledger.Leaf{Data: must(hex.DecodeString(leaves[i]))}.Hash())
		}
	}
}

func TestFrontierAgreesWithTree(t *testing.T) {
	var f ledger.Frontier
	var tree ledger.Tree
	const n = 700
	points := map[int64]ledger.Checkpoint{}
	var hashes []ledger.Hash
	for i := range n {
		// The frontier lives in a row between two leaves.
		blob := must(f.MarshalBinary())
		f = ledger.Frontier{}
		if err := f.UnmarshalBinary(blob); err != nil {
			t.Fatal(err)
		}
		h := ledger.Leaf{Data: fmt.Append(nil, i)}.Hash()
		f.Append(h)
		hashes = append(hashes, h)
		if err := tree.Append(h); err != nil {
			t.Fatal(err)
		}
		if want := must(tree.Root(tree.Size())); f.Size() != tree.Size() || f.Root() != want {
			t.Fatalf("size %d: got %v, want %v", f.Size(), f.Root(), want)
		}
		points[f.Size()] = ledger.Checkpoint{Origin: origin, Size: f.Size(), Root: f.Root()}
	}
	for size := int64(1); size <= n; size += 13 {
		c := points[size]
		for i := int64(0); i < size; i += 7 {
			p := must(tree.Inclusion(i, size))
			if err := ledger.CheckInclusion(p, hashes[i], i, c); err != nil {
				t.Fatalf("leaf %d in %d: %v", i, size, err)
			}
			if err := ledger.CheckInclusion(p, hashes[(i+1)%n], i, c); err == nil {
				t.Fatalf("leaf %d in %d: another leaf passes", i, size)
			}
		}
		for old := int64(1); old <= size; old += 11 {
			p := must(tree.Consistency(old, size))
			if err := ledger.CheckConsistency(p, points[old], c); err != nil {
				t.Fatalf("%d in %d: %v", old, size, err)
			}
			forged := points[old]
			forged.Root[0] ^= 1
			if err := ledger.CheckConsistency(p, forged, c); err == nil {
				t.Fatalf("%d in %d: another root passes", old, size)
			}
		}
	}
	for _, bad := range [][]byte{{1}, make([]byte, 40), append(make([]byte, 7), 3), bytes.Repeat([]byte{0xff}, 8)} {
		if err := new(ledger.Frontier).UnmarshalBinary(bad); err == nil {
			t.Errorf("frontier %x was taken", bad)
		}
	}
}

func TestTiles(t *testing.T) {
	const n = 2*ledger.TileWidth*ledger.TileWidth + 300
	var tiler ledger.Tiler
	var tree ledger.Tree
	tiles := map[string]ledger.Tile{}
	for i := range n {
		h := ledger.Hash(sha256.Sum256(fmt.Append(nil, i)))
		if err := tree.Append(h); err != nil {
			t.Fatal(err)
		}
		err := tiler.Add(h, func(x ledger.Tile) error {
			if _, there := tiles[x.Path()]; there {
				t.Errorf("tile %s twice", x.Path())
			}
			tiles[x.Path()] = x
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(tiles) != n/ledger.TileWidth+2 {
		t.Errorf("got %d tiles, want %d", len(tiles), n/ledger.TileWidth+2)
	}
	for _, want := range tlog.NewTiles(8, 0, n) {
		if want.W != ledger.TileWidth {
			continue
		}
		got, ok := tiles[strings.Replace(want.Path(), "tile/8/", "tile/", 1)]
		data := must(tlog.ReadTileData(want, &tree))
		var joined []byte
		for _, h := range got.Hashes {
			joined = append(joined, h[:]...)
		}
		if !ok || !bytes.Equal(joined, data) {
			t.Errorf("tile %s is wrong or missing", want.Path())
		}
	}
	for path := range map[string]bool{"tile/0/000": true, "tile/0/x000/x001/234": false, "tile/1/001": true} {
		if _, ok := tiles[path]; ok != (path != "tile/0/x000/x001/234") {
			t.Errorf("tile %s: got %v", path, ok)
		}
	}
}

func TestCheckpoint(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	vkey := must(ledger.VerifierKey(origin, key.Public().(ed25519.PublicKey)))
	for _, c := range []ledger.Checkpoint{{Origin: origin}, {Origin: origin, Size: 7, Root: ledger.Hash{1, 2}}, {Origin: origin, Size: 9, Previous: 7}} {
		msg := must(ledger.SignCheckpoint(c, key))
		got, err := ledger.OpenCheckpoint(msg, vkey)
		if err != nil || got != c {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
		for i := range msg {
			bad := bytes.Clone(msg)
			bad[i] ^= 1
			if got, err := ledger.OpenCheckpoint(bad, vkey); err == nil && got != c {
				t.Errorf("byte %d changed: got %+v", i, got)
			} else if err != nil && cradle.KindOf(err) != cradle.Invalid {
				t.Errorf("byte %d changed: got %v, want Invalid", i, err)
			}
		}
	}
	other := must(ledger.VerifierKey("other/log", key.Public().(ed25519.PublicKey)))
	if _, err := ledger.OpenCheckpoint(must(ledger.SignCheckpoint(ledger.Checkpoint{Origin: origin}, key)), other); err == nil {
		t.Error("a checkpoint passes for another log")
	}
	// The right key under a text that speaks of another log.
	v := must(note.NewVerifier(vkey))
	signer := must(note.NewSigner(fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", origin, v.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{1}, key.Seed()...)))))
	msg := must(note.Sign(&note.Note{Text: ledger.Checkpoint{Origin: "other/log"}.Text()}, signer))
	if _, err := ledger.OpenCheckpoint(msg, vkey); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("a checkpoint of another log by the same key: got %v, want Invalid", err)
	}
	if _, err := ledger.SignCheckpoint(ledger.Checkpoint{Origin: "with space"}, key); err == nil {
		t.Error("an origin with a space was signed")
	}
	// Golden: the text is what C2SP tlog-checkpoint says.
	text := "localhost:8443/local/acme\n9\n" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" + "\nprevious 7\n"
	if got := (ledger.Checkpoint{Origin: origin, Size: 9, Previous: 7}).Text(); got != text {
		t.Errorf("got %q, want %q", got, text)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	f.Add(ledger.Checkpoint{Origin: origin, Size: 9, Previous: 7}.Text())
	f.Add(ledger.Checkpoint{Origin: "x"}.Text())
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ledger.ParseCheckpoint(text)
		if err == nil && c.Text() != text {
			t.Errorf("%q parses, and is written %q", text, c.Text())
		}
		if err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("got %v, want Invalid", err)
		}
	})
}

func FuzzOpenCheckpoint(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	vkey := must(ledger.VerifierKey(origin, key.Public().(ed25519.PublicKey)))
	signed := ledger.Checkpoint{Origin: origin, Size: 9, Previous: 7}
	f.Add(must(ledger.SignCheckpoint(signed, key)), vkey)
	f.Fuzz(func(t *testing.T, msg []byte, k string) {
		if c, err := ledger.OpenCheckpoint(msg, k); err == nil && k == vkey && c != signed {
			t.Errorf("opened %+v, which was never signed", c)
		} else if err != nil && cradle.KindOf(err) != cradle.Invalid {
			t.Errorf("got %v, want Invalid", err)
		}
	})
}

func FuzzParseLeaf(f *testing.F) {
	f.Add(must(ledger.NewLeaf("acme", ledger.KindIssuance, start, map[string]any{"device": "d", "n": 1.5})).Data)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, _, err := ledger.ParseLeaf(data)
		if err != nil {
			if cradle.KindOf(err) != cradle.Invalid {
				t.Errorf("got %v, want Invalid", err)
			}
			return
		}
		var e struct{ Body json.RawMessage }
		if err := json.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		if again, err := ledger.NewLeaf(l.Log, l.Kind, l.Time, e.Body); err != nil || !bytes.Equal(again.Data, data) {
			t.Errorf("%q parses, and is written %q, %v", data, again.Data, err)
		}
		if l.Time.Location() != time.UTC {
			t.Errorf("time in %v", l.Time.Location())
		}
	})
}
