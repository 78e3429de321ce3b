package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/hub"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/providerdb"
	"github.com/cradle-iot/cradle/provisioning"
	"github.com/cradle-iot/cradle/provisioning/provisioningdb"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// Clients are devices with operational certificates of the account's CA and one key for all, for load on
// provisioning service and hub. The provider's store does not know them, nor does it have to.
type Clients struct {
	Key    *ecdsa.PrivateKey
	Issuer []byte // DER
	List   []Client
}

// Client is one of them.
type Client struct {
	ID  cradle.DeviceID
	DER []byte
}

// TLS is what the i-th shows.
func (c *Clients) TLS(i int) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{c.List[i].DER, c.Issuer}, PrivateKey: c.Key}
}

// NewClients makes n. The server must not run.
func NewClients(ctx context.Context, p *plant.Plant, n int) (c *Clients, err error) {
	db, err := providerdb.Open(ctx, p.Database("provider"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	m, err := newMint(ctx, p, db, "")
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	own := m.stamps[cradle.Operational]
	if own, err = newStamp(own.issuer, cradle.Operational, key, m.now, m.now.Add(24*time.Hour)); err != nil {
		return nil, err
	}
	own.shared = true
	m.stamps[cradle.Operational] = own
	c = &Clients{Key: key, Issuer: own.issuer.Cert.Raw}
	for i := range n {
		serial := plant.Serial(plant.Fleet, i+1)
		d := provider.Device{ID: cradle.DeviceID(string(plant.Account) + "-" + serial), Account: plant.Account, Order: plant.Fleet, Serial: serial, Tier: cradle.Simulator,
			EKDigest: digestOf(serial)}
		is, err := m.issue(cradle.Operational, &d, "")
		if err != nil {
			return nil, err
		}
		c.List = append(c.List, Client{d.ID, is.Certificate.DER})
	}
	return c, nil
}

// LoadHub enters them into the hub's registry. The server must not run.
func (c *Clients) LoadHub(ctx context.Context, p *plant.Plant) (err error) {
	hubs, err := openHub(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hubs.Close()) }()
	now := time.Now().UTC().Truncate(time.Second)
	for i := 0; i < len(c.List); i += batch {
		var ds []hub.Device
		for _, x := range c.List[i:min(i+batch, len(c.List))] {
			thumb := sha256.Sum256(x.DER)
			ds = append(ds, entry(x.ID, thumb, now))
		}
		if err := hubs.LoadDevices(ctx, hubName, ds); err != nil {
			return err
		}
	}
	return nil
}

func entry(id cradle.DeviceID, thumb [32]byte, now time.Time) hub.Device {
	return hub.Device{ID: id, Generation: rand.Text(), ETag: rand.Text(), StatusChanged: now, Created: now, Updated: now,
		Auth: hub.Auth{Type: "selfSigned"}, Primary: hex.EncodeToString(thumb[:])}
}

// LoadRegistrations stores n registrations, assigned, with their entries in the hub's registry, of devices that
// nobody else knows. The server must not run.
func LoadRegistrations(ctx context.Context, p *plant.Plant, n int) (err error) {
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
	groups, err := reg.Groups(ctx)
	if err != nil {
		return err
	}
	if len(groups) == 0 {
		return errors.New("no enrolment group is registered")
	}
	now := time.Now().UTC().Truncate(time.Second)
	for i := 0; i < n; {
		var rs []provisioning.Registration
		var ds []hub.Device
		for ; i < n && len(rs) < batch; i++ {
			id := fmt.Sprintf("%s-r%07d", plant.Account, i)
			thumb := sha256.Sum256([]byte(id))
			rs = append(rs, provisioning.Registration{ID: provisioning.RegistrationID(id), Group: groups[0].ID, Account: plant.Account, Hub: string(hubName),
				Status: provisioning.Assigned, Substatus: provisioning.InitialAssignment, Operation: "5." + digestOf(id)[:48], Thumbprint: thumb,
				NotBefore: now, Newest: now, Delivered: true, Version: 2, Created: now, Updated: now})
			ds = append(ds, entry(cradle.DeviceID(id), thumb, now))
		}
		if err := errors.Join(reg.LoadRegistrations(ctx, rs), hubs.LoadDevices(ctx, hubName, ds)); err != nil {
			return err
		}
	}
	return nil
}
