package provider

import (
	"context"
	"crypto/x509"

	"github.com/cradle-iot/cradle/protocol/timestamp"
	"github.com/cradle-iot/cradle/provider/ca"
)

// openTimeKey makes the key that signs time statements (DESIGN §4.3) and its certificate under the
// services CA. It lives in memory alone: every start has a fresh one.
func (p *Provider) openTimeKey() error {
	key, _, err := p.vault.NewKey("time-key")
	if err != nil {
		return err
	}
	now := p.now()
	cert, err := ca.TimeStamper(p.services, key.Public(), now.Add(-ca.Backdate), now.AddDate(10, 0, 0))
	if err != nil {
		return err
	}
	p.timeKey, p.timeChain = key, [][]byte{cert.Raw}
	return nil
}

// Timestamp states the time over a device's nonce.
func (p *Provider) Timestamp(nonce []byte) (*timestamp.Statement, error) {
	return timestamp.Sign(p.timeKey, p.timeChain, nonce, p.now())
}

// ServerCertificate makes a TLS certificate of the services for a key, valid for a year.
func (p *Provider) ServerCertificate(key any, names []string) (*x509.Certificate, error) {
	now := p.now()
	return ca.Server(p.services, key, names, now.Add(-ca.Backdate), now.AddDate(1, 0, 0))
}

// Token returns a secret of the installation that other services of this process need kept: the same
// at every start and in every replica.
func (p *Provider) Token(ctx context.Context, name string) ([]byte, error) {
	return p.secret(ctx, "service/"+name, 32)
}
