package provider

import (
	"context"
	"time"
)

// Vitals is how the provider fares, for those who watch it.
type Vitals struct {
	OpenIntents  int64
	OldestIntent time.Time // when the oldest of them was begun; zero: none
	Signed       time.Time // when this process last saw every log signed to its end; zero: not yet
}

// Watch is what is asked of the store again and again: it is cheap at any size.
type Watch interface {
	// OpenIntents counts the intents that are neither done nor void, and says when the oldest was begun.
	OpenIntents(ctx context.Context) (n int64, oldest time.Time, err error)
}

// Vitals asks the store: an error says that it does not answer.
func (p *Provider) Vitals(ctx context.Context) (v Vitals, err error) {
	v.OpenIntents, v.OldestIntent, err = p.store.OpenIntents(ctx)
	if at := p.signedAt.Load(); at != nil {
		v.Signed = *at
	}
	return v, err
}
