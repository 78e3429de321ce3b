// Package provider is the credential provider: accounts, OEMs, orders, TPM makers, devices, and the
// decision to issue a certificate. It knows no HTTP; estserver, adminserver and the status feed are
// its faces. It trusts what it signed itself (its log shows what that was), the TPM makers' anchors that
// an operator imported, and nothing that a device says without proof.
//
// Issuance (DESIGN §5) is one cycle: authenticate, open the challenge, verdict on the evidence
// (package attest), store the intent, lint and sign (package ca), store certificate and log leaf in
// one transaction, answer. What a crash leaves at each step is said in issue.go.
package provider

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
)

// InstallationLog is the log of what belongs to no account: OEMs, TPM makers.
const InstallationLog = "provider"

// Config is what a Provider needs.
type Config struct {
	Store Store
	Vault *filekey.Vault // seals the installation's secrets
	Keys  keystore.Store // issuing keys; default: files sealed by Vault
	// BirthKey, 32 bytes, seals the challenges of births in a signer apart, whose front ends do not have it.
	BirthKey []byte
	Signer   Signer // holds the issuing keys in another process; then Keys is not used
	Replica  string // names this process among those on the store, the same at every start; default random
	Region   string // data region of the accounts; default "local"
	// StatusURL is where CRLs and OCSP are served, for example "http://status.example.com"; it goes into every certificate.
	// Empty: certificates do not say where to ask.
	StatusURL string
	Origin    string           // names the logs in their checkpoints, for example "cradle.example.com"
	Log       *slog.Logger     // default slog.Default
	Now       func() time.Time // default time.Now
}

// Provider is the credential provider. Its methods are safe for concurrent use, and any number of
// Providers may share one store.
type Provider struct {
	store   Store
	vault   *filekey.Vault
	keys    keystore.Store
	region  string
	origin  string
	log     *slog.Logger
	now     func() time.Time
	replica string
	signer  Signer
	apart   bool // the signer is another process

	seal           cipher.AEAD // challenges
	birthSeal      cipher.AEAD // a signer's, of births; nil: seal
	feedKey        ed25519.PrivateKey
	logKey         ed25519.PrivateKey
	services       *ca.Issuer
	timeKey        crypto.Signer
	timeChain      [][]byte
	generator      crypto.Signer // of serverkeygen
	generatorChain []*x509.Certificate

	ekCache     *attest.Cache
	eks         ekVerdicts
	verified    verifiedCerts
	remembered  remembered
	dir         atomic.Pointer[directory]
	dirMu       sync.Mutex // one reload at a time
	orders      orderCache
	refusal     limiter
	passwords   passwords
	feed        feedSignal
	operatorKey []byte                    // of operatorMAC
	signedAt    atomic.Pointer[time.Time] // when every log was seen signed to its end

	statusURL  string
	shards     openShards
	crls       madeCRLs
	crlMu      sync.Mutex // one CRL is made on demand at a time
	responders responders

	closed atomic.Pointer[map[string]bool] // logs, after a restore
}

// New opens the provider over its store, making on the first start what is missing: challenge key, feed
// key, log key, services CA and the installation's log.
func New(ctx context.Context, c Config) (*Provider, error) {
	p := &Provider{store: c.Store, vault: c.Vault, keys: c.Keys, region: c.Region, origin: c.Origin, log: c.Log, now: c.Now, ekCache: new(attest.Cache), replica: c.Replica,
		statusURL: c.StatusURL}
	p.signer = inProcess{p}
	if c.Signer != nil {
		p.signer, p.apart = c.Signer, true
	}
	if p.keys == nil {
		p.keys = filekey.Store{Vault: p.vault}
	}
	if p.replica == "" {
		p.replica = newID()
	}
	if p.region == "" {
		p.region = "local"
	}
	if p.origin == "" {
		p.origin = "cradle.localhost"
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	if p.now == nil {
		p.now = time.Now
	}
	if err := p.store.CreateLog(ctx, InstallationLog); err != nil {
		return nil, fmt.Errorf("creating the installation's log: %w", err)
	}
	if err := p.sameName(ctx); err != nil {
		return nil, err
	}
	key, err := p.secret(ctx, "challenge-key", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if p.seal, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		return nil, err
	}
	if p.operatorKey, err = p.secret(ctx, "operator-key", 32); err != nil {
		return nil, err
	}
	if c.BirthKey != nil {
		if block, err = aes.NewCipher(c.BirthKey); err != nil {
			return nil, err
		}
		if p.birthSeal, err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, err
		}
	}
	for name, k := range map[string]*ed25519.PrivateKey{"feed-key": &p.feedKey, "log-key": &p.logKey} {
		seed, err := p.secret(ctx, name, ed25519.SeedSize)
		if err != nil {
			return nil, err
		}
		*k = ed25519.NewKeyFromSeed(seed)
	}
	if err := p.openServices(ctx); err != nil {
		return nil, err
	}
	p.feed.init()
	p.passwords.init()
	return p, p.reload(ctx)
}

// secret returns the random secret of that name and size, made at the first start.
func (p *Provider) secret(ctx context.Context, name string, size int) ([]byte, error) {
	fresh := make([]byte, size)
	rand.Read(fresh)
	sealed, err := p.store.Secret(ctx, name, p.vault.Seal(name, fresh))
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	b, err := p.vault.Open(name, sealed)
	if err != nil {
		return nil, err
	}
	if len(b) != size {
		return nil, fmt.Errorf("secret %s has %d bytes, not %d", name, len(b), size)
	}
	return b, nil
}

// openServices loads or makes the services CA: the TLS certificates of every service and the time key
// chain to it, apart from every account (DESIGN §2).
func (p *Provider) openServices(ctx context.Context) error {
	type stored struct {
		Cert, Key []byte
	}
	key, sealed, err := p.vault.NewKey("services-ca")
	if err != nil {
		return err
	}
	now := p.now()
	cert, err := ca.SelfSign(key, ca.Authority{Organization: "Cradle", CommonName: "Cradle services CA",
		NotBefore: now.Add(-ca.Backdate), NotAfter: now.AddDate(25, 0, 0)})
	if err != nil {
		return err
	}
	fresh, err := json.Marshal(stored{cert.Raw, sealed})
	if err != nil {
		return err
	}
	b, err := p.store.Secret(ctx, "services-ca", fresh)
	if err != nil {
		return fmt.Errorf("services CA: %w", err)
	}
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("services CA: %w", err)
	}
	p.services = new(ca.Issuer)
	if p.services.Cert, err = x509.ParseCertificate(s.Cert); err != nil {
		return fmt.Errorf("services CA: %w", err)
	}
	p.services.ID = ca.Digest(s.Cert)
	if p.services.Key, err = p.vault.Key("services-ca", s.Key); err != nil {
		return err
	}
	if err := p.openKeyGenerator(); err != nil {
		return err
	}
	return p.openTimeKey()
}

// Services returns the certificate of the services CA: what a TLS client must trust.
func (p *Provider) Services() *x509.Certificate { return p.services.Cert }

// FeedKey is the public key of the status feed.
func (p *Provider) FeedKey() ed25519.PublicKey { return p.feedKey.Public().(ed25519.PublicKey) }

// Run keeps the provider's clockwork going until ctx ends: open intents of crashed replicas are voided,
// checkpoints signed within a second, CRLs made, changes of sets brought on, the directory reread for what other
// replicas changed.
func (p *Provider) Run(ctx context.Context) error {
	var jobs sync.WaitGroup // beside the rounds: a large set takes its time
	jobs.Go(func() { p.every(ctx, func(int) error { return p.runJobs(ctx) }) })
	p.every(ctx, func(n int) error { return p.round(ctx, n) })
	jobs.Wait()
	return nil
}

// every does something each half second until ctx ends.
func (p *Provider) every(ctx context.Context, do func(n int) error) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for n := 0; ; n++ {
		if err := do(n); err != nil && ctx.Err() == nil && cradle.KindOf(err) != cradle.Busy {
			p.log.Error("provider housekeeping", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// openIntentLife is how long an intent may stay open: longer than any request may run (estserver gives
// up sooner), so that only intents whose replica died are voided.
const openIntentLife = 2 * time.Minute

func (p *Provider) round(ctx context.Context, n int) error {
	err := errors.Join(p.signCheckpoints(ctx), p.crlRound(ctx))
	if n%10 == 0 {
		err = errors.Join(err, p.reload(ctx))
	}
	if n%60 == 0 {
		voided, verr := p.store.VoidOpen(ctx, p.now().Add(-openIntentLife), "")
		if voided > 0 {
			p.log.Info("voided open intents", "count", voided)
		}
		_, derr := p.store.DropShards(ctx, p.now().Add(-shardGrace))
		err = errors.Join(err, verr, derr, p.store.ForgetApprovals(ctx, p.now()))
	}
	return err
}

// Recover voids the intents that an earlier process of this replica's name left open. Call it before
// serving: a signature made for such an intent was never given out.
func (p *Provider) Recover(ctx context.Context) error {
	n, err := p.store.VoidOpen(ctx, time.Time{}, p.replica)
	if n > 0 {
		p.log.Info("voided intents that a stop left open", "count", n)
	}
	return err
}
