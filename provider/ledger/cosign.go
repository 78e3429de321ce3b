package ledger

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/cradle-iot/cradle"
)

// algCosignature is the signature type of a timestamped Ed25519 cosignature (C2SP tlog-cosignature v1).
const algCosignature = 4

// MaxCosignatures bounds the witnesses of one checkpoint.
const MaxCosignatures = 16

// Cosignature says that a witness saw a checkpoint and found it consistent with those it saw before.
type Cosignature struct {
	Witness string    `json:"witness"` // name of its key
	Time    time.Time `json:"time"`
}

// witness verifies the cosignatures of one key (note.Verifier).
type witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }

func (w *witness) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at < 1<<62 && ed25519.Verify(w.key, cosigned(at, msg), sig[8:])
}

// cosigned is what a witness signs: a header with the time, then the note's text.
func cosigned(at uint64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text)
}

// WitnessKey is the text form of a witness's public key (C2SP signed-note "vkey" of type 4).
func WitnessKey(name string, key ed25519.PublicKey) (string, error) {
	if name == "" || len(name) > 200 || strings.ContainsAny(name, "+ \t\r\n") || !printable(name) {
		return "", cradle.Errorf(cradle.Invalid, "witness name %q: use a name like witness.example.com/w1, without spaces and '+'", name)
	}
	typed := append([]byte{algCosignature}, key...)
	return fmt.Sprintf("%s+%08x+%s", name, keyHash(name, typed), base64.StdEncoding.EncodeToString(typed)), nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x21 || r > 0x7e })
}

// keyHash is the key id of C2SP signed-note.
func keyHash(name string, typed []byte) uint32 {
	h := sha256.Sum256(append([]byte(name+"\n"), typed...))
	return binary.BigEndian.Uint32(h[:])
}

// parseWitness reads what WitnessKey makes, and nothing else.
func parseWitness(vkey string) (*witness, error) {
	bad := cradle.Errorf(cradle.Invalid, "not a witness's key: want NAME+HASH+KEY with an Ed25519 cosignature key (type 4)").
		WithHint("cradle audit witness init makes one; a witness publishes its own")
	part := strings.SplitN(strings.TrimSpace(vkey), "+", 3)
	if len(part) != 3 {
		return nil, bad
	}
	typed, err := base64.StdEncoding.DecodeString(part[2])
	if err != nil || len(typed) != 1+ed25519.PublicKeySize || typed[0] != algCosignature {
		return nil, bad
	}
	again, err := WitnessKey(part[0], typed[1:])
	if err != nil {
		return nil, err
	}
	if again != strings.TrimSpace(vkey) {
		return nil, bad
	}
	h, err := hex.DecodeString(part[1])
	if err != nil {
		return nil, bad
	}
	return &witness{part[0], binary.BigEndian.Uint32(h), typed[1:]}, nil
}

// CheckWitnessKey refuses what is not a witness's key and returns its name.
func CheckWitnessKey(vkey string) (name string, err error) {
	w, err := parseWitness(vkey)
	if err != nil {
		return "", err
	}
	return w.name, nil
}

type cosigner struct {
	witness
	key ed25519.PrivateKey
	at  time.Time
}

func (c *cosigner) Sign(msg []byte) ([]byte, error) {
	at := uint64(c.at.Unix())
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(c.key, cosigned(at, msg))...), nil
}

// Cosign adds a witness's cosignature to a signed checkpoint. Whoever calls it has verified the checkpoint and that
// it contains the one that this witness cosigned before.
func Cosign(msg []byte, logKey, name string, key ed25519.PrivateKey, at time.Time) ([]byte, error) {
	vkey, err := WitnessKey(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	w, err := parseWitness(vkey)
	if err != nil {
		return nil, err
	}
	n, err := openNote(msg, logKey)
	if err != nil {
		return nil, err
	}
	return note.Sign(n, &cosigner{*w, key, at})
}

// Cosignatures returns those of the checkpoint's cosignatures that the given witnesses made. A signature by one of
// these keys that does not verify makes the whole checkpoint invalid.
func Cosignatures(msg []byte, logKey string, witnesses []string) ([]Cosignature, error) {
	n, err := openNote(msg, logKey, witnesses...)
	if err != nil {
		return nil, err
	}
	var out []Cosignature
	for _, s := range n.Sigs[1:] {
		out = append(out, Cosignature{s.Name, cosignedAt(s)})
	}
	return out, nil
}

// cosignedAt is the time in a cosignature that was verified.
func cosignedAt(s note.Signature) time.Time {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) < 12 {
		panic("internal error: a verified cosignature cannot be read")
	}
	return time.Unix(int64(binary.BigEndian.Uint64(raw[4:])), 0).UTC() // key hash, time, signature
}

// MergeCosignatures adds to a stored checkpoint the cosignatures by these witnesses that another copy of it
// carries, and says which were new. A witness counts once: its newest time stands. What else the copy carries is
// left out.
func MergeCosignatures(stored, copied []byte, logKey string, witnesses []string) (merged []byte, added []Cosignature, err error) {
	have, err := openNote(stored, logKey, witnesses...)
	if err != nil {
		return nil, nil, err
	}
	more, err := openNote(copied, logKey, witnesses...)
	if err != nil {
		return nil, nil, err
	}
	if have.Text != more.Text {
		return nil, nil, cradle.Errorf(cradle.Conflict, "the cosigned checkpoint is not the one that is stored at this size").
			WithHint("if the log's own signature on it is good, the log was forked: keep that file as evidence")
	}
	for _, s := range more.Sigs[1:] {
		i := slices.IndexFunc(have.Sigs, func(o note.Signature) bool { return o.Name == s.Name && o.Hash == s.Hash })
		switch {
		case i < 0 && len(have.Sigs)+len(have.UnverifiedSigs) > MaxCosignatures:
			return nil, nil, cradle.Errorf(cradle.TooLarge, "the checkpoint has %d cosignatures already", MaxCosignatures)
		case i < 0:
			have.Sigs = append(have.Sigs, s)
		case !cosignedAt(s).After(cosignedAt(have.Sigs[i])):
			continue
		default:
			have.Sigs[i] = s
		}
		added = append(added, Cosignature{s.Name, cosignedAt(s)})
	}
	merged, err = note.Sign(have)
	return merged, added, err
}

// openNote verifies the log's signature, which becomes the first of Sigs, and those of the given witnesses that are
// there, which follow it.
func openNote(msg []byte, logKey string, witnesses ...string) (*note.Note, error) {
	if len(msg) > maxCheckpoint {
		return nil, cradle.Errorf(cradle.Invalid, "a checkpoint of %d bytes", len(msg))
	}
	v, err := note.NewVerifier(strings.TrimSpace(logKey))
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "the log's key: %v", err)
	}
	known := []note.Verifier{v}
	for _, vkey := range witnesses {
		w, err := parseWitness(vkey)
		if err != nil {
			return nil, err
		}
		known = append(known, w)
	}
	n, err := note.Open(msg, note.VerifierList(known...))
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "checkpoint: %v", err)
	}
	own := slices.IndexFunc(n.Sigs, func(s note.Signature) bool { return s.Name == v.Name() && s.Hash == v.KeyHash() })
	if own < 0 {
		return nil, cradle.Errorf(cradle.Invalid, "checkpoint: the log's own signature is missing")
	}
	n.Sigs[0], n.Sigs[own] = n.Sigs[own], n.Sigs[0]
	return n, nil
}

const privateWitness = "PRIVATE+KEY+"

// EncodeWitness is the text form of a witness's private key (C2SP signed-note).
func EncodeWitness(name string, key ed25519.PrivateKey) (string, error) {
	if _, err := WitnessKey(name, key.Public().(ed25519.PublicKey)); err != nil {
		return "", err
	}
	typed := append([]byte{algCosignature}, key.Public().(ed25519.PublicKey)...)
	return fmt.Sprintf("%s%s+%08x+%s", privateWitness, name, keyHash(name, typed),
		base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, key.Seed()...))), nil
}

// DecodeWitness is the inverse of EncodeWitness. Its errors do not hold the text.
func DecodeWitness(text string) (name string, key ed25519.PrivateKey, err error) {
	bad := cradle.Errorf(cradle.Invalid, "not a witness's private key").WithHint("cradle audit witness init makes one")
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), privateWitness)
	part := strings.SplitN(rest, "+", 3)
	if !ok || len(part) != 3 {
		return "", nil, bad
	}
	typed, err := base64.StdEncoding.DecodeString(part[2])
	if err != nil || len(typed) != 1+ed25519.SeedSize || typed[0] != algCosignature {
		return "", nil, bad
	}
	key = ed25519.NewKeyFromSeed(typed[1:])
	if again, err := EncodeWitness(part[0], key); err != nil || again != strings.TrimSpace(text) {
		return "", nil, bad
	}
	return part[0], key, nil
}
