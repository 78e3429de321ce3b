// Package peerauth authenticates TLS client certificates by pinned issuers: a leaf is accepted when its
// issuer is in a Pool and signed it, it is valid now, and its key usage allows it. No chain is built and
// nothing that the client sent beside its leaf is looked at, so that a client can neither choose its path nor make
// the server verify signatures at will.
//
// Check is the pure core; Pool finds the issuer, and remembers verified leaves by SHA-256 so that the next request
// on a connection, or the next connection with the same certificate, costs a hash instead of a signature
// verification. Validity is checked each time.
//
// It knows nothing of revocation or of a device's state: the services ask their status follower as well.
package peerauth

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
)

// Reason says why a certificate was refused.
type Reason string

// The reasons.
const (
	NoCertificate Reason = "no certificate"
	UnknownIssuer Reason = "unknown issuer"
	BadSignature  Reason = "bad signature"
	Expired       Reason = "expired"
	NotYetValid   Reason = "not yet valid"
	IssuerInvalid Reason = "issuer not valid now"
	WrongUse      Reason = "wrong use" // a CA certificate, or one whose key usage does not allow client authentication
)

// Error is a refusal. It unwraps to a cradle.Error of kind Unauthorized.
type Error struct {
	Reason Reason
	err    *cradle.Error
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap gives the error that may be shown.
func (e *Error) Unwrap() error { return e.err }

func refuse(r Reason, hint, format string, args ...any) *Error {
	err := cradle.Errorf(cradle.Unauthorized, "client certificate: "+format, args...)
	if hint != "" {
		err = err.WithHint("%s", hint)
	}
	return &Error{r, err}
}

// Check verifies that issuer signed leaf and that leaf authenticates a TLS client at now. The error is an *Error. A
// failure of time (Expired, NotYetValid, IssuerInvalid) is only returned for a leaf that is otherwise good.
func Check(leaf, issuer *x509.Certificate, now time.Time) error {
	if err := checkSigned(leaf, issuer); err != nil {
		return err
	}
	return checkTime(leaf, issuer, now)
}

// checkSigned is the part of Check that stays true.
func checkSigned(leaf, issuer *x509.Certificate) error {
	if leaf.IsCA {
		return refuse(WrongUse, "present the device's own certificate first", "it is a CA certificate")
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return refuse(WrongUse, "", "its key usage has no digitalSignature")
	}
	// No extended key usage, or one that is not known to us, as IDevIDs may have, is no obstacle; a list that names other uses only is.
	if len(leaf.ExtKeyUsage) > 0 && len(leaf.UnknownExtKeyUsage) == 0 &&
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return refuse(WrongUse, "", "its extended key usage has no clientAuth")
	}
	if len(leaf.UnhandledCriticalExtensions) > 0 {
		return refuse(WrongUse, "", "unknown critical extension %v", leaf.UnhandledCriticalExtensions[0])
	}
	if !bytes.Equal(leaf.RawIssuer, issuer.RawSubject) {
		return refuse(UnknownIssuer, "", "issued by %q, not by %q", leaf.Issuer, issuer.Subject)
	}
	// CheckSignatureFrom also refuses SHA-1 and issuers that are no CA or may not sign certificates.
	if err := leaf.CheckSignatureFrom(issuer); err != nil {
		return refuse(BadSignature, "", "its signature is not %q's: %v", issuer.Subject.CommonName, err)
	}
	return nil
}

func checkTime(leaf, issuer *x509.Certificate, now time.Time) error {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case now.After(leaf.NotAfter):
		return refuse(Expired, "use another certificate of the device, for example its LDevID", "expired at %s", stamp(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return refuse(NotYetValid, "compare the clocks", "not valid before %s; it is %s here", stamp(leaf.NotBefore), stamp(now))
	case now.After(issuer.NotAfter):
		return refuse(IssuerInvalid, "", "its issuer %q expired at %s", issuer.Subject.CommonName, stamp(issuer.NotAfter))
	case now.Before(issuer.NotBefore):
		return refuse(IssuerInvalid, "compare the clocks", "its issuer %q is not valid before %s", issuer.Subject.CommonName, stamp(issuer.NotBefore))
	}
	return nil
}

// DefaultSize is the number of leaves that a Pool remembers unless told otherwise; about 100 bytes each.
const DefaultSize = 16384

// Pool holds pinned issuers, each with a tag that says what its signature means (an account, a profile). Tags are
// returned as they were given. Safe for concurrent use.
type Pool[T any] struct {
	size int

	mu      sync.Mutex
	byName  map[string][]*pinned[T] // by raw subject; several when a CA's key or certificate was renewed, or cross-certified
	byHash  map[[32]byte]*pinned[T] // by certificate
	leaves  map[[32]byte]*list.Element
	recency list.List // of seen[T], most recent first
}

type pinned[T any] struct {
	cert *x509.Certificate
	tag  T
}

type seen[T any] struct {
	leaf   [32]byte
	issuer *pinned[T]
}

// NewPool returns an empty pool that remembers size leaves; 0 means DefaultSize.
func NewPool[T any](size int) *Pool[T] {
	if size <= 0 {
		size = DefaultSize
	}
	return &Pool[T]{
		size:   size,
		byName: map[string][]*pinned[T]{},
		byHash: map[[32]byte]*pinned[T]{},
		leaves: map[[32]byte]*list.Element{},
	}
}

// Add pins an issuer. One that is there already gets the new tag. A certificate that may not sign others is cradle.Invalid.
func (p *Pool[T]) Add(issuer *x509.Certificate, tag T) error {
	if !issuer.BasicConstraintsValid || !issuer.IsCA || issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCertSign == 0 {
		return cradle.Errorf(cradle.Invalid, "certificate %q is not a CA certificate", issuer.Subject)
	}
	hash := sha256.Sum256(issuer.Raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(hash)
	e := &pinned[T]{issuer, tag}
	p.byHash[hash] = e
	p.byName[string(issuer.RawSubject)] = append(p.byName[string(issuer.RawSubject)], e)
	return nil
}

// Remove unpins an issuer and forgets the leaves accepted through it.
func (p *Pool[T]) Remove(issuer *x509.Certificate) {
	hash := sha256.Sum256(issuer.Raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(hash)
}

func (p *Pool[T]) remove(hash [32]byte) {
	e, ok := p.byHash[hash]
	if !ok {
		return
	}
	delete(p.byHash, hash)
	name := string(e.cert.RawSubject)
	// A new slice: Verify reads the old one without the lock.
	var left []*pinned[T]
	for _, o := range p.byName[name] {
		if o != e {
			left = append(left, o)
		}
	}
	if p.byName[name] = left; len(left) == 0 {
		delete(p.byName, name)
	}
	for el := p.recency.Front(); el != nil; {
		next := el.Next()
		if s := el.Value.(seen[T]); s.issuer == e {
			delete(p.leaves, s.leaf)
			p.recency.Remove(el)
		}
		el = next
	}
}

// Len is the number of pinned issuers.
func (p *Pool[T]) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byHash)
}

// Verify returns the tag of the issuer that signed leaf, when leaf authenticates a TLS client at now. The error is an
// *Error; for Expired, NotYetValid and IssuerInvalid the tag is returned too, since the leaf is genuine.
// A nil leaf is NoCertificate.
func (p *Pool[T]) Verify(leaf *x509.Certificate, now time.Time) (T, error) {
	var none T
	if leaf == nil {
		return none, refuse(NoCertificate, "authenticate with the device's certificate in the TLS handshake", "none was presented")
	}
	hash := sha256.Sum256(leaf.Raw)
	if e := p.recall(hash); e != nil {
		err := checkTime(leaf, e.cert, now)
		if reason(err) != IssuerInvalid { // there may be a newer certificate of that issuer
			return e.tag, err
		}
	}
	p.mu.Lock()
	candidates := p.byName[string(leaf.RawIssuer)]
	p.mu.Unlock()

	var firstErr error
	var late *pinned[T] // signed leaf, but the time is wrong; with another certificate of the same issuer it may be right
	for _, e := range candidates {
		if !keyIDFits(leaf, e.cert) {
			continue
		}
		err := checkSigned(leaf, e.cert)
		if err == nil {
			if err = checkTime(leaf, e.cert, now); err == nil {
				p.remember(hash, e)
				return e.tag, nil
			}
			if late == nil {
				late, firstErr = e, err
			}
		}
		if firstErr == nil {
			firstErr = err
		}
	}
	switch {
	case late != nil:
		p.remember(hash, late) // the signature stays good: it is not verified again for every attempt
		return late.tag, firstErr
	case firstErr != nil:
		return none, firstErr
	}
	return none, refuse(UnknownIssuer, "its issuer is not known here: register its CA, or use a certificate that this provider issued",
		"unknown issuer %.200q, key id %s", leaf.Issuer.String(), keyID(leaf.AuthorityKeyId))
}

func reason(err error) Reason {
	if e, ok := err.(*Error); ok {
		return e.Reason
	}
	return ""
}

// keyIDFits is false when both name a key and it is not the same one.
func keyIDFits(leaf, issuer *x509.Certificate) bool {
	return len(leaf.AuthorityKeyId) == 0 || len(issuer.SubjectKeyId) == 0 || bytes.Equal(leaf.AuthorityKeyId, issuer.SubjectKeyId)
}

func keyID(id []byte) string {
	if len(id) == 0 {
		return "none"
	}
	return hex.EncodeToString(id[:min(len(id), 32)])
}

// recall returns the issuer through which a leaf was verified before.
func (p *Pool[T]) recall(leaf [32]byte) *pinned[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	el, ok := p.leaves[leaf]
	if !ok {
		return nil
	}
	p.recency.MoveToFront(el)
	return el.Value.(seen[T]).issuer
}

// remember keeps a verified leaf, unless its issuer was removed meanwhile.
func (p *Pool[T]) remember(leaf [32]byte, e *pinned[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.byName[string(e.cert.RawSubject)], e) {
		return
	}
	if el, ok := p.leaves[leaf]; ok {
		el.Value = seen[T]{leaf, e}
		return
	}
	p.leaves[leaf] = p.recency.PushFront(seen[T]{leaf, e})
	if p.recency.Len() > p.size {
		last := p.recency.Back()
		delete(p.leaves, last.Value.(seen[T]).leaf)
		p.recency.Remove(last)
	}
}
