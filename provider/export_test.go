package provider

import "crypto/ed25519"

// LogPrivate is the key that signs checkpoints.
func LogPrivate(p *Provider) ed25519.PrivateKey { return p.logKey }
