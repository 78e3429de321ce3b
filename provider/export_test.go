package provider

import (
	"context"
	"crypto"
	"crypto/ed25519"
)

// LogPrivate is the key that signs checkpoints.
func LogPrivate(p *Provider) ed25519.PrivateKey { return p.logKey }

// Reload rereads the directory, as Run does every few seconds.
func (p *Provider) Reload(ctx context.Context) error { return p.reload(ctx) }

// IssuingKey is the key of a CA.
func IssuingKey(p *Provider, id string) crypto.Signer { return p.dir.Load().byID[id].issuer.Key }

// Round does what Run does every half second.
func (p *Provider) Round(ctx context.Context) error { return p.round(ctx, 1) }

// RunJobs does what Run does for changes of sets.
func (p *Provider) RunJobs(ctx context.Context) error { return p.runJobs(ctx) }

func init() { passwordRounds = 1000 }

// SealedChallenge is what a challenge holds.
type SealedChallenge = challenge

// EncodeChallenge and DecodeChallenge are its form.
var (
	EncodeChallenge = (*challenge).encode
	DecodeChallenge = decodeChallenge
)
