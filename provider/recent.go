package provider

import (
	"sync"
	"time"
)

// issuedJustNow remembers the credentials of certificates that this process issued a moment ago: a device's next act
// begins with a nonce request by the certificate that it got. A nonce gives no right; the enrolment that spends it
// reads the record. What this process changed in anybody's standing since empties it; other replicas' changes are seen
// after recentAge.
type issuedJustNow struct {
	mu sync.Mutex
	m  map[string]recentCredential
}

type recentCredential struct {
	Credential
	at      time.Time
	changes uint64 // feedSignal.changes before it was issued
}

const (
	recentAge = 2 * time.Second
	maxRecent = 4096
)

func (r *issuedJustNow) put(c Credential, at time.Time, changes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil || len(r.m) >= maxRecent {
		r.m = map[string]recentCredential{}
	}
	r.m[c.Cert.Digest] = recentCredential{c, at, changes}
}

func (r *issuedJustNow) get(digest string, now time.Time, changes uint64) (*Credential, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.m[digest]
	if !ok || c.changes != changes || now.Before(c.at) || now.Sub(c.at) > recentAge {
		return nil, false
	}
	return &c.Credential, true
}
