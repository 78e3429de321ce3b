package status

import (
	"bytes"
	"crypto"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle/provider"
)

// issuers finds authorities by what requests say of them.
type issuers struct {
	mu     sync.Mutex
	read   time.Time
	byName map[string]provider.StatusIssuer   // provider.StatusName
	byHash map[string][]provider.StatusIssuer // hash algorithm, name hash, key hash; several of one name and key after a cross-certification
	known  map[string]bool                    // by ID
}

// reread is how often unknown names may have the list of authorities read again.
const reread = time.Second

func (x *issuers) named(src Source, name string, now time.Time) *provider.StatusIssuer {
	x.mu.Lock()
	defer x.mu.Unlock()
	a, ok := x.byName[name]
	if !ok {
		x.refresh(src, now)
		if a, ok = x.byName[name]; !ok {
			return nil
		}
	}
	return &a
}

func (x *issuers) of(src Source, id CertID, now time.Time) []provider.StatusIssuer {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := hashKey(id.Hash, id.NameHash, id.KeyHash)
	if found := x.byHash[key]; found != nil {
		return found
	}
	x.refresh(src, now)
	return x.byHash[key]
}

// refresh takes in authorities that were made since; the lock is held.
func (x *issuers) refresh(src Source, now time.Time) {
	if now.Sub(x.read).Abs() < reread {
		return
	}
	x.read = now
	if x.known == nil {
		x.known, x.byName, x.byHash = map[string]bool{}, map[string]provider.StatusIssuer{}, map[string][]provider.StatusIssuer{}
	}
	for _, a := range src.StatusIssuers() {
		bits, err := publicKeyBits(a.Cert)
		if x.known[a.ID] || err != nil {
			continue
		}
		x.known[a.ID], x.byName[provider.StatusName(a.ID)] = true, a
		for _, h := range certIDHashes {
			key := hashKey(h.hash, digest(h.hash, a.Cert.RawSubject), digest(h.hash, bits))
			list := append(slices.Clone(x.byHash[key]), a)
			slices.SortFunc(list, func(a, b provider.StatusIssuer) int { return strings.Compare(a.ID, b.ID) })
			x.byHash[key] = list
		}
	}
}

func hashKey(h crypto.Hash, name, key []byte) string {
	return string(append(append([]byte{byte(h)}, name...), key...))
}

func digest(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

// answers keeps answers that were signed, in two generations.
type answers struct {
	mu       sync.Mutex
	new, old map[string]kept
}

type kept struct {
	*signed
	standing
}

const generation = 4096 // answers, about 1 KB each

// get returns the answer for a certificate whose standing is the one that it speaks of, while it is young.
func (c *answers) get(f form, s *standing, now time.Time) *signed {
	key := string(rune(f)) + string(s.id.raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.new[key]
	if !ok {
		k, ok = c.old[key]
	}
	if !ok || !bytes.Equal(k.id.raw, s.id.raw) || !k.revoked.Equal(s.revoked) || k.code != s.code {
		return nil
	}
	if age := now.Sub(k.this); age < 0 || age > ocspRenew || !now.Before(k.next) {
		return nil
	}
	return k.signed
}

func (c *answers) put(f form, s *standing, a *signed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.new == nil || len(c.new) >= generation {
		c.new, c.old = map[string]kept{}, c.new
	}
	c.new[string(rune(f))+string(s.id.raw)] = kept{a, *s}
}
