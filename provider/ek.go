package provider

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
)

// ekVerdicts remembers endorsement keys that were just verified: a unit claims the same one for its IAK and
// again for its IDevID. A verdict holds for the order, the certificates and the anchors that it was made
// with, which are those of this moment, and for ekAge.
type ekVerdicts struct {
	mu      sync.Mutex
	anchors *attest.AnchorSet // of all of m
	m       map[ekClaim]ekVerdict
}

type ekClaim struct {
	order cradle.OrderID
	certs [32]byte
}

type ekVerdict struct {
	ek *attest.EK
	at time.Time
}

const (
	ekAge         = 30 * time.Second
	maxEKVerdicts = 1024
)

// verifyEK finds out whether the claim's endorsement key is of a maker that the order allows.
func (p *Provider) verifyEK(now time.Time, ord *openOrder, claim evidence.Claim) (*attest.EK, error) {
	dir := p.dir.Load()
	anchors, key := dir.anchors, ekClaim{order: ord.row.ID}
	h := sha256.New()
	for _, c := range append([][]byte{claim.EKCert}, claim.EKChain...) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(c))))
		h.Write(c)
	}
	h.Sum(key.certs[:0])
	if ek := p.eks.get(anchors, key, now); ek != nil {
		return ek, nil
	}
	ek, why := anchors.VerifyEK(now, claim.EKCert, claim.EKChain, ord.rules, dir.deniedEK)
	if err := why.Err(); err != nil {
		return nil, err
	}
	p.eks.put(anchors, key, ekVerdict{ek, now})
	return ek, nil
}

func (v *ekVerdicts) get(a *attest.AnchorSet, c ekClaim, now time.Time) *attest.EK {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k, ok := v.m[c]; ok && v.anchors == a && now.Sub(k.at).Abs() < ekAge {
		return k.ek
	}
	return nil
}

func (v *ekVerdicts) put(a *attest.AnchorSet, c ekClaim, k ekVerdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.anchors != a || len(v.m) >= maxEKVerdicts {
		v.anchors, v.m = a, map[ekClaim]ekVerdict{}
	}
	v.m[c] = k
}
