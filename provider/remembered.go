package provider

import (
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
)

// remembered are the records of certificates that authenticated a request, or were issued, a moment ago: a device
// asks several times in a row, and its next act begins with the certificate that it just got. What a device is (its
// TPM, order, tier) never changes. How it and its certificate stand may: so a nonce, which gives no right, is given by
// a record of at most recentAge, and an enrolment that was judged by a remembered record says so in its intent, whose
// transaction looks at the standing again (Intent.Rests). What this process changes in anybody's standing empties the memory.
type remembered struct {
	mu sync.Mutex
	m  map[string]recentCredential
}

type recentCredential struct {
	Credential
	at      time.Time
	changes uint64 // feedSignal.changes before it was read or issued
}

const (
	recentAge     = 2 * time.Second
	rememberedAge = 5 * time.Minute
	maxRemembered = 4096
)

func (r *remembered) put(c Credential, at time.Time, changes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil || len(r.m) >= maxRemembered {
		r.m = map[string]recentCredential{}
	}
	r.m[c.Cert.Digest] = recentCredential{c, at, changes}
}

func (r *remembered) get(digest string, age time.Duration, now time.Time, changes uint64) (*Credential, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.m[digest]
	if !ok || c.changes != changes || now.Before(c.at) || now.Sub(c.at) > age {
		return nil, false
	}
	return &c.Credential, true
}

func (r *remembered) forget(digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, digest)
}

// recall finds a remembered record of at most that age.
func (p *Provider) recall(digest string, age time.Duration) (*Credential, bool) {
	return p.remembered.get(digest, age, p.now(), p.feed.changes.Load())
}

// rememberable: a record in good standing. That of a station is remembered by the store.
func (c *Credential) rememberable() bool {
	return c.Cert.Profile != StationProfile && !c.Quarantined && c.Cert.Revoked.IsZero() && !c.Device.State.Blocked() &&
		(c.Cert.Slot == Current || c.Cert.Slot == Next)
}

// Rests is the standing by which a request was judged from a remembered record, for the intent's transaction.
type Rests struct {
	Serial  cradle.CertSerial // of the certificate Intent.AuthCert
	Slot    Slot              // its slot
	Lineage string            // its lineage, not in quarantine
}

// ErrStale is BeginIssue's when the standing is not what Intent.Rests says.
var ErrStale = cradle.Errorf(cradle.Conflict, "the standing of the client certificate changed meanwhile").WithHint("try again")

// memory says how a request may be judged: from remembered records, or (nil) from the store alone.
type memory struct {
	used bool // a remembered record was taken
}

// digestOf names the client's certificate; empty: it has none.
func (c *Client) digestOf() string {
	if c.Peer == nil {
		return ""
	}
	return ca.Digest(c.Peer.Raw)
}
