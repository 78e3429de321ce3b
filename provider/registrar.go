package provider

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// RegistrarProfile marks the certificate of a registration authority (RFC 7030 §3.7): a service that passes on the CSRs of
// devices that it knows by other means, as a provisioning service does. No profile of an account can have this name.
const RegistrarProfile cradle.Profile = "registration-authority"

// Registrar is a registration authority's credential. Several may stand for one authority, one for each of its
// processes and, while one is replaced, two.
type Registrar struct {
	ca.Registrar
	Cert  Certificate
	Chain [][]byte // DER, of the CAs above Cert, nearest first; set when it is made
}

// Registrars keeps the credentials of registration authorities.
type Registrars interface {
	// StoreRegistrar records a credential and its leaf, and that its key is no device's; it has no device and no intent.
	// Forbidden: the key is a device's or another authority's.
	StoreRegistrar(ctx context.Context, c Certificate, spki string, leaf ledger.Leaf) error
	// Registrars returns the credentials of an account, also revoked and expired ones, oldest first.
	Registrars(ctx context.Context, account cradle.AccountID) ([]Certificate, error)
}

// MaxRegistrarLife bounds the life of a registration authority's credential.
const MaxRegistrarLife = 825 * 24 * time.Hour

// AddRegistrar gives a registration authority a credential for the key of csr. From then on whoever has that key gets
// certificates of the profile for names that came by this authority or are free; they come from a CA of their
// own, and say that nothing proved their keys.
func (p *Provider) AddRegistrar(ctx context.Context, ra ca.Registrar, csr []byte, life time.Duration) (*Registrar, error) {
	if p.apart {
		return nil, errApart
	}
	if err := cradle.CheckID("registration authority", ra.Name); err != nil {
		return nil, err
	}
	if err := p.checkClient(ctx, ra.Account, ra.Profile, ra.Names, &ra.Tier); err != nil {
		return nil, err
	}
	if err := registrable(ra.Profile, p.kindOf(ra.Account, ra.Profile)); err != nil {
		return nil, err
	}
	if life <= 0 || life > MaxRegistrarLife {
		return nil, cradle.Errorf(cradle.Invalid, "the credential of a registration authority lives up to %d days, not %s", MaxRegistrarLife/(24*time.Hour), life)
	}
	q, err := evidence.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	if err := attest.VerifyPossession(q).Refuse(cradle.Invalid, "CSR"); err != nil {
		return nil, err
	}
	if p.dir.Load().issuing[hexDigest(q.SPKI)] {
		return nil, cradle.Errorf(cradle.Invalid, "the CSR's key is an issuing key of this installation")
	}
	a, err := p.lateCA(ctx, RegistrationCA, ra.Account, ra.Tier.Class())
	if err != nil {
		return nil, err
	}
	now := p.now()
	begin, end := now.Add(-ca.Backdate).Truncate(time.Second), now.Add(life).Truncate(time.Second)
	if last := a.issuer.Cert.NotAfter; end.After(last) {
		end = last
	}
	cert, err := ra.Certificate(a.issuer, q.Request.PublicKey, begin, end)
	if err != nil {
		return nil, err
	}
	out := &Registrar{Registrar: ra, Chain: append([][]byte{a.Cert}, a.Chain...), Cert: Certificate{Digest: ca.Digest(cert.Raw), Serial: ca.SerialString(cert.SerialNumber),
		Account: ra.Account, Device: cradle.DeviceID(ra.ID()), Profile: RegistrarProfile, Lineage: string(RegistrarProfile), Authority: a.ID, DER: cert.Raw,
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Slot: Current, Issued: now}}
	leaf, err := p.leafBy(ctx, string(ra.Account), ledger.KindRegistrar, map[string]any{"account": ra.Account, "certificate": out.Cert.Digest, "serial": out.Cert.Serial,
		"device": ra.ID(), "profile": ra.Profile, "names": ra.Names, "tier": ra.Tier})
	if err != nil {
		return nil, err
	}
	if err := p.store.StoreRegistrar(ctx, out.Cert, hexDigest(q.SPKI), leaf); err != nil {
		return nil, err
	}
	p.log.Info("registration authority got a credential", "account", ra.Account, "name", ra.Name, "profile", ra.Profile, "serial", out.Cert.Serial)
	return out, nil
}

// registrable refuses profiles whose certificates never come by a registration authority: those that say where a device
// was made or to whom it belongs.
func registrable(name cradle.Profile, kind ca.Kind) error {
	if kind == ca.KindOperational || kind == ca.KindClient {
		return nil
	}
	return cradle.Errorf(cradle.Forbidden, "a registration authority cannot ask for certificates of profile %s", name).
		WithHint("choose operational or a profile of the account's own")
}

// Registrars returns the credentials of an account's registration authorities, oldest first.
func (p *Provider) Registrars(ctx context.Context, account cradle.AccountID) ([]Registrar, error) {
	if _, err := p.account(ctx, account); err != nil {
		return nil, err
	}
	certs, err := p.store.Registrars(ctx, account)
	if err != nil {
		return nil, err
	}
	var out []Registrar
	for _, c := range certs {
		cert, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return nil, err
		}
		ra, err := ca.ParseRegistrar(cert)
		if err != nil {
			return nil, err
		}
		out = append(out, Registrar{Registrar: *ra, Cert: c})
	}
	return out, nil
}

// EndRegistrar revokes the credentials of a registration authority at a profile, but for the one whose digest is keep, and
// returns those that it revoked. Devices that came by it keep their certificates.
func (p *Provider) EndRegistrar(ctx context.Context, account cradle.AccountID, profile cradle.Profile, name, keep, reason string) ([]Registrar, error) {
	all, err := p.Registrars(ctx, account)
	if err != nil {
		return nil, err
	}
	var out []Registrar
	for _, r := range all {
		if r.Name != name || r.Profile != profile || r.Cert.Digest == keep || !r.Cert.Revoked.IsZero() || p.now().After(r.Cert.NotAfter) {
			continue
		}
		if r.Cert, _, err = p.ChangeCertificate(ctx, account, r.Cert.Serial, Revoke, reason); err != nil {
			return out, err
		}
		out = append(out, r)
	}
	if len(out) == 0 && keep == "" {
		return nil, cradle.Errorf(cradle.NotFound, "account %s has no registration authority %q at profile %s", account, name, profile).WithHint("cradle account ra %s lists them", account)
	}
	return out, nil
}

// registrarParty is who asks when the client's certificate, which is on record and carries our signature, is a
// registration authority's. What it may do is read from the certificate.
func registrarParty(e Endpoint, c *Credential, peer *x509.Certificate) (*party, error) {
	ra, err := ca.ParseRegistrar(peer)
	if err != nil {
		return nil, err
	}
	switch {
	case ra.Account != e.Account || ra.Account != c.Cert.Account:
		return nil, cradle.Errorf(cradle.Forbidden, "registration authority %s belongs to another account than label %s", ra.Name, e.Label)
	case ra.Profile != e.Profile:
		return nil, cradle.Errorf(cradle.Forbidden, "registration authority %s may ask for certificates of profile %s alone, not at label %s", ra.Name, ra.Profile, e.Label).
			WithHint("have a credential made for this profile: cradle account ra %s --name %s --profile %s", e.Account, ra.Name, e.Profile)
	}
	return &party{origin: ra.ID(), auth: ra.ID(), names: ra.Names, tier: ra.Tier, registrar: true}, nil
}

// mayRegister is what a registration authority may do at all: ask by simpleenroll for a certificate with the name that the
// CSR shows it. ChangeSubjectName would ask for another one behind its back.
func mayRegister(r Request, kind ca.Kind) error {
	if r.Operation != Enroll {
		return cradle.Errorf(cradle.Forbidden, "a registration authority's certificate does not authenticate %s", r.Operation).
			WithHint("pass the device's CSR on by simpleenroll")
	}
	if err := registrable(r.Profile, kind); err != nil {
		return err
	}
	change, err := est.ParseChangeSubjectName(r.CSR)
	if err == nil && change != nil {
		err = cradle.Errorf(cradle.Forbidden, "a registration authority passes on no CSR with ChangeSubjectName: it would name another device than its subject").
			WithHint("leave the attribute out")
	}
	return err
}

// registeredLineage is the slot of all certificates of a profile that came to a device by a registration authority.
func registeredLineage(profile cradle.Profile) string { return string(profile) + "/ra" }

// Registered reports whether the certificate came by a registration authority.
func (c *Certificate) Registered() bool { return c.Lineage == registeredLineage(c.Profile) }

// registeredElsewhere refuses the certificate of a device that came by a registration authority: what stands for it is
// what the authority knows of it, so it gets the next one there, and no certificate of another CA by this one.
func registeredElsewhere(c *Credential) error {
	return cradle.Errorf(cradle.Forbidden, "the certificates of device %s come by the registration authority %q, and are renewed there", c.Device.ID, c.Device.Origin).
		WithHint("renew at the hub ($iothub/credentials), or register again with a CSR")
}
