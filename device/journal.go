package device

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/cradle-iot/cradle"
)

// Journal is what the device has and is doing. A change is made on a copy, saved, and only then
// acted upon. Slices in it are replaced, never written into.
type Journal struct {
	Account cradle.AccountID `json:"account"`
	Device  cradle.DeviceID  `json:"device"`
	Floor   time.Time        `json:"floor"` // latest time that somebody trusted vouched for

	Issuers  map[cradle.Profile][][]byte `json:"issuers,omitempty"` // cacerts by profile, verified when fetched; DER
	LDevID   Credential                  `json:"ldevid"`
	Slots    [2]Slot                     `json:"slots"` // the operational lineage
	Exchange *Exchange                   `json:"exchange,omitempty"`

	Hub       string          `json:"hub,omitempty"` // as assigned: host, or host:port
	HubDevice cradle.DeviceID `json:"hub_device,omitempty"`
}

func (j Journal) clone() Journal {
	j.Issuers = maps.Clone(j.Issuers)
	return j
}

// issuersOf returns what may have issued a certificate of that profile: what cacerts answered for it, else what it
// answered for another, in which the account's other issuing CAs may be.
func (j *Journal) issuersOf(p cradle.Profile) [][]byte {
	if own := j.Issuers[p]; len(own) > 0 {
		return own
	}
	return slices.Concat(slices.Collect(maps.Values(j.Issuers))...)
}

// Credential is a certificate and its issuers below the anchor, leaf first, in DER.
type Credential struct {
	Chain  [][]byte  `json:"chain,omitempty"`
	Issued time.Time `json:"issued,omitzero"` // when it arrived, by our time
}

func (c *Credential) leaf() *x509.Certificate {
	if len(c.Chain) == 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(c.Chain[0])
	if err != nil {
		return nil
	}
	return cert
}

// SlotState is how far a slot of the operational lineage has come.
type SlotState string

// The states, in order.
const (
	Empty       SlotState = ""
	Requested   SlotState = "requested"   // key made, certificate asked for
	Issued      SlotState = "issued"      // certificate here
	Provisioned SlotState = "provisioned" // the provisioning service accepted it
	Active      SlotState = "active"      // the hub accepted it
)

// Slot is one of two places of the operational lineage.
type Slot struct {
	State SlotState `json:"state"`
	Key   []byte    `json:"key,omitempty"` // TPM key blob
	Credential
}

// Authenticator names the credential that authenticates an exchange at TLS.
type Authenticator string

// The authenticators.
const (
	ByIDevID Authenticator = "idevid"
	ByLDevID Authenticator = "ldevid"
	BySlot0  Authenticator = "slot-0"
	BySlot1  Authenticator = "slot-1"
)

func bySlot(i int) Authenticator { return [2]Authenticator{BySlot0, BySlot1}[i] }

// Exchange is a certificate request that was sent, or is about to be. Its bytes stay the same however often it is
// sent, so that a lost reply is answered with the same certificate (DESIGN §4.7).
type Exchange struct {
	Profile   cradle.Profile `json:"profile"`
	Renew     bool           `json:"renew"` // simplereenroll
	Slot      int            `json:"slot"`  // operational: where the certificate goes
	Auth      Authenticator  `json:"auth"`
	AuthCert  [32]byte       `json:"auth_cert"` // SHA-256 of the authenticator's leaf
	Challenge []byte         `json:"challenge"`
	CSR       []byte         `json:"csr"`
}

// renewalTime is when c is renewed: when fraction of the life that it had on arrival has passed, moved by up to
// a tenth either way so that a fleet made together does not renew together. The same
// certificate always gives the same time.
func (c *Credential) renewalTime(fraction float64) time.Time {
	leaf := c.leaf()
	if leaf == nil {
		return time.Time{}
	}
	from := c.arrived(leaf)
	sum := sha256.Sum256(leaf.Raw)
	jitter := float64(binary.BigEndian.Uint64(sum[:])>>11) / (1 << 53)
	f := min(fraction*(0.9+0.2*jitter), 0.95)
	return from.Add(time.Duration(f * float64(leaf.NotAfter.Sub(from))))
}

// arrived is when the certificate came, by our clock of then, or its notBefore when that clock was wrong:
// issuers backdate, by more than the life of short-lived certificates.
func (c *Credential) arrived(leaf *x509.Certificate) time.Time {
	if c.Issued.Before(leaf.NotBefore) || c.Issued.After(leaf.NotAfter) {
		return leaf.NotBefore
	}
	return c.Issued
}

func (c *Credential) expired(now time.Time) bool {
	leaf := c.leaf()
	return leaf == nil || now.After(leaf.NotAfter)
}

func (c *Credential) is(cert []byte) bool { return len(c.Chain) > 0 && bytes.Equal(c.Chain[0], cert) }
