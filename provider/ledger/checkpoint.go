package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/cradle-iot/cradle"
)

// Checkpoint is a log's signed state (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string // names the log; also the name of the signing key
	Size   int64
	Root   Hash
	// Previous is the size of the checkpoint before, 0 if none. It travels as an extension line
	// "previous N", so that a checkpoint that was removed is missed.
	Previous int64
}

const maxCheckpoint = 16 << 10

// Text is the note's text.
func (c Checkpoint) Text() string {
	s := fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
	if c.Previous > 0 {
		s += fmt.Sprintf("previous %d\n", c.Previous)
	}
	return s
}

// ParseCheckpoint reads the text of a checkpoint note. Unknown extension lines are refused: we sign none.
func ParseCheckpoint(text string) (Checkpoint, error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, cradle.Errorf(cradle.Invalid, "not a checkpoint: %s", what)
	}
	body, ended := strings.CutSuffix(text, "\n")
	lines := strings.Split(body, "\n")
	if !ended || len(lines) < 3 || len(lines) > 4 || lines[0] == "" {
		return bad("it has not the lines origin, size, root")
	}
	c := Checkpoint{Origin: lines[0]}
	var ok bool
	if c.Size, ok = decimal(lines[1]); !ok {
		return bad("size")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return bad("root")
	}
	c.Root = Hash(root)
	if len(lines) == 4 {
		n, found := strings.CutPrefix(lines[3], "previous ")
		if c.Previous, ok = decimal(n); !found || !ok || c.Previous <= 0 || c.Previous >= c.Size {
			return bad("extension")
		}
	}
	if c.Text() != text {
		return bad("not in canonical form")
	}
	return c, nil
}

func decimal(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}

// SignCheckpoint signs a checkpoint with the log's key.
func SignCheckpoint(c Checkpoint, key ed25519.PrivateKey) ([]byte, error) {
	v, err := verifier(c.Origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, signer{v, key})
	if err != nil {
		return nil, fmt.Errorf("signing the checkpoint of %s: %w", c.Origin, err)
	}
	return msg, nil
}

// OpenCheckpoint verifies a signed checkpoint. key is the verifier key in the form of VerifierKey;
// the checkpoint's origin must be its name.
func OpenCheckpoint(msg []byte, key string) (Checkpoint, error) {
	bad := func(format string, args ...any) (Checkpoint, error) {
		return Checkpoint{}, cradle.Errorf(cradle.Invalid, format, args...)
	}
	if len(msg) > maxCheckpoint {
		return bad("a checkpoint of %d bytes", len(msg))
	}
	v, err := note.NewVerifier(strings.TrimSpace(key))
	if err != nil {
		return bad("the log's key: %v", err)
	}
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return bad("checkpoint: %v", err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return bad("the checkpoint is of log %q, the key of %q", c.Origin, v.Name())
	}
	return c, nil
}

// OriginOf reads the origin of a signed checkpoint without verifying it.
func OriginOf(msg []byte) (string, error) {
	text, _, ok := bytes.Cut(msg, []byte("\n\n"))
	if !ok {
		return "", cradle.Errorf(cradle.Invalid, "not a checkpoint")
	}
	c, err := ParseCheckpoint(string(text) + "\n")
	return c.Origin, err
}

// VerifierKey is the text form of a log's public key (C2SP signed-note "vkey").
func VerifierKey(origin string, key ed25519.PublicKey) (string, error) {
	s, err := note.NewEd25519VerifierKey(origin, key)
	if err != nil {
		return "", fmt.Errorf("key of log %q: %w", origin, err)
	}
	return s, nil
}

func verifier(origin string, key ed25519.PublicKey) (note.Verifier, error) {
	s, err := VerifierKey(origin, key)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(s)
	if err != nil {
		return nil, fmt.Errorf("origin %q: %w", origin, err)
	}
	return v, nil
}

type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, bytes.Clone(msg)), nil }
