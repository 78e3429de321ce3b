package provisioning

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/peerauth"
)

const (
	groupRefresh = 5 * time.Second // how long another replica's change of groups may go unnoticed
	groupRecheck = time.Second     // how often a caller who is unknown may cause a look into the store
)

// issuer is what a signing certificate stands for.
type issuer struct {
	cert       *x509.Certificate
	thumbprint Thumbprint
	group      string
	account    cradle.AccountID
}

// roll is all groups at one moment, so that a registration parses only what the device sent. It does not
// change, but for the pool, which remembers signatures.
type roll struct {
	pool        *peerauth.Pool[*issuer]
	pinned      map[Thumbprint]*issuer
	groups      map[string]*Group
	keyed       []*Group // those with symmetric keys, in order of id
	units       []*Group // those of units, likewise
	individuals bool     // there are individual enrolments
}

// namesake finds a signing certificate by its subject.
func (r *roll) namesake(rawSubject []byte) *issuer {
	for _, i := range r.pinned {
		if bytes.Equal(i.cert.RawSubject, rawSubject) {
			return i
		}
	}
	return nil
}

// groupCache holds the newest roll. It may lag behind the store; what it admits is checked again in the
// registration's transaction.
type groupCache struct {
	pool *peerauth.Pool[*issuer]

	mu      sync.Mutex
	roll    *roll
	checked time.Time // when the store was read last
}

func (c *groupCache) now() *roll {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roll
}

// refreshGroups is reloadGroups where nobody can do anything about a failure: Run tries again soon.
func (s *Service) refreshGroups(ctx context.Context) {
	if err := s.reloadGroups(ctx, nil); err != nil && ctx.Err() == nil {
		s.log.Warn("enrolment groups are not refreshed", "err", err)
	}
}

// reloadGroups brings the cache in line with the store; it does nothing when the cache is not known any more (nil:
// always).
func (s *Service) reloadGroups(ctx context.Context, known *roll) error {
	s.groups.mu.Lock()
	defer s.groups.mu.Unlock()
	if known != nil && s.groups.roll != known {
		return nil
	}
	began := s.now()
	groups, err := s.store.Groups(ctx)
	if err != nil {
		return fmt.Errorf("reading enrolment groups: %w", err)
	}
	next := &roll{pool: s.groups.pool, pinned: map[Thumbprint]*issuer{}, groups: map[string]*Group{}}
	if next.individuals, err = s.store.AnyEnrollment(ctx); err != nil {
		return fmt.Errorf("reading individual enrolments: %w", err)
	}
	var before map[Thumbprint]*issuer
	if s.groups.roll != nil {
		before = s.groups.roll.pinned
	}
	for i := range groups {
		g := &groups[i]
		next.groups[g.ID] = g
		switch g.Kind {
		case SymmetricKey:
			next.keyed = append(next.keyed, g)
		case TPMUnits:
			next.units = append(next.units, g)
		case X509CA:
			if err := next.pin(g, before); err != nil {
				return err
			}
		}
	}
	for print, i := range before {
		if next.pinned[print] == nil {
			s.groups.pool.Remove(i.cert)
		}
	}
	s.groups.roll, s.groups.checked = next, began
	return nil
}

// pin puts a group's signing certificates in, those that were there before as they were.
func (r *roll) pin(g *Group, before map[Thumbprint]*issuer) error {
	for _, der := range [][]byte{g.Primary, g.Secondary} {
		if len(der) == 0 {
			continue
		}
		print := Thumbprint(sha256.Sum256(der))
		if old := before[print]; old != nil && old.group == g.ID {
			r.pinned[print] = old
			continue
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("signing certificate of group %q does not parse: %w", g.ID, err)
		}
		i := &issuer{cert: c, thumbprint: print, group: g.ID, account: organization(c)}
		if err := r.pool.Add(c, i); err != nil {
			return fmt.Errorf("signing certificate of group %q: %w", g.ID, err)
		}
		r.pinned[print] = i
	}
	return nil
}

// organization is the account that a signing certificate is of; empty when it names none, or several.
func organization(c *x509.Certificate) cradle.AccountID {
	if len(c.Subject.Organization) != 1 {
		return ""
	}
	return cradle.AccountID(c.Subject.Organization[0])
}

// recheckGroups reads the store again for the sake of a caller who is unknown, but not on every request; it
// reports whether it did.
func (s *Service) recheckGroups(ctx context.Context) (bool, error) {
	s.groups.mu.Lock()
	due, known := s.now().Sub(s.groups.checked) >= groupRecheck, s.groups.roll
	s.groups.mu.Unlock()
	if !due {
		return false, nil
	}
	return true, s.reloadGroups(ctx, known)
}
