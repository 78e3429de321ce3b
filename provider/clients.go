package provider

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"path"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ca"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// BasicUser is a user of HTTP Basic at one profile of an account.
type BasicUser struct {
	Account  cradle.AccountID
	Profile  cradle.Profile
	Name     string
	Password string      // slow hash (basic.go)
	Names    string      // pattern of the device names it may ask for; empty: any
	Tier     cradle.Tier // of the devices that come by it
	Disabled bool
	Created  time.Time
}

// ClientCA is another CA whose certificates authenticate clients at one profile of an account.
type ClientCA struct {
	ID       string // SHA-256 of its first certificate with the account and profile, shortened
	Account  cradle.AccountID
	Profile  cradle.Profile
	Certs    [][]byte // DER: anchors and intermediates
	Tier     cradle.Tier
	OEM      cradle.OEMID // admits the units of this OEM's accepted lots
	Names    string       // pattern of the names that a unit without one may ask for
	Disabled bool
	Created  time.Time
}

// ClientUnit is a line of a manifest.
type ClientUnit struct {
	Unit string          // kind and value: "id:", "sn:" (subject serialNumber) or "sha256:" (of the certificate)
	Name cradle.DeviceID // empty: the client's wish
}

// FoundUnit is a unit of a manifest as the store knows it.
type FoundUnit struct {
	ClientUnit
	Device   Device // when the manifest names it: the account's device of that name, zero when there is none yet
	Recorded bool   // the certificate is on record here
}

// Clients keeps who may enrol without evidence.
type Clients interface {
	// SetBasicUser stores a user, in place of one of the same account, profile and name.
	SetBasicUser(ctx context.Context, u BasicUser, leaf ledger.Leaf) error
	BasicUser(ctx context.Context, account cradle.AccountID, profile cradle.Profile, name string) (BasicUser, error) // NotFound
	BasicUsers(ctx context.Context, account cradle.AccountID) ([]BasicUser, error)
	// BasicProfiles lists the accounts and profiles that have a user who is not disabled; nothing else is filled in.
	BasicProfiles(ctx context.Context) ([]BasicUser, error)
	// SetClientCA stores a CA with its manifest, in place of what was stored under its ID.
	SetClientCA(ctx context.Context, c ClientCA, units []ClientUnit, leaf ledger.Leaf) error
	ClientCAs(ctx context.Context, account cradle.AccountID) ([]ClientCA, error) // without an account: all
	// ClientUnit finds the first of units, of which there is at least one, in the CA's manifest (NotFound), and says whether
	// the certificate with that serial number and digest is on record.
	ClientUnit(ctx context.Context, c ClientCA, units []string, serial cradle.CertSerial, digest string) (FoundUnit, error)
	// UnitsOf returns the devices of an OEM's accepted lots in the account with that serial number.
	UnitsOf(ctx context.Context, account cradle.AccountID, oem cradle.OEMID, serial string) ([]Device, error)
	// Heal lifts the quarantine of all lineages of a device that began without evidence; it returns how many.
	Heal(ctx context.Context, account cradle.AccountID, id cradle.DeviceID, leaf ledger.Leaf) (int64, error)
}

// clientProfiles says which profiles of an account admit clients without evidence, because an operator
// registered a user or a CA there.
type clientProfiles map[clientKey]*clientsOf

type clientKey struct {
	account cradle.AccountID
	profile cradle.Profile
}

type clientsOf struct {
	basic bool
	cas   []*clientCA
}

// admitsMore reports whether a client that was not admitted may be now. Both may be nil.
func (c *clientsOf) admitsMore(was *clientsOf) bool {
	if c == nil || was == nil {
		return c != nil
	}
	return c.basic && !was.basic || len(c.cas) > len(was.cas)
}

func (p *Provider) readClients(ctx context.Context) (clientProfiles, error) {
	out := clientProfiles{}
	at := func(a cradle.AccountID, pr cradle.Profile) *clientsOf {
		k := clientKey{a, pr}
		if out[k] == nil {
			out[k] = new(clientsOf)
		}
		return out[k]
	}
	users, err := p.store.BasicProfiles(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range users {
		at(u.Account, u.Profile).basic = true
	}
	cas, err := p.store.ClientCAs(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, c := range cas {
		if c.Disabled {
			continue
		}
		open, err := openClientCA(c)
		if err != nil {
			return nil, err
		}
		k := at(c.Account, c.Profile)
		k.cas = append(k.cas, open)
	}
	return out, nil
}

// clients returns who may come to the endpoint without evidence; nil for nobody.
func (p *Provider) clients(e Endpoint) *clientsOf {
	return p.dir.Load().clients[clientKey{e.Account, e.Profile}]
}

// unprovedHere reports whether the endpoint issues certificates whose key nothing proved.
func (p *Provider) unprovedHere(e Endpoint) bool {
	rules, err := p.profile(e.Account, e.Profile)
	return err == nil && !rules.Kind.Birth() && (rules.Evidence != ca.EvidenceRequired || p.clients(e) != nil)
}

// checkClient checks what users and client CAs have in common. IDevID and IAK never take clients without
// evidence: they are born under an order.
func (p *Provider) checkClient(ctx context.Context, account cradle.AccountID, profile cradle.Profile, names string, tier *cradle.Tier) error {
	if _, err := p.account(ctx, account); err != nil {
		return err
	}
	rules, err := p.profile(account, profile)
	if err != nil {
		return err
	}
	if rules.Kind.Birth() {
		return cradle.Errorf(cradle.Invalid, "profile %s is for devices on the line alone: evidence is never optional there", profile).
			WithHint("choose ldevid, operational or a profile of the account's own")
	}
	if _, err := path.Match(names, "x"); err != nil || len(names) > 128 {
		return cradle.Errorf(cradle.Invalid, "%q is no pattern of names", names).WithHint("write it like gw-*")
	}
	if *tier == "" {
		*tier = cradle.SoftwareKey
	}
	_, err = cradle.ParseTier(string(*tier))
	return err
}

func nameAllowed(pattern string, id cradle.DeviceID) bool {
	if pattern == "" {
		return true
	}
	ok, err := path.Match(pattern, string(id))
	return err == nil && ok
}

// wishedName is the device that a subject names, or "". Of two common names none is the right one.
func wishedName(subject pkix.Name) (cradle.DeviceID, error) {
	var names int
	for _, a := range subject.Names {
		if a.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			names++
		}
	}
	cn := subject.CommonName
	switch {
	case names > 1:
		return "", cradle.Errorf(cradle.Invalid, "the subject has %d common names", names).WithHint("give it the device's name alone")
	case cn == "":
		return "", nil
	}
	id := strings.ToLower(cn)
	if err := cradle.CheckID("device", id); err != nil {
		return "", cradle.Errorf(cradle.Invalid, "the common name %.80q of the CSR is no device name: %v", cn, err).
			WithHint("use 1 to %d of a-z, 0-9 and inner '-', '.', '_'", cradle.MaxIDLen)
	}
	return cradle.DeviceID(id), nil
}
