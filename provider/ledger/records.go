package ledger

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/order"
)

// records are the rows of an export, and what the leaves said about each.
type records struct {
	accountRow  *AccountRow
	accountKey  *ecdsa.PublicKey
	profiles    map[string]string // digest by name, by the leaves so far; nil: none said one
	oems        map[string]*ecdsa.PublicKey
	authorities map[string]*authorityRecord
	makers      map[string]*makerRecord // OEMs and anchors of the installation's log
	orders      map[string]*orderRecord
	lots        map[string]*lotRecord
	devices     map[string]*deviceRecord
	certs       map[digest]*certRecord
	serials     map[string]struct{}
	eks         map[string]string // digest -> device
	registrars  map[registrarKey][]digest
}

type authorityRecord struct {
	kind    string
	oem     string
	role    string
	state   string
	created time.Time
	at      int64    // index of the leaf that named it last
	said    []string // roles, by the leaves; a root may have several
	own     bool     // of the account: a leaf must name it
	logged  bool
	cert    *x509.Certificate
}

type orderRecord struct {
	row    OrderRow
	signed *order.Order // nil: its signatures are wrong
	units  map[string]string
	state  string // by the leaves so far
	reason string // of that state
	begun  time.Time
	lost   int64 // units that are not on record, by the leaves
}

type lotRecord struct {
	row    LotRow
	report string // digest
	logged bool
	state  string
}

type deviceRecord struct {
	row      DeviceRow
	standing cradle.DeviceState // by the leaves so far; empty: never touched by an operator
	final    time.Time          // when it was revoked or retired
	record   string             // DeviceRow.Record
	ldevid   bool               // it got one
	born     bool               // a leaf holds its record
}

type certRecord struct {
	serial, device, profile string
	line, slot              string
	challenge, crl, intent  string
	csr, by, key, reason    string
	issued, revokedAt       time.Time
	revoked                 bool
	notAfter                time.Time
	leaves                  int
	unproved                bool               // by its authority
	standing                cradle.DeviceState // by the leaves that speak of it alone
	ended                   time.Time          // when they revoked it
}

func (c *certRecord) lineage() lineage {
	if c.line == "" {
		return lineage{c.device, c.profile}
	}
	return lineage{c.device, c.line}
}

func newRecords() records {
	return records{oems: map[string]*ecdsa.PublicKey{}, authorities: map[string]*authorityRecord{}, makers: map[string]*makerRecord{}, orders: map[string]*orderRecord{},
		lots: map[string]*lotRecord{}, devices: map[string]*deviceRecord{}, certs: map[digest]*certRecord{},
		serials: map[string]struct{}{}, eks: map[string]string{}, registrars: map[registrarKey][]digest{}}
}

func hexDigest(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// own reports a row that is not of this log's account.
func (v *verification) own(subject, account string) {
	if account != v.header.Log {
		v.find(RowForeign, subject, "it is of account %q", account)
	}
}

func (v *verification) duplicate(subject string, there bool) bool {
	if there {
		v.find(RowDuplicate, subject, "it has two rows")
	}
	return there
}

func (v *verification) account(r *AccountRow) {
	if v.duplicate("account "+r.ID, v.accountRow != nil) {
		return
	}
	v.own("account "+r.ID, r.ID)
	v.accountRow = r
	key, err := order.ParsePublic(r.OrderKey)
	if err != nil {
		v.find(AccountChanged, "account "+r.ID, "its order key: %v", err)
	}
	v.accountKey = key
}

func (v *verification) oem(r *OEMRow) {
	_, there := v.oems[r.ID]
	if v.duplicate("OEM "+r.ID, there) {
		return
	}
	key, err := order.ParsePublic(r.OrderKey)
	if err != nil {
		v.find(OrderChanged, "OEM "+r.ID, "its order key: %v", err)
	}
	v.oems[r.ID] = key
	if v.header.Log == installation {
		v.makers["OEM "+r.ID] = &makerRecord{code: OEMChanged, row: [2]string{hexDigest(r.OrderKey), hexDigest(r.LotKey)}, created: r.Created}
	}
}

func (v *verification) authority(r *AuthorityRow) {
	name := "authority " + r.ID
	if v.duplicate(name, v.authorities[r.ID] != nil) {
		return
	}
	a := &authorityRecord{kind: r.Kind, oem: r.OEM, role: Role(r.Kind, r.Class, r.OEM), state: r.State, created: r.Created, own: r.Kind != station || r.Account != ""}
	v.authorities[r.ID] = a
	if a.own {
		v.own(name, r.Account)
	}
	if r.State == "" || !a.own && r.State != "active" { // an OEM has one CA of stations
		v.find(AuthorityChanged, name, "the row says that it is %q", r.State)
	}
	if hexDigest(r.DER) != r.ID {
		v.find(AuthorityChanged, name, "its certificate has the digest %s", hexDigest(r.DER))
		return
	}
	cert, err := x509.ParseCertificate(r.DER)
	if err != nil {
		v.find(AuthorityChanged, name, "%v", err)
		return
	}
	a.cert = cert
	for _, der := range r.Chain { // nearest first
		above, err := x509.ParseCertificate(der)
		if err == nil {
			err = cert.CheckSignatureFrom(above)
		}
		if err != nil {
			v.find(AuthorityChanged, name, "the chain above it: %v", err)
			return
		}
		cert = above
	}
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		v.find(AuthorityChanged, name, "the chain above it ends at %q, which is no root", cert.Subject)
	}
}

func (v *verification) order(r *OrderRow) {
	name := "order " + r.ID
	if v.duplicate(name, v.orders[r.ID] != nil) {
		return
	}
	v.sum.Orders++
	o := &orderRecord{row: *r, units: map[string]string{}}
	o.row.JWS = nil // checked here, not kept
	v.orders[r.ID] = o
	v.own(name, r.Account)
	oem, known := v.oems[r.OEM]
	if !known {
		v.find(OrderChanged, name, "its OEM %q has no row", r.OEM)
	}
	if r.State == "signed" {
		oem = nil // it waits for the countersignature
	}
	if v.accountKey == nil || oem == nil && r.State != "signed" && r.State != "withdrawn" {
		return // said already
	}
	signed, err := order.Verify(r.JWS, v.accountKey, oem)
	if err != nil && r.State == "withdrawn" { // perhaps before it was countersigned
		signed, err = order.Verify(r.JWS, v.accountKey, nil)
	}
	switch {
	case err != nil:
		v.find(OrderChanged, name, "%v", err)
		return
	case string(signed.ID) != r.ID, string(signed.Account) != r.Account, string(signed.OEM) != r.OEM, signed.Quantity != r.Quantity:
		v.find(OrderChanged, name, "row and signed order differ: the order is %s of %s for %s, quantity %d; the row says %s for %s, quantity %d",
			signed.ID, signed.Account, signed.OEM, signed.Quantity, r.Account, r.OEM, r.Quantity)
	}
	o.signed = signed
}

func (v *verification) lot(r *LotRow) {
	if v.duplicate("lot "+r.ID, v.lots[r.ID] != nil) {
		return
	}
	l := &lotRecord{row: *r, report: hexDigest(r.Report)}
	if head := payloadDigest(r.Custody); head != r.Head {
		v.find(LotChanged, "lot "+r.ID, "its custody record has the digest %s, the row says %s", head, r.Head)
	}
	if o := v.orders[r.Order]; o != nil && o.row.OEM != r.OEM {
		v.find(LotChanged, "lot "+r.ID, "the row says OEM %s, its order is for %s", r.OEM, o.row.OEM)
	}
	l.row.Report, l.row.Custody = nil, nil
	v.lots[r.ID] = l
	if v.orders[r.Order] == nil {
		v.find(OrderMissing, "order "+r.Order, "lot %s is of it", r.ID)
	}
}

// payloadDigest is the digest of what a JWS (RFC 7515 §7.2) says.
func payloadDigest(jws []byte) string {
	var doc struct {
		Payload string `json:"payload"`
	}
	if err := json.Unmarshal(jws, &doc); err != nil {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(doc.Payload)
	if err != nil {
		return ""
	}
	return hexDigest(b)
}

func (v *verification) device(r *DeviceRow) {
	name := "device " + r.ID
	if v.duplicate(name, v.devices[r.ID] != nil) {
		return
	}
	v.sum.Devices++
	rec := &deviceRecord{row: *r, record: r.Record()}
	rec.row.EKCert, rec.row.IAK = nil, nil // digested
	v.devices[r.ID] = rec
	v.own(name, r.Account)
	if other, there := v.eks[r.EK]; there && r.EK != "" {
		v.find(UnitDuplicate, name, "device %s has the same TPM", other)
	}
	v.eks[r.EK] = r.ID
	if r.Origin != "" && r.Order == "" && r.IDevIDCert == "" && r.IAKCert == "" {
		return // it came by a credential, which its leaves name
	}
	o := v.orders[r.Order]
	if o == nil {
		v.find(DeviceOutside, name, "its order %q does not exist", r.Order)
		return
	}
	if other, there := o.units[r.Serial]; there {
		v.find(UnitDuplicate, name, "device %s has the same serial %s", other, r.Serial)
	}
	o.units[r.Serial] = r.ID
	if n := int64(len(o.units)); n > o.row.Quantity {
		v.find(OrderOverrun, "order "+r.Order, "device %s is unit %d of %d", r.ID, n, o.row.Quantity)
	}
	if o.row.OEM != r.OEM {
		v.find(DeviceChanged, name, "the row says OEM %s, its order is for %s", r.OEM, o.row.OEM)
	}
	if o.signed == nil {
		return
	}
	if !o.signed.InRange(r.Serial) {
		v.find(DeviceOutside, name, "serial %q is outside of order %s", r.Serial, r.Order)
	} else if want, err := o.signed.DeviceName(r.Serial); err != nil || string(want) != r.ID {
		v.find(DeviceOutside, name, "order %s names unit %s %q", r.Order, r.Serial, want)
	}
}

func (v *verification) certificate(r *CertificateRow) {
	name := "certificate " + r.Digest
	d, ok := parseDigest(r.Digest)
	if !ok {
		v.find(CertificateChanged, name, "that is not a digest")
		return
	}
	if v.duplicate(name, v.certs[d] != nil) {
		return
	}
	v.sum.Certificates++
	c := &certRecord{serial: r.Serial, profile: r.Profile, line: r.Lineage, slot: r.Slot, challenge: r.Challenge, intent: r.Intent, csr: r.CSR, by: r.By, key: r.Key, crl: r.CRLReason, reason: r.Reason, issued: r.Issued, revoked: r.Revoked, revokedAt: r.RevokedAt, notAfter: r.NotAfter}
	v.certs[d] = c
	v.own(name, r.Account)
	if _, there := v.serials[r.Serial]; there {
		v.find(SerialDuplicate, name, "another certificate has the serial %s", r.Serial)
	}
	v.serials[r.Serial] = struct{}{}
	if deviceless(r.Profile) && r.Lineage != r.Profile {
		v.find(CertificateChanged, name, "the row says lineage %q of a %s certificate", r.Lineage, r.Profile)
	}
	if r.Profile == station {
		c.device = r.Device
		if v.orders[r.Device] == nil {
			v.find(OrderMissing, name, "its order %q does not exist", r.Device)
		}
	} else if r.Profile == registrar {
		c.device = r.Device
	} else if dev := v.devices[r.Device]; dev != nil {
		c.device = dev.row.ID // shares the string
	} else {
		c.device = r.Device
		v.find(DeviceMissing, name, "its device %q does not exist", r.Device)
	}
	v.der(name, r, c)
}

// der compares a row with the certificate in it and verifies the certificate.
func (v *verification) der(name string, r *CertificateRow, c *certRecord) {
	if got := hexDigest(r.DER); got != r.Digest {
		v.find(CertificateChanged, name, "the stored certificate has the digest %s", got)
		return
	}
	cert, err := x509.ParseCertificate(r.DER)
	if err != nil {
		v.find(CertificateChanged, name, "%v", err)
		return
	}
	if got := cert.SerialNumber.Text(16); got != r.Serial {
		v.find(CertificateChanged, name, "the row says serial %s, the certificate %s", r.Serial, got)
	}
	if !cert.NotBefore.Equal(r.NotBefore) || !cert.NotAfter.Equal(r.NotAfter) {
		v.find(CertificateChanged, name, "the row says %s to %s, the certificate %s to %s", stamp(r.NotBefore), stamp(r.NotAfter), stamp(cert.NotBefore), stamp(cert.NotAfter))
	}
	if r.Intent != "" && r.Key != hexDigest(cert.RawSubjectPublicKeyInfo) {
		v.find(CertificateChanged, name, "its intent, or the list of devices' keys, does not have its key for device %s", r.Device)
	}
	if s := cert.Subject; r.Profile != station && (s.CommonName != r.Device || len(s.Organization) != 1 || s.Organization[0] != r.Account) {
		v.find(CertificateChanged, name, "the row says device %s of %s, the certificate %q", r.Device, r.Account, s)
	}
	a := v.authorities[r.Authority]
	switch {
	case a == nil:
		v.find(CertificateForged, name, "its authority %q does not exist", r.Authority)
	case !deviceless(r.Profile) && r.Lineage != r.Profile && issuerOf(r.Profile) != "idevid" && a.kind == signsUnproved(r.Profile, r.Lineage):
		c.unproved = true
		fallthrough
	case a.kind == issuerOf(r.Profile) && !strings.HasSuffix(r.Lineage, registered):
		if o := v.orders[r.Device]; r.Profile == station && o != nil && o.row.OEM != a.oem {
			v.find(CertificateForged, name, "its authority %s is of OEM %q, its order is for %s", r.Authority, a.oem, o.row.OEM)
		}
		if a.cert == nil {
			break
		}
		if err := cert.CheckSignatureFrom(a.cert); err != nil {
			v.find(CertificateForged, name, "its authority %s did not sign it: %v", r.Authority, err)
		}
	default:
		v.find(CertificateForged, name, "a %s authority does not issue %s certificates", a.kind, r.Profile)
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
