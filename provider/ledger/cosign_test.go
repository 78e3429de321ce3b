package ledger_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

type aWitness struct {
	name string
	key  ed25519.PrivateKey
}

func newWitness(name string) aWitness {
	_, key := must2(ed25519.GenerateKey(rand.Reader))
	return aWitness{name, key}
}

func (w aWitness) vkey() string {
	return must(ledger.WitnessKey(w.name, w.key.Public().(ed25519.PublicKey)))
}

// TestCosignatureVector: the published example of C2SP tlog-cosignature has this form: key hash, time, signature. The
// key behind it is not published, so the vector fixes the text that is signed with a key of ours.
func TestCosignatureVector(t *testing.T) {
	logKey := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	vkey := must(ledger.VerifierKey("example.com/log", logKey.Public().(ed25519.PublicKey)))
	c := ledger.Checkpoint{Origin: "example.com/log", Size: 7, Root: ledger.Hash{1, 2, 3}, Previous: 5}
	msg := must(ledger.Cosign(must(ledger.SignCheckpoint(c, logKey)), vkey, "witness.example.com/w1", key, time.Unix(1679315147, 0)))
	line := strings.Split(strings.TrimSpace(string(msg)), "\n")
	word := strings.Fields(line[len(line)-1])
	if word[0] != "—" || word[1] != "witness.example.com/w1" {
		t.Fatalf("got %s", msg)
	}
	raw := must(base64.StdEncoding.DecodeString(word[2]))
	signed := "cosignature/v1\ntime 1679315147\nexample.com/log\n7\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\nprevious 5\n"
	if !bytes.Equal(raw[4:12], []byte{0, 0, 0, 0, 0x64, 0x18, 0x50, 0xcb}) || !ed25519.Verify(key.Public().(ed25519.PublicKey), []byte(signed), raw[12:]) {
		t.Errorf("cosignature %x is not over %q", raw, signed)
	}
}

func TestMergeCosignatures(t *testing.T) {
	w := newWorld(t)
	_, notes := w.checkpoints()
	msg, other := notes[1], notes[2]
	w1, w2, stranger := newWitness("witness.example.com/w1"), newWitness("witness.example.com/w2"), newWitness("witness.example.com/w3")
	known := []string{w1.vkey(), w2.vkey()}
	cosign := func(msg []byte, by aWitness, at time.Time) []byte {
		return must(ledger.Cosign(msg, w.vkey(), by.name, by.key, at))
	}
	merged, added, err := ledger.MergeCosignatures(msg, cosign(cosign(msg, w1, start), stranger, start), w.vkey(), known)
	if err != nil || len(added) != 1 || added[0] != (ledger.Cosignature{Witness: w1.name, Time: start}) || bytes.Contains(merged, []byte(stranger.name)) {
		t.Fatalf("got %v, %v\n%s", added, err, merged)
	}
	if merged, added, err = ledger.MergeCosignatures(merged, cosign(msg, w2, start), w.vkey(), known); err != nil || len(added) != 1 {
		t.Fatalf("got %v, %v", added, err)
	}
	if again, added, err := ledger.MergeCosignatures(merged, cosign(msg, w1, start.Add(-time.Hour)), w.vkey(), known); err != nil || len(added) != 0 || !bytes.Equal(again, merged) {
		t.Errorf("an older cosignature: %v, %v", added, err)
	}
	if merged, added, err = ledger.MergeCosignatures(merged, cosign(msg, w1, start.Add(time.Hour)), w.vkey(), known); err != nil || len(added) != 1 {
		t.Errorf("a newer cosignature: %v, %v", added, err)
	}
	found, err := ledger.Cosignatures(merged, w.vkey(), known)
	if err != nil || len(found) != 2 {
		t.Errorf("got %v, %v", found, err)
	}
	if _, err := ledger.OpenCheckpoint(merged, w.vkey()); err != nil {
		t.Errorf("a cosigned checkpoint: %v", err)
	}
	if kept, _, err := ledger.MergeCosignatures(merged, cosign(msg, w2, start.Add(time.Hour)), w.vkey(), known[1:]); err != nil || !bytes.Contains(kept, []byte(w1.name)) {
		t.Errorf("the cosignature of a former witness is gone: %v\n%s", err, kept)
	}

	for name, c := range map[string]struct {
		msg  []byte
		kind cradle.Kind
	}{
		"of another size":              {cosign(other, w1, start), cradle.Conflict},
		"time changed":                 {retime(cosign(msg, w1, start), w1.name), cradle.Invalid},
		"signed by another key":        {bytes.ReplaceAll(cosign(msg, aWitness{"x", stranger.key}, start), []byte("— x "), []byte("— y ")), 0},
		"without the log's signature":  {dropLine(cosign(msg, w1, start), origin+" "), cradle.Invalid},
		"the log's signature is wrong": {bytes.Replace(cosign(msg, w1, start), []byte("\n\n— "+origin), []byte("\nx y\n\n— "+origin), 1), cradle.Invalid},
		"empty":                        {nil, cradle.Invalid},
		"too large":                    {bytes.Repeat([]byte("a"), 20<<10), cradle.Invalid},
	} {
		got, added, err := ledger.MergeCosignatures(msg, c.msg, w.vkey(), known)
		if c.kind == 0 && err == nil && len(added) == 0 && bytes.Equal(got, msg) {
			continue // a stranger's: left out
		}
		if err == nil || cradle.KindOf(err) != c.kind {
			t.Errorf("%s: %v, %v", name, added, err)
		}
	}
}

// retime moves the time of a cosignature by one second.
func retime(msg []byte, name string) []byte {
	lines := strings.Split(string(msg), "\n")
	for i, l := range lines {
		if b64, ok := strings.CutPrefix(l, "— "+name+" "); ok {
			raw := must(base64.StdEncoding.DecodeString(b64))
			raw[11]++
			lines[i] = "— " + name + " " + base64.StdEncoding.EncodeToString(raw)
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

func dropLine(msg []byte, name string) []byte {
	var keep []string
	for l := range strings.Lines(string(msg)) {
		if !strings.HasPrefix(l, "— "+name) {
			keep = append(keep, l)
		}
	}
	return []byte(strings.Join(keep, ""))
}

func TestWitnessKeyRefused(t *testing.T) {
	good := newWitness("w.example.com").vkey()
	if name, err := ledger.CheckWitnessKey(good + "\n"); err != nil || name != "w.example.com" {
		t.Errorf("got %q, %v", name, err)
	}
	part := strings.SplitN(good, "+", 3)
	for name, key := range map[string]string{
		"empty":          "",
		"no key":         "w.example.com+01020304",
		"a log's key":    newWorld(t).vkey(),
		"another name":   "v.example.com+" + part[1] + "+" + part[2],
		"another hash":   part[0] + "+00000000+" + part[2],
		"upper-case hex": part[0] + "+" + strings.ToUpper(part[1]) + "G+" + part[2],
		"space in name":  "w x+" + part[1] + "+" + part[2],
		"cut":            good[:len(good)-4],
	} {
		if _, err := ledger.CheckWitnessKey(key); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCosignatures: whatever the text, a cosignature counts only when one of the witnesses' keys made it over the very
// checkpoint, and merging never loses the log's signature.
func FuzzCosignatures(f *testing.F) {
	logKey := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	vkey := must(ledger.VerifierKey("log", logKey.Public().(ed25519.PublicKey)))
	w := must(ledger.WitnessKey("w", key.Public().(ed25519.PublicKey)))
	stored := must(ledger.SignCheckpoint(ledger.Checkpoint{Origin: "log", Size: 7, Root: ledger.Hash{1}}, logKey))
	good := must(ledger.Cosign(stored, vkey, "w", key, start))
	f.Add(good, w)
	f.Add(stored, w)
	f.Add(retime(good, "w"), vkey)
	f.Fuzz(func(t *testing.T, copied []byte, extra string) {
		if name, err := ledger.CheckWitnessKey(extra); err == nil && (name == "" || !strings.HasPrefix(strings.TrimSpace(extra), name+"+")) {
			t.Errorf("key %q has the name %q", extra, name)
		}
		merged, added, err := ledger.MergeCosignatures(stored, copied, vkey, []string{w})
		if err != nil {
			if cradle.KindOf(err) == cradle.Internal {
				t.Errorf("%q: %v", copied, err)
			}
			return
		}
		if _, err := ledger.OpenCheckpoint(merged, vkey); err != nil {
			t.Errorf("%q merged into %q: %v", copied, merged, err)
		}
		if len(added) > 0 && !bytes.Equal(merged, good) {
			t.Errorf("%q counted as a cosignature: %q", copied, merged)
		}
	})
}

// TestWitnessDemanded: an auditor who names a witness wants a young cosignature by its key.
func TestWitnessDemanded(t *testing.T) {
	w := newWorld(t)
	w1, w2 := newWitness("w1"), newWitness("w2")
	at := w.now()
	w.cosign = func(size int64, note []byte) []byte {
		if size == 2*every {
			return must(ledger.Cosign(note, w.vkey(), w1.name, w1.key, at))
		}
		return note
	}
	b := w.export()
	found, sum := verify(t, b, ledger.Options{Key: w.vkey(), Witnesses: []string{w1.vkey()}})
	if len(found) > 0 || len(sum.Witnessed) != 1 || sum.Witnessed[0].Size != 2*every || sum.Witnessed[0].Witness != "w1" {
		t.Errorf("got %v, %+v", found, sum.Witnessed)
	}
	found, _ = verify(t, b, ledger.Options{Key: w.vkey(), Witnesses: []string{w1.vkey(), w2.vkey()}})
	want(t, found, ledger.WitnessMissing, "witness w2")
	found, _ = verify(t, b, ledger.Options{Key: w.vkey(), Witnesses: []string{w1.vkey()}, WitnessAge: time.Minute})
	want(t, found, ledger.WitnessMissing, "witness w1")
	imposter := newWitness("w1")
	found, _ = verify(t, b, ledger.Options{Key: w.vkey(), Witnesses: []string{imposter.vkey()}})
	want(t, found, ledger.WitnessMissing, "witness w1")
	f := parse(t, b)
	f.get("checkpoint", 1)["note"] = string(retime([]byte(f.get("checkpoint", 1)["note"].(string)), "w1"))
	found, _ = verify(t, f.bytes(), ledger.Options{Key: w.vkey(), Witnesses: []string{w1.vkey()}})
	want(t, found, ledger.CheckpointChanged, "checkpoint 50")
	if _, _, err := ledger.Verify(bytes.NewReader(b), ledger.Options{Witnesses: []string{"w1"}}); cradle.KindOf(err) != cradle.Invalid {
		t.Errorf("a bad witness key: %v", err)
	}
}

// TestNewest: the checkpoint to be kept of an export.
func TestNewest(t *testing.T) {
	w := newWorld(t)
	_, notes := w.checkpoints()
	b := w.export()
	note, err := ledger.Newest(bytes.NewReader(b))
	if err != nil || !bytes.Equal(note, notes[len(notes)-1]) {
		t.Errorf("got %q, %v", note, err)
	}
	for name, in := range map[string][]byte{"empty": nil, "text": []byte("hello\n"), "cut before it": b[:1000]} {
		if _, err := ledger.Newest(bytes.NewReader(in)); cradle.KindOf(err) != cradle.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWitnessPrivate(t *testing.T) {
	w := newWitness("w.example.com/1")
	text := must(ledger.EncodeWitness(w.name, w.key))
	if name, key, err := ledger.DecodeWitness(text + "\n"); err != nil || name != w.name || !key.Equal(w.key) {
		t.Errorf("got %q, %v", name, err)
	}
	for name, s := range map[string]string{"empty": "", "public": w.vkey(), "another name": strings.Replace(text, "w.example", "v.example", 1), "cut": text[:len(text)-4]} {
		if _, _, err := ledger.DecodeWitness(s); err == nil || len(s) > 60 && strings.Contains(err.Error(), s[len(s)-20:]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
