package attest

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/weakkey"
)

// Anchor is one CA certificate of a TPM maker, a root or an intermediate, as the operator tagged it.
type Anchor struct {
	Maker      cradle.MakerID
	Tier       cradle.Tier
	Cert       *x509.Certificate
	Distrusted bool // refuse whatever has this key on its path
}

// ParseAnchor reads a CA certificate of a TPM maker. Errors say what is unusable about it.
func ParseAnchor(der []byte) (*x509.Certificate, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "TPM maker's certificate: %v", err)
	}
	if detail := weakCAKey(cert); detail != "" {
		return nil, cradle.Errorf(cradle.Invalid, "TPM maker's certificate: %s", detail)
	}
	return cert, nil
}

// AnchorSet is the anchors of all TPM makers. It is safe for concurrent use and, but for its Cache,
// does not change.
type AnchorSet struct {
	byName     map[string][]*link
	distrusted map[string]bool // SHA-256 of SPKIs, and of the anchors with them
	cache      *Cache
}

// link is a CA certificate that may stand on a path.
type link struct {
	cert        *x509.Certificate
	fingerprint string // SHA-256 of the certificate
	spki        string // SHA-256 of its SPKI
	subject     string // normalised
	anchor      *anchor
}

type anchor struct {
	Anchor
	fingerprint string
}

func newLink(c *x509.Certificate) *link {
	return &link{cert: c, fingerprint: hexDigest(c.Raw), spki: hexDigest(c.RawSubjectPublicKeyInfo), subject: normalName(c.RawSubject)}
}

// NewAnchorSet indexes anchors. What a distrusted anchor has signed is distrusted with it, other anchors
// included. Of two anchors with one key the distrusted one counts, then the one of the weaker tier. keys are further
// issuers that are distrusted, by SHA-256 of their SPKI: intermediates that nobody imported.
func NewAnchorSet(anchors []Anchor, keys ...string) *AnchorSet {
	s := &AnchorSet{byName: map[string][]*link{}, distrusted: map[string]bool{}, cache: new(Cache)}
	for _, spki := range keys {
		s.distrusted[spki] = true
	}
	var all []*link
	for _, a := range anchors {
		l := newLink(a.Cert)
		l.anchor = &anchor{a, l.fingerprint}
		all = append(all, l)
		s.byName[l.subject] = append(s.byName[l.subject], l)
		if a.Distrusted {
			s.distrust(l)
		}
	}
	for more := len(s.distrusted) > 0; more; {
		more = false
		for _, l := range all {
			if s.distrusted[l.fingerprint] {
				continue
			}
			if s.distrusted[l.spki] { // another certificate of a distrusted key
				s.distrust(l)
				more = true
				continue
			}
			for _, p := range s.byName[normalName(l.cert.RawIssuer)] {
				if s.distrusted[p.spki] && sameKeyID(l.cert, p.cert) && checkSignature(l.cert, p.cert) == nil {
					s.distrust(l)
					more = true
					break
				}
			}
		}
	}
	for _, ls := range s.byName {
		slices.SortStableFunc(ls, func(a, b *link) int {
			if d := cmp.Compare(trust(s, b), trust(s, a)); d != 0 {
				return d
			}
			return strings.Compare(a.fingerprint, b.fingerprint)
		})
	}
	return s
}

func (s *AnchorSet) distrust(l *link) {
	s.distrusted[l.spki], s.distrusted[l.fingerprint] = true, true
}

// trust orders anchors, the least trusted highest.
func trust(s *AnchorSet, l *link) int {
	if s.distrusted[l.spki] {
		return len(cradle.Tiers) + 1
	}
	if i := slices.Index(cradle.Tiers, l.anchor.Tier); i >= 0 {
		return i
	}
	return len(cradle.Tiers)
}

// WithCache makes s use c, which another set may have filled: what it remembers does not depend on
// anchors. It returns s, and must be called before s is used.
func (s *AnchorSet) WithCache(c *Cache) *AnchorSet {
	s.cache = c
	return s
}

// Distrusts reports whether an endorsement key that was accepted earlier has since lost its anchor or an
// issuer on its path. Of facts without Issuers only the anchor is asked.
func (s *AnchorSet) Distrusts(f EKFacts) bool {
	return s.distrusted[f.Anchor] || slices.ContainsFunc(f.Issuers, func(spki string) bool { return s.distrusted[spki] })
}

// Cache remembers intermediates whose signature has been verified up to an anchor: the signature of a
// P-384 intermediate costs more than all the rest of a verdict. The zero value is ready; it is safe for
// concurrent use and holds at most maxCache certificates (a few KB each; Intel's on-die CAs are
// one per chip, so it may fill).
type Cache struct {
	mu sync.Mutex
	m  map[[32]byte]verified
}

type verified struct {
	*link
	issuer string // SPKI that signed it
}

const maxCache = 2048

func (c *Cache) get(der []byte) (verified, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.m[sha256.Sum256(der)]
	return v, ok
}

func (c *Cache) put(l *link, issuer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[[32]byte]verified{}
	}
	for k := range c.m { // any one makes room
		if len(c.m) < maxCache {
			break
		}
		delete(c.m, k)
	}
	c.m[sha256.Sum256(l.cert.Raw)] = verified{l, issuer}
}

// Bounds of a search, against chains made to be slow.
const (
	maxIntermediates = 4  // between the EK certificate and the anchor
	maxVerifications = 12 // signatures checked
)

// search looks for a path from one EK certificate to an anchor.
type search struct {
	set    *AnchorSet
	chain  [][]byte
	sent   []*link // chain parsed, once it is needed
	parsed bool
	tries  int
	named  error // why a certificate of the right name did not do
}

// findPath returns the issuers from the EK's up to an anchor, the last. At each step anchors come before what
// the device sent, so that a device cannot choose by which anchor it is judged.
func (s *AnchorSet) findPath(ek *x509.Certificate, chain [][]byte) ([]*link, Reasons) {
	f := &search{set: s, chain: chain}
	path := f.up(ek, "", nil)
	if path == nil {
		var why Reasons
		if f.named != nil {
			why.add(EKSignature, "no issuer of that name made the signature: "+f.named.Error())
		} else {
			why.add(EKUntrusted, fmt.Sprintf("no anchor for issuer %q", issuerOf(ek)))
		}
		return nil, why
	}
	for i := range len(path) - 1 {
		s.cache.put(path[i], path[i+1].spki)
	}
	return path, nil
}

// up finds the path above child. issuer is the SPKI digest known to have signed it, or "".
func (f *search) up(child *x509.Certificate, issuer string, below []*link) []*link {
	name := normalName(child.RawIssuer)
	for _, a := range f.set.byName[name] {
		if f.signed(child, issuer, a) {
			return append(slices.Clone(below), a)
		}
	}
	if len(below) == maxIntermediates {
		return nil
	}
	f.parse()
	for _, c := range f.sent {
		if c.subject != name || slices.Contains(below, c) || !f.signed(child, issuer, c) {
			continue
		}
		v, _ := f.set.cache.get(c.cert.Raw)
		if path := f.up(c.cert, v.issuer, append(slices.Clone(below), c)); path != nil {
			return path
		}
	}
	return nil
}

func (f *search) signed(child *x509.Certificate, issuer string, parent *link) bool {
	if !sameKeyID(child, parent.cert) {
		return false
	}
	if issuer != "" && issuer == parent.spki {
		return true
	}
	if f.tries++; f.tries > maxVerifications {
		f.named = fmt.Errorf("too many certificates of one name")
		return false
	}
	for _, c := range signatureChecks {
		if detail := c.refuse([2]*x509.Certificate{child, parent.cert}); detail != "" {
			f.named = fmt.Errorf("%s", detail)
			return false
		}
	}
	return true
}

// parse reads the chain that the device sent; what cannot be read cannot help.
func (f *search) parse() {
	if f.parsed {
		return
	}
	f.parsed = true
	for _, der := range f.chain {
		if v, ok := f.set.cache.get(der); ok {
			f.sent = append(f.sent, v.link)
			continue
		}
		c, err := parseCertificate(der)
		if err != nil {
			continue
		}
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSA {
			continue // verifying under it would be slow
		}
		f.sent = append(f.sent, newLink(c))
	}
}

// maxRSA is the largest RSA modulus in bits, of EKs and of their issuers.
const maxRSA = 4096

var signatureChecks = []check[[2]*x509.Certificate]{
	{EKSignature, func(pair [2]*x509.Certificate) string {
		if err := checkSignature(pair[0], pair[1]); err != nil {
			return err.Error()
		}
		return ""
	}},
}

// checkSignature takes RSA and ECDSA with SHA-2. (Certificate.CheckSignature alone would take SHA-1.)
func checkSignature(child, parent *x509.Certificate) error {
	switch child.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		return fmt.Errorf("signature algorithm %v is not allowed", child.SignatureAlgorithm)
	}
	return parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature)
}

// pathSubject is what the checks of a path look at: path[0] issued the EK certificate.
type pathSubject struct {
	*ekSubject
	path       []*link
	distrusted map[string]bool
}

// each asks every issuer on the path.
func each(refuse func(s *pathSubject, i int, c *x509.Certificate) string) func(*pathSubject) string {
	return func(s *pathSubject) string {
		for i, l := range s.path {
			if detail := refuse(s, i, l.cert); detail != "" {
				return detail
			}
		}
		return ""
	}
}

var pathChecks = []check[*pathSubject]{
	{CADistrusted, each(func(s *pathSubject, i int, c *x509.Certificate) string {
		return unless(!s.distrusted[s.path[i].spki], "%s is distrusted", named{c})
	})},
	{CANotCA, each(func(_ *pathSubject, _ int, c *x509.Certificate) string {
		may := c.BasicConstraintsValid && c.IsCA && (c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageCertSign != 0)
		return unless(may, "%s may not issue certificates", named{c})
	})},
	{CAPathLen, each(func(_ *pathSubject, i int, c *x509.Certificate) string {
		limited := c.MaxPathLen > 0 || c.MaxPathLen == 0 && c.MaxPathLenZero
		return unless(!limited || i <= c.MaxPathLen, "%s allows %d intermediates below it, not %d", named{c}, c.MaxPathLen, i)
	})},
	{CAValidity, each(func(s *pathSubject, _ int, c *x509.Certificate) string { return outside(s.now, c, s.rules.ExpiredEK) })},
	{CACritical, each(func(_ *pathSubject, _ int, c *x509.Certificate) string { return unhandled(c, nil) })},
	{CAKey, each(func(_ *pathSubject, _ int, c *x509.Certificate) string { return weakCAKey(c) })},
}

func weakCAKey(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > maxRSA {
			return fmt.Sprintf("RSA key of %s has %d bits; 2048 to %d are allowed", nameOf(c), n, maxRSA)
		}
		if weakkey.ROCA(k.N) {
			return fmt.Sprintf("RSA key of %s has the ROCA fingerprint (CVE-2017-15361)", nameOf(c))
		}
		return ""
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521() {
			return ""
		}
	}
	return fmt.Sprintf("key of %s is neither RSA nor EC on P-256, P-384 or P-521", nameOf(c))
}

// sameKeyID reports whether the key identifiers, where both have one, let parent be child's issuer.
func sameKeyID(child, parent *x509.Certificate) bool {
	return len(child.AuthorityKeyId) == 0 || len(parent.SubjectKeyId) == 0 ||
		string(child.AuthorityKeyId) == string(parent.SubjectKeyId)
}

// normalName makes DNs comparable whatever string type they are written in (RFC 5280 §7.1): some makers
// name an issuer in UTF8String whose own subject is PrintableString. Names only find candidates; the signature decides.
func normalName(raw []byte) string {
	var dn pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &dn); err != nil || len(rest) > 0 {
		return hex.EncodeToString(raw)
	}
	var out strings.Builder
	for _, rdn := range dn {
		parts := make([]string, len(rdn))
		for i, a := range rdn {
			v, ok := a.Value.(string)
			if !ok {
				return hex.EncodeToString(raw)
			}
			parts[i] = a.Type.String() + "=" + strings.ToLower(strings.Join(strings.Fields(v), " "))
		}
		slices.Sort(parts)
		fmt.Fprintf(&out, "%q", parts)
	}
	return out.String()
}

func issuerOf(c *x509.Certificate) string {
	s := c.Issuer.String()
	return strings.ToValidUTF8(s[:min(len(s), 120)], "?")
}
