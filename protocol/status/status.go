// Package status is the signed status feed (DESIGN §4.8): how the provider tells EST, the
// provisioning service and hubs, within seconds, which devices may not work any more.
//
// The feed is a sequence of events numbered from 1 without gaps. A reader asks for what comes after
// the last number it knows and gets a Statement: the events, the newest number and the provider's time,
// signed by the feed key (Ed25519), whose public half the reader has by configuration. A statement
// without events is the heartbeat. The signature covers the whole body, so nobody on the way can drop,
// add or reorder events, and a replayed statement shows by its number and time.
//
// A Follower that has not read a fresh statement for StaleAfter says so; its service then refuses new
// work rather than admit a device that may have been revoked.
package status

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/cradle-iot/cradle"
)

// Heartbeat is the longest silence of a feed.
const Heartbeat = time.Second

// StaleAfter is the age from which a follower's knowledge is too old to admit new work.
const StaleAfter = 15 * time.Second

// Limits of a statement.
const (
	MaxEvents = 1000
	MaxBody   = 1 << 20
)

// signContext separates these signatures from every other use of the key.
const signContext = "cradle-status-v1\n"

// Event says that a device's standing changed, or, with Certificate set, that one certificate of it may
// not be used any more (revoked, on hold, or a superseded one that showed up again), or, with Released, may
// be used again; State is then the device's as it is.
type Event struct {
	Seq     int64              `json:"seq"`
	Account cradle.AccountID   `json:"account"`
	Device  cradle.DeviceID    `json:"device"`
	State   cradle.DeviceState `json:"state"`
	Epoch   int64              `json:"epoch"`
	Reason  string             `json:"reason,omitempty"`
	At      time.Time          `json:"at"`

	Certificate string `json:"certificate,omitempty"` // SHA-256 of its DER, hexadecimal
	Released    bool   `json:"released,omitempty"`
}

// Statement is one answer of the feed.
type Statement struct {
	Time   time.Time `json:"time"`   // the provider's, when it was signed
	After  int64     `json:"after"`  // the number that was asked for
	Newest int64     `json:"newest"` // the feed's newest number
	Events []Event   `json:"events"` // After+1, After+2, ...; at most MaxEvents
}

// Envelope is a statement with its signature, as it travels.
type Envelope struct {
	Body      []byte `json:"body"` // JSON of a Statement
	Signature []byte `json:"signature"`
}

// Sign makes the envelope of a statement.
func Sign(s Statement, key ed25519.PrivateKey) (Envelope, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return Envelope{}, err
	}
	return Envelope{body, ed25519.Sign(key, append([]byte(signContext), body...))}, nil
}

// Verify opens an envelope: signature, limits, numbering, and that it answers the question `after`.
func Verify(e Envelope, key ed25519.PublicKey, after int64) (*Statement, error) {
	if len(e.Body) > MaxBody {
		return nil, cradle.Errorf(cradle.TooLarge, "status statement of %d bytes is over %d", len(e.Body), MaxBody)
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(signContext), e.Body...), e.Signature) {
		return nil, cradle.Errorf(cradle.Unauthorized, "status statement is not signed by the feed key")
	}
	var s Statement
	if err := json.Unmarshal(e.Body, &s); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "status statement: %v", err)
	}
	if s.After != after {
		return nil, cradle.Errorf(cradle.Invalid, "status statement answers %d, asked was %d", s.After, after)
	}
	if len(s.Events) > MaxEvents {
		return nil, cradle.Errorf(cradle.TooLarge, "status statement holds %d events, at most %d", len(s.Events), MaxEvents)
	}
	for i, ev := range s.Events {
		if ev.Seq != after+int64(i)+1 {
			return nil, cradle.Errorf(cradle.Invalid, "status statement: event %d stands where %d must", ev.Seq, after+int64(i)+1)
		}
	}
	if s.Newest < after+int64(len(s.Events)) || (len(s.Events) == 0 && s.Newest != after) {
		return nil, cradle.Errorf(cradle.Invalid, "status statement: newest is %d after %d with %d events", s.Newest, after, len(s.Events))
	}
	return &s, nil
}

// EncodeKey and DecodeKey carry the feed's public key in configuration.
func EncodeKey(k ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(k) }

// DecodeKey is the inverse of EncodeKey.
func DecodeKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, cradle.Errorf(cradle.Invalid, "status feed key: want base64 of %d bytes", ed25519.PublicKeySize)
	}
	return b, nil
}
