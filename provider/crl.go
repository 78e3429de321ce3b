package provider

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// CRLs of an authority are cut into shards. A certificate's shard is fixed when it is issued and stands in its distribution
// point. Each replica issues into a shard of its own until ShardSize certificates name it, then opens the next: no
// shard grows with the fleet, small accounts have one, and shards die out with their certificates.
const (
	ShardSize  = 4096
	crlLife    = 24 * time.Hour
	crlRenew   = 12 * time.Hour // before its end a CRL is made anew
	leaseLife  = 10 * time.Second
	shardGrace = 7 * 24 * time.Hour // a shard without living certificates is kept so long
)

// Shard is one shard of an authority's CRLs.
type Shard struct {
	Authority  string
	Number     int64
	URL        string
	Issued     int64     // certificates that name it, about; the last seconds before a crash are not counted
	LastExpiry time.Time // of them; ca.Forever until it is known
	Wanted     int64     // moves with each change of the set
	Made       int64     // the value of Wanted that the newest CRL shows
	CRLNumber  int64     // of the newest CRL, 0 for none
	ThisUpdate time.Time
	NextUpdate time.Time
}

// CertStatus is what is known of an issued certificate.
type CertStatus struct {
	Authority string
	Revoked   time.Time // zero: good
	Code      cradle.Reason
}

// Responder is the key that answers OCSP for an authority, and its certificate.
type Responder struct {
	Authority string
	Cert      []byte
	SealedKey []byte
}

// CRLs keeps what CRLs and OCSP answers are made of.
type CRLs interface {
	// OpenShard returns the shard of the authority that this replica may issue into: the one it had open, if it has room
	// and its URL is the wanted one, else a new one. Shards of the replica that do not fit are closed.
	OpenShard(ctx context.Context, authority, replica string, url func(shard int64) string) (Shard, error)
	// FillShards notes Issued and LastExpiry.
	FillShards(ctx context.Context, fill []Shard) error
	// AddShard stores a shard unless it exists.
	AddShard(ctx context.Context, s Shard) error
	Shard(ctx context.Context, authority string, shard int64) (Shard, error)            // NotFound
	ShardCRL(ctx context.Context, authority string, shard int64) (Shard, []byte, error) // with the newest CRL, nil for none
	// ShardURLs lists the shards of an authority that have certificates which end after that time.
	ShardURLs(ctx context.Context, authority string, alive time.Time) ([]string, error)
	// DueShards returns up to limit shards whose set has changed since their CRL, or whose CRL ends before renew while
	// certificates in them end after alive.
	DueShards(ctx context.Context, alive, renew time.Time, limit int) ([]Shard, error)
	// ShardEntries returns, as of one moment, a shard and the entries of its next CRL: certificates that had not expired
	// when the newest one was made, so that each is in one more CRL after its end (RFC 5280 §3.3).
	ShardEntries(ctx context.Context, authority string, shard int64) (Shard, []ca.Revoked, error)
	// SaveCRL stores a CRL if the newest one has the number previous, else Conflict.
	SaveCRL(ctx context.Context, s Shard, previous int64, der []byte) error
	// DropShards forgets closed shards whose CRL and certificates all ended before that time.
	DropShards(ctx context.Context, before time.Time) (int64, error)
	// Lease takes or keeps the lease of that name until the given time, unless somebody else holds it.
	Lease(ctx context.Context, name, holder string, now, until time.Time) (held bool, err error)
	CertStatus(ctx context.Context, serial cradle.CertSerial) (CertStatus, error) // NotFound: never issued
	Responder(ctx context.Context, authority string) (Responder, error)           // NotFound
	// SaveResponder replaces the responder whose certificate is previous (nil: there is none), else Conflict.
	SaveResponder(ctx context.Context, r Responder, previous []byte, leaf ledger.Leaf) error
	// WantResponder asks whoever has the issuing key for a new responder.
	WantResponder(ctx context.Context, authority string) error
	WantedResponders(ctx context.Context) ([]string, error)
}

// ShardOf returns the number of the CRL shard that a certificate's distribution point names (RFC 5280 §4.2.1.13), 0 for none.
func ShardOf(der []byte) int64 {
	n, _ := PointOf(der)
	return n
}

// PointOf is ShardOf with the URL.
func PointOf(der []byte) (shard int64, url string) {
	if !bytes.Contains(der, []byte(".crl")) { // spares the parsing of certificates that say nothing
		return 0, ""
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil || len(cert.CRLDistributionPoints) == 0 {
		return 0, ""
	}
	url = cert.CRLDistributionPoints[0]
	name, ok := strings.CutSuffix(path.Base(url), ".crl")
	n, err := strconv.ParseInt(name, 10, 64)
	if !ok || err != nil || n < 1 {
		return 0, ""
	}
	return n, url
}

// StatusName is how an authority is called in the URLs of the status service.
func StatusName(authority string) string { return authority[:min(16, len(authority))] }

func (p *Provider) shardURL(authority string, shard int64) string {
	return fmt.Sprintf("%s/crl/%s/%d.crl", p.statusURL, StatusName(authority), shard)
}

// points is what the certificates of an authority say of their standing. Without a status URL they say nothing.
func (p *Provider) points(authority string, kind AuthorityKind) *ca.Points {
	if p.statusURL == "" {
		return nil
	}
	out := &ca.Points{OCSP: p.statusURL + "/ocsp", CA: p.statusURL + "/ca/" + StatusName(authority) + ".cer"}
	if kind.issuesCAs() {
		out.CRL = func(time.Time) (string, error) { return p.shardURL(authority, 1), nil } // few; its row is made when it is asked for
	} else {
		out.CRL = func(notAfter time.Time) (string, error) { return p.shards.next(p, authority, notAfter) }
	}
	return out
}

// issuesCAs reports whether an authority of this kind signs CA certificates alone.
func (k AuthorityKind) issuesCAs() bool { return k == RootCA || k == OEMRootCA }

// openShards are the shards that this replica issues into.
type openShards struct {
	mu sync.Mutex
	m  map[string]*openShard
}

type openShard struct {
	mu sync.Mutex
	Shard
	noted   time.Time // LastExpiry that the store knows at least
	changed bool
}

// noteAhead is by how much certificates may outlast what the store knows of their shard.
const noteAhead = 24 * time.Hour

// shardTimeout bounds the one issuance in ShardSize that has to open a shard.
const shardTimeout = 10 * time.Second

func (o *openShards) of(authority string) *openShard {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[string]*openShard{}
	}
	s := o.m[authority]
	if s == nil {
		s = new(openShard)
		o.m[authority] = s
	}
	return s
}

// next puts one more certificate into the open shard of an authority and returns its URL.
func (o *openShards) next(p *Provider, authority string, notAfter time.Time) (string, error) {
	s := o.of(authority)
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), shardTimeout)
	defer cancel()
	if s.URL == "" || s.Issued >= ShardSize {
		if s.URL != "" { // so that it is not opened again
			if err := p.store.FillShards(ctx, []Shard{s.Shard}); err != nil {
				return "", err
			}
		}
		fresh, err := p.store.OpenShard(ctx, authority, p.replica, func(n int64) string { return p.shardURL(authority, n) })
		if err != nil {
			return "", err
		}
		if fresh.Issued == 0 && fresh.CRLNumber == 0 {
			fresh.LastExpiry = time.Time{} // all that will be in it comes through here
		}
		s.Shard, s.noted = fresh, fresh.LastExpiry
	}
	s.Issued++
	if notAfter.After(s.LastExpiry) {
		s.LastExpiry = notAfter
	}
	s.changed = true
	if notAfter.After(s.noted.Add(noteAhead)) { // the shard must not be taken for dead after a crash
		if err := p.store.FillShards(ctx, []Shard{s.Shard}); err != nil {
			return "", err
		}
		s.noted = notAfter
	}
	return s.URL, nil
}

// take returns what is to be noted of the open shards.
func (o *openShards) take() []Shard {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Shard
	for _, s := range o.m {
		s.mu.Lock()
		if s.changed {
			out, s.changed = append(out, s.Shard), false
		}
		s.mu.Unlock()
	}
	return out
}

// crlRound does the work on CRLs that has no request behind it. Every replica notes what it issued; the one that holds the lease
// makes CRLs. Losing the lease in the middle costs a CRL made twice, of which SaveCRL keeps one.
func (p *Provider) crlRound(ctx context.Context) error {
	if p.statusURL == "" || p.openAll() != nil {
		return nil
	}
	if fill := p.shards.take(); len(fill) > 0 {
		if err := p.store.FillShards(ctx, fill); err != nil {
			return fmt.Errorf("noting what CRL shards hold: %w", err)
		}
	}
	if p.apart { // the signer makes CRLs and responders
		return nil
	}
	wanted, err := p.store.WantedResponders(ctx)
	for _, authority := range wanted {
		if a := p.dir.Load().byID[authority]; a != nil && a.issuer.Key != nil {
			_, e := p.OCSPKey(ctx, authority)
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("OCSP responders: %w", err)
	}
	now := p.now()
	alive := now.Add(-noteAhead)
	due, err := p.store.DueShards(ctx, alive, now.Add(crlRenew), 1)
	if err != nil || len(due) == 0 {
		return err
	}
	if held, err := p.store.Lease(ctx, "crl", p.replica, now, now.Add(leaseLife)); err != nil || !held {
		return err
	}
	if due, err = p.store.DueShards(ctx, alive, now.Add(crlRenew), 64); err != nil {
		return err
	}
	for _, s := range due {
		if e := p.makeCRL(ctx, s.Authority, s.Number); e != nil && cradle.KindOf(e) != cradle.NotFound {
			err = errors.Join(err, fmt.Errorf("CRL shard %d of %s: %w", s.Number, s.Authority, e))
		}
	}
	return err
}

// makeCRL signs and stores the CRL that shows a shard as it is now. If the process dies before it is stored nobody
// has seen it, and its number is given again.
func (p *Provider) makeCRL(ctx context.Context, authority string, shard int64) error {
	if err := p.openAll(); err != nil { // it would forget revocations
		return err
	}
	a := p.dir.Load().byID[authority]
	if a == nil || a.issuer.Key == nil {
		return cradle.Errorf(cradle.NotFound, "the key of authority %s is not here", authority)
	}
	s, entries, err := p.store.ShardEntries(ctx, authority, shard)
	if err != nil {
		return err
	}
	now, previous := p.now().Truncate(time.Second), s.CRLNumber
	// The time as a number, so that a store that was restored does not give a number twice.
	s.CRLNumber = max(previous+1, now.Unix())
	s.Made, s.ThisUpdate, s.NextUpdate = s.Wanted, now.Add(-ca.Backdate), now.Add(crlLife)
	crl := ca.CRL{URL: s.URL, Number: s.CRLNumber, ThisUpdate: s.ThisUpdate, NextUpdate: s.NextUpdate, Entries: entries}
	if a.Kind.issuesCAs() {
		crl.URL = "" // it is the only one: it speaks of the root itself too, as openssl verify -crl_check_all wants
	}
	der, err := ca.SignCRL(a.issuer, crl)
	if err != nil {
		return err
	}
	if err := p.store.SaveCRL(ctx, s, previous, der); err != nil && cradle.KindOf(err) != cradle.Conflict {
		return err
	}
	return nil
}

// CRL returns the newest CRL of a shard, and makes it first where the store says more than it does.
func (p *Provider) CRL(ctx context.Context, authority string, shard int64) (Shard, []byte, error) {
	if err := p.openAll(); err != nil {
		return Shard{}, nil, err
	}
	s, err := p.store.Shard(ctx, authority, shard)
	if cradle.KindOf(err) == cradle.NotFound {
		a := p.dir.Load().byID[authority]
		if a == nil || !a.Kind.issuesCAs() || shard != 1 || p.statusURL == "" {
			return Shard{}, nil, err
		}
		s = Shard{Authority: authority, Number: 1, URL: p.shardURL(authority, 1), LastExpiry: ca.Forever, Wanted: 1}
		err = p.store.AddShard(ctx, s)
	}
	if err != nil {
		return Shard{}, nil, err
	}
	if s.Wanted > s.Made || !p.now().Before(s.NextUpdate) {
		p.crlMu.Lock() // one at a time is enough
		s, err = p.store.Shard(ctx, authority, shard)
		if err == nil && (s.Wanted > s.Made || !p.now().Before(s.NextUpdate)) {
			err = p.makeCRL(ctx, authority, shard)
			if cradle.KindOf(err) == cradle.NotFound && p.now().Before(s.NextUpdate) {
				err = nil // the key is elsewhere, and who has it makes a new one in a moment
			} else if cradle.KindOf(err) == cradle.NotFound {
				err = cradle.Errorf(cradle.Busy, "the CRL is not made yet").WithHint("try again")
			} else if err == nil {
				s, err = p.store.Shard(ctx, authority, shard)
			}
		}
		p.crlMu.Unlock()
		if err != nil {
			return Shard{}, nil, err
		}
	}
	return p.crls.get(ctx, p, authority, shard, s)
}

// ShardURLs lists where the CRLs of an authority are, for those who need all of them.
func (p *Provider) ShardURLs(ctx context.Context, authority string) ([]string, error) {
	if a := p.dir.Load().byID[authority]; a != nil && a.Kind.issuesCAs() && p.statusURL != "" {
		return []string{p.shardURL(authority, 1)}, nil
	}
	return p.store.ShardURLs(ctx, authority, p.now().Add(-noteAhead))
}

// madeCRLs remembers CRLs as they were given out.
type madeCRLs struct {
	mu sync.Mutex
	m  map[string]madeCRL
}

type madeCRL struct {
	Shard
	der []byte
}

const maxMadeCRLs = 64

// get returns the newest CRL; seen is what was just read of its shard.
func (c *madeCRLs) get(ctx context.Context, p *Provider, authority string, shard int64, seen Shard) (Shard, []byte, error) {
	key := shardKey(authority, shard)
	c.mu.Lock()
	k, ok := c.m[key]
	c.mu.Unlock()
	if ok && k.CRLNumber == seen.CRLNumber {
		return k.Shard, k.der, nil
	}
	s, der, err := p.store.ShardCRL(ctx, authority, shard)
	if err != nil {
		return Shard{}, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxMadeCRLs {
		c.m = map[string]madeCRL{}
	}
	c.m[key] = madeCRL{s, der}
	return s, der, nil
}

func shardKey(authority string, shard int64) string {
	return authority + "/" + strconv.FormatInt(shard, 10)
}
