// Package sim is the load: a factory line and devices with keys in software, in this process, that say
// over the network what cradle-oem and cradle-agent say, connection by connection and request by request
// (oem/enrol.go, device/enrol.go, device/network.go). What the real ones do only for
// themselves is left out: keys are made beforehand, nothing is written to disk, certificates from the server are
// not verified beyond TLS.
package sim

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/custody"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/test/bench/plant"
)

// Unit is a device to be, with its keys.
type Unit struct {
	Serial string
	ID     cradle.DeviceID

	tpm                         *softkey.Device
	idevid, ldevid, operational *softkey.Key
	idevidCert, iakCert         *x509.Certificate
	hub                         interface{ Close() error }
}

// Line is the OEM's station, with what cradle-oem order accept has left in its folder.
type Line struct {
	order    *order.Order
	accepted order.Accepted
	station  tls.Certificate
	lotKey   *ecdsa.PrivateKey
	orderKey *ecdsa.PrivateKey
	roots    *x509.CertPool
	addr     string
	maker    *softkey.Maker
	made     int
}

// OpenLine opens the station of the order plant.Line.
func OpenLine(p *plant.Plant) (*Line, error) {
	dir := func(name string) string { return p.Path("oem", "orders", string(plant.Line), name) }
	l := &Line{addr: p.Addr(), maker: p.Maker, roots: x509.NewCertPool()}
	doc, err := os.ReadFile(dir("order.jws"))
	if err != nil {
		return nil, err
	}
	if l.order, err = order.Peek(doc); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(dir("line.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &l.accepted); err != nil {
		return nil, err
	}
	key, err := order.LoadKey(dir("station.key"))
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(l.accepted.StationCertificate)
	if err != nil {
		return nil, err
	}
	l.station = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	if l.lotKey, err = order.LoadKey(p.Path("oem", "lot.key")); err != nil {
		return nil, err
	}
	if l.orderKey, err = order.LoadKey(p.Path("oem", "order.key")); err != nil {
		return nil, err
	}
	anchors, err := order.Anchors(l.order.ServicesAnchors)
	if err != nil {
		return nil, err
	}
	for _, c := range anchors {
		l.roots.AddCert(c)
	}
	return l, nil
}

// Next makes the keys of the next unit.
func (l *Line) Next() (*Unit, error) {
	l.made++
	u := &Unit{Serial: plant.Serial(plant.Line, l.made)}
	var err error
	if u.ID, err = l.order.DeviceName(u.Serial); err != nil {
		return nil, err
	}
	if u.tpm, err = l.maker.NewDevice(softkey.P256); err != nil {
		return nil, err
	}
	if u.idevid, err = u.tpm.NewIDevID(); err != nil {
		return nil, err
	}
	if u.ldevid, err = u.tpm.NewLDevID(); err != nil {
		return nil, err
	}
	u.operational, err = u.tpm.NewOperational()
	return u, err
}

// dial reaches the server whatever its name resolves to.
func (l *Line) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, l.addr)
}

// client is oem.Station.client.
func (l *Line) client(cert *tls.Certificate) *http.Client {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: l.roots}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig, t.ForceAttemptHTTP2, t.DialContext = conf, true, l.dial
	return &http.Client{Transport: t, Timeout: time.Minute}
}

// Make personalises a unit: over a connection of its own, IAK and then IDevID.
func (l *Line) Make(ctx context.Context, u *Unit) error {
	hc := l.client(&l.station)
	defer hc.CloseIdleConnections()
	iak := u.tpm.IAK.TPMTPublic()
	claim := evidence.Claim{EKCert: u.tpm.EKCert, AttestationKey: iak, Serial: u.Serial, Order: l.order.ID}
	x := exchange{tpm: u.tpm, account: l.order.Account, id: u.ID, auth: l.station.Leaf.Raw, claim: claim}
	var err error
	if u.iakCert, err = x.enrol(ctx, &est.Client{HTTP: hc, URL: l.accepted.IAKURL}, cradle.IAK, u.tpm.IAK); err != nil {
		return fmt.Errorf("IAK of %s: %w", u.Serial, err)
	}
	if u.idevidCert, err = x.enrol(ctx, &est.Client{HTTP: hc, URL: l.accepted.IDevIDURL}, cradle.IDevID, u.idevid); err != nil {
		return fmt.Errorf("IDevID of %s: %w", u.Serial, err)
	}
	return nil
}

// CloseLot hands in a lot of units, which the account's order accepts by itself.
func (l *Line) CloseLot(ctx context.Context, units []*Unit) error {
	list := make([]custody.Unit, len(units))
	now := time.Now().UTC().Truncate(time.Second)
	for i, u := range units {
		ek, err := x509.ParseCertificate(u.tpm.EKCert)
		if err != nil {
			return err
		}
		list[i] = custody.Unit{Serial: u.Serial, Device: u.ID, EK: digest(ek.RawSubjectPublicKeyInfo), IDevID: digest(u.idevidCert.Raw), IAK: digest(u.iakCert.Raw), Made: now}
	}
	r, err := custody.NewReport(l.order, list, now, "cradle bench")
	if err != nil {
		return err
	}
	report, err := custody.SignReport(r, l.lotKey)
	if err != nil {
		return err
	}
	record := custody.Born(r).Next(custody.Party{Role: custody.Account, Name: string(l.order.Account)}, now)
	handover, err := custody.Give(record, l.orderKey)
	if err != nil {
		return err
	}
	hc := l.client(nil)
	defer hc.CloseIdleConnections()
	answer, err := (&order.Client{HTTP: hc, URL: l.order.ProviderURL}).CloseLot(ctx, l.order.ID, order.LotRequest{Report: report, Custody: handover})
	if err != nil {
		return fmt.Errorf("closing the lot: %w", err)
	}
	if answer.State != order.LotAccepted {
		return fmt.Errorf("the lot is %s: %v", answer.State, answer.Reasons)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// exchange is one attested enrolment after another of one device (DESIGN §4.4).
type exchange struct {
	tpm     *softkey.Device
	account cradle.AccountID
	id      cradle.DeviceID
	auth    []byte // the TLS client certificate
	claim   evidence.Claim
}

func (x *exchange) enrol(ctx context.Context, c *est.Client, p cradle.Profile, key *softkey.Key) (*x509.Certificate, error) {
	answer, err := c.Nonce(ctx, cradle.OIDActivation, x.claim)
	if err != nil {
		return nil, err
	}
	ch, err := evidence.ParseChallenge(answer.RespInfo)
	if err != nil {
		return nil, err
	}
	var secret []byte
	if len(ch.CredentialBlob) > 0 {
		if secret, err = x.tpm.Activate(ch.CredentialBlob, ch.EncryptedSecret); err != nil {
			return nil, err
		}
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	extra := evidence.Binding{Challenge: ch.Challenge, Account: x.account, Label: cradle.Label(x.account, p), Secret: secret, AuthCert: x.auth, SPKI: spki}.ExtraData()
	certify, err := x.tpm.Certify(key, extra[:])
	if err != nil {
		return nil, err
	}
	subject := pkix.Name{Organization: []string{string(x.account)}, CommonName: string(x.id)}
	csr, err := evidence.CreateCSR(subject, crypto.Signer(key), &evidence.Bundle{Certify: &certify, Challenge: ch.Challenge})
	if err != nil {
		return nil, err
	}
	return c.SimpleEnroll(ctx, csr)
}
