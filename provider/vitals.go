package provider

import (
	"context"
	"time"
)

// Vitals is how the provider fares, for those who watch it.
type Vitals struct {
	OpenIntents  int64
	OldestIntent time.Time // when the oldest of them was begun; zero: none
	CRLsDue      int64     // shards whose newest CRL does not show every revocation
	CRLsEnd      time.Time // when the first CRL that still covers a certificate ends; zero: there is none
	Closed       int       // logs that have not caught up after a restore
	Signed       time.Time // when this process last saw every log signed to its end; zero: not yet
}

// Watch is what is asked of the store again and again: it is cheap at any size.
type Watch interface {
	// OpenIntents counts the intents that are neither done nor void, and says when the oldest was begun.
	OpenIntents(ctx context.Context) (n int64, oldest time.Time, err error)
	// CRLsDue counts the CRL shards that are to be made, and says when the first ends whose certificates are alive at now.
	CRLsDue(ctx context.Context, now time.Time) (n int64, end time.Time, err error)
}

// Vitals asks the store: an error says that it does not answer.
func (p *Provider) Vitals(ctx context.Context) (v Vitals, err error) {
	v.OpenIntents, v.OldestIntent, err = p.store.OpenIntents(ctx)
	if err == nil {
		v.CRLsDue, v.CRLsEnd, err = p.store.CRLsDue(ctx, p.now())
	}
	if closed := p.closed.Load(); closed != nil {
		v.Closed = len(*closed)
	}
	if at := p.signedAt.Load(); at != nil {
		v.Signed = *at
	}
	return v, err
}
