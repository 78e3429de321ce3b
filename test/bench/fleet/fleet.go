// Package fleet fills an installation that is not running with devices that are at work: by the import
// path of the stores (providerdb.DB.LoadDevices and its neighbours), a real entry of the log for every
// certificate, and certificates that the installation's own issuing keys signed.
//
// Work is shared where nobody can tell: all devices have the same IAK, IDevID, LDevID and operational
// public key, and a certificate is its predecessor's with other names and serial number, signed anew.
package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/hub/hubdb"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
	"github.com/cradle-iot/cradle/provider/providerdb"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// batch is how many devices are stored at once.
const batch = 500

// hubName is the hub that the first start of an installation makes.
const hubName hub.Name = "hub-1"

// Load registers n devices of the order plant.Fleet: active, with all four certificates, assigned to the
// hub and known to its registry.
func Load(ctx context.Context, p *plant.Plant, n int) (err error) {
	db, err := providerdb.Open(ctx, p.Database("provider"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	reg, err := provisioningdb.Open(ctx, p.Database("provisioning"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	hubs, err := openHub(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hubs.Close()) }()
	m, err := newMint(ctx, p, db, "")
	if err != nil {
		return err
	}
	groups, err := reg.Groups(ctx)
	if err != nil {
		return err
	}
	group := ""
	for _, g := range groups {
		if sha256.Sum256(m.stamps[cradle.Operational].issuer.Cert.Raw) == sha256.Sum256(g.Primary) {
			group = g.ID
		}
	}
	if group == "" {
		return errors.New("no enrolment group holds the operational CA")
	}

	type lot struct {
		units []providerdb.Unit
		regs  []provisioning.Registration
		devs  []hub.Device
	}
	made := make(chan lot, 4)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(made)
		for i := 1; i <= n; {
			var l lot
			for ; i <= n && len(l.units) < batch; i++ {
				u, err := m.unit(i)
				if err != nil {
					return err
				}
				l.units = append(l.units, u)
				r := m.registration(&u, group)
				l.regs = append(l.regs, r)
				l.devs = append(l.devs, entry(u.Device.ID, r.Thumbprint, m.now))
			}
			select {
			case made <- l:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	g.Go(func() error {
		for l := range made {
			if err := errors.Join(db.LoadDevices(ctx, plant.Account, plant.Fleet, l.units), reg.LoadRegistrations(ctx, l.regs),
				hubs.LoadDevices(ctx, hubName, l.devs)); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// LoadStatus registers n devices at the provider alone. Their certificates say that their standing is asked for below
// statusURL; each profile has CRL shards of its own, as full as a server makes them. each, called in the order of the
// devices, may change one before it is stored.
func LoadStatus(ctx context.Context, p *plant.Plant, db *providerdb.DB, statusURL string, n int, each func(i int, u *providerdb.Unit)) error {
	m, err := newMint(ctx, p, db, statusURL)
	if err != nil {
		return err
	}
	made := make(chan []providerdb.Unit, 4)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(made)
		for i := 1; i <= n; {
			var units []providerdb.Unit
			for ; i <= n && len(units) < batch; i++ {
				u, err := m.unit(i)
				if err != nil {
					return err
				}
				each(i, &u)
				units = append(units, u)
			}
			select {
			case made <- units:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	g.Go(func() error {
		for units := range made {
			if err := db.LoadDevices(ctx, plant.Account, plant.Fleet, units); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// openHub opens the hub's store of a plant.
func openHub(ctx context.Context, p *plant.Plant) (*hubdb.Store, error) {
	vault, err := openVault(p)
	if err != nil {
		return nil, err
	}
	return hubdb.Open(ctx, p.Database("hub"), vault)
}

func openVault(p *plant.Plant) (*filekey.Vault, error) {
	return filekey.LoadVault(filepath.Join(p.Data(), "key-encryption-key"))
}

// mint makes devices.
type mint struct {
	now    time.Time
	maker  *softkey.Maker
	anchor string
	tpm    *softkey.Device // whose IAK and keys all have
	iak    []byte
	ek     []byte // an EK certificate's DER, of which copies with another key are signed
	ekSPKI []byte
	stamps map[cradle.Profile]*stamp
}

func newMint(ctx context.Context, p *plant.Plant, db *providerdb.DB, statusURL string) (*mint, error) {
	m := &mint{now: time.Now().UTC().Truncate(time.Second), maker: p.Maker, anchor: ca.Digest(p.Maker.Cert.Raw), stamps: map[cradle.Profile]*stamp{}}
	var err error
	if m.tpm, err = p.Maker.NewDevice(softkey.P256); err != nil {
		return nil, err
	}
	m.iak, m.ek = m.tpm.IAK.TPMTPublic(), m.tpm.EKCert
	ek, err := x509.ParseCertificate(m.ek)
	if err != nil {
		return nil, err
	}
	m.ekSPKI = ek.RawSubjectPublicKeyInfo
	vault, err := openVault(p)
	if err != nil {
		return nil, err
	}
	all, err := db.Authorities(ctx)
	if err != nil {
		return nil, err
	}
	idevid, err := m.tpm.NewIDevID()
	if err != nil {
		return nil, err
	}
	ldevid, err := m.tpm.NewLDevID()
	if err != nil {
		return nil, err
	}
	operational, err := m.tpm.NewOperational()
	if err != nil {
		return nil, err
	}
	for profile, x := range map[cradle.Profile]struct {
		kind provider.AuthorityKind
		key  *softkey.Key
		life time.Duration
	}{
		cradle.IAK:         {provider.IDevIDCA, m.tpm.IAK, 0},
		cradle.IDevID:      {provider.IDevIDCA, idevid, 0},
		cradle.LDevID:      {provider.OnboardingCA, ldevid, 365 * 24 * time.Hour},
		cradle.Operational: {provider.OperationalCA, operational, 24 * time.Hour},
	} {
		for _, a := range all {
			if a.Kind != x.kind || a.Account != plant.Account || a.Class != cradle.Evaluation {
				continue
			}
			cert, err := x509.ParseCertificate(a.Cert)
			if err != nil {
				return nil, err
			}
			signer, err := filekey.Store{Vault: vault}.Open(ctx, a.Key, cert.PublicKey)
			if err != nil {
				return nil, err
			}
			end := ca.Forever
			if x.life > 0 {
				end = m.now.Add(x.life)
			}
			iss := &ca.Issuer{ID: a.ID, Cert: cert, Key: signer}
			if statusURL != "" {
				point := shardURL(statusURL, a.ID, firstShard[profile])
				iss.Points = &ca.Points{CRL: func(time.Time) (string, error) { return point, nil }, OCSP: statusURL + "/ocsp",
					CA: statusURL + "/ca/" + provider.StatusName(a.ID) + ".cer"}
			}
			if m.stamps[profile], err = newStamp(iss, profile, x.key, m.now, end); err != nil {
				return nil, err
			}
		}
		if m.stamps[profile] == nil {
			return nil, fmt.Errorf("no %s CA of class %s", x.kind, cradle.Evaluation)
		}
	}
	return m, nil
}

// unit makes the i-th device, with what the store, the log and an auditor expect of it.
func (m *mint) unit(i int) (u providerdb.Unit, err error) {
	serial := plant.Serial(plant.Fleet, i)
	id := cradle.DeviceID(string(plant.Account) + "-" + serial)
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return u, err
	}
	spki, err := x509.MarshalPKIXPublicKey(&ek.PublicKey)
	if err != nil {
		return u, err
	}
	ekCert, err := resign(m.ek, m.maker.Key, replace{m.ekSPKI, spki})
	if err != nil {
		return u, err
	}
	d := provider.Device{ID: id, Account: plant.Account, OEM: plant.OEM, Order: plant.Fleet, Serial: serial, Tier: cradle.Simulator, Maker: plant.Maker,
		Anchor: m.anchor, EKDigest: ca.Digest(spki), EKCert: ekCert, IAK: m.iak, State: cradle.Active, Created: m.now}
	auth := digestOf("station")
	for _, p := range []cradle.Profile{cradle.IAK, cradle.IDevID, cradle.LDevID, cradle.Operational} {
		is, err := m.issue(p, &d, auth)
		if err != nil {
			return u, err
		}
		u.Issued = append(u.Issued, is)
		switch c := is.Certificate.Digest; p {
		case cradle.IAK:
			d.IAKCert = c
		case cradle.IDevID:
			d.IDevIDCert, auth = c, c
		default:
			auth = c
		}
	}
	u.Device = d
	return u, nil
}

func (m *mint) issue(p cradle.Profile, d *provider.Device, auth string) (is providerdb.Issued, err error) {
	s := m.stamps[p]
	serial := ca.LeafSerial(m.now)
	der, spki, err := s.certificate(serial, d)
	if err != nil {
		return is, err
	}
	digest := ca.Digest(der)
	id := serial.Text(36)[:8] + digest[:16] // as the provider's, it ascends with time
	authProfile := map[cradle.Profile]cradle.Profile{cradle.IAK: provider.StationProfile, cradle.IDevID: provider.StationProfile,
		cradle.LDevID: cradle.IDevID, cradle.Operational: cradle.LDevID}[p]
	is.Certificate = provider.Certificate{Digest: digest, Serial: ca.SerialString(serial), Account: d.Account, Device: d.ID, Profile: p, Authority: s.issuer.ID,
		DER: der, NotBefore: s.notBefore, NotAfter: s.notAfter, Slot: provider.Current, Intent: id, Issued: m.now}
	is.Intent = provider.Intent{ID: id, Account: d.Account, Device: d.ID, Profile: p, Operation: provider.Enroll, Authority: s.issuer.ID, AuthCert: auth,
		AuthProfile: authProfile, CSR: digestOf("csr " + digest), SPKI: spki, Challenge: fmt.Sprintf("%012x-%s", m.now.UnixMilli(), digestOf("challenge "+digest)), Serial: is.Certificate.Serial, Created: m.now}
	is.Leaf, err = ledger.NewLeaf(string(d.Account), ledger.KindIssuance, m.now, map[string]any{"certificate": digest, "serial": is.Certificate.Serial,
		"device": d.ID, "profile": p, "order": d.Order, "unit": d.Serial, "ek": d.EKDigest, "intent": id, "authenticated_by": auth,
		"csr": is.Intent.CSR, "tier": d.Tier, "maker": d.Maker, "proved": true})
	return is, err
}

func (m *mint) registration(u *providerdb.Unit, group string) provisioning.Registration {
	c := &u.Issued[len(u.Issued)-1].Certificate
	return provisioning.Registration{ID: provisioning.RegistrationID(u.Device.ID), Group: group, Account: plant.Account, Hub: string(hubName),
		Status: provisioning.Assigned, Substatus: provisioning.InitialAssignment, Operation: "5." + c.Digest[:48], Thumbprint: sha256.Sum256(c.DER),
		NotBefore: c.NotBefore, Newest: c.NotBefore, Delivered: true, Version: 2, Created: m.now, Updated: m.now}
}

func digestOf(s string) string { return ca.Digest([]byte(s)) }
