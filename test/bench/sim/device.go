package sim

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/keys/softkey"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

// tls is the agent's: a new connection for every act, no ALPN, TLS 1.3; never resumed but from the registration to
// the hub (device/ticket.go), by a cache that both share.
func (l *Line) tls(cert *tls.Certificate, cache tls.ClientSessionCache) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: l.roots, ServerName: "localhost", ClientSessionCache: cache}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// http is the agent's client for one act (device/network.go).
func (l *Line) http(cert *tls.Certificate, cache tls.ClientSessionCache) *http.Client {
	return &http.Client{Timeout: 45 * time.Second, Transport: &http.Transport{
		DialContext: l.dial, TLSClientConfig: l.tls(cert, cache), MaxIdleConnsPerHost: 1,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}}
}

// PowerOn is the device's way from its first power to an accepted connection to its hub, which stays open until Off.
func (l *Line) PowerOn(ctx context.Context, u *Unit) error {
	idevid := &tls.Certificate{Certificate: append([][]byte{u.idevidCert.Raw}, l.accepted.IDevIDChain...), PrivateKey: u.idevid, Leaf: u.idevidCert}
	var cas []*x509.Certificate // of one answer, for both certificates
	ldevid, err := l.enrol(ctx, u, idevid, cradle.LDevID, u.ldevid, &cas, l.askTime)
	if err != nil {
		return fmt.Errorf("LDevID of %s: %w", u.ID, err)
	}
	ldevid.Certificate = ldevid.Certificate[:1] // the agent shows it to its issuer alone (device/trust.go)
	operational, err := l.enrol(ctx, u, ldevid, cradle.Operational, u.operational, &cas, nil)
	if err != nil {
		return fmt.Errorf("operational certificate of %s: %w", u.ID, err)
	}
	session := tls.NewLRUClientSessionCache(1)
	hc := l.http(operational, session)
	a, err := (&dps.Client{HTTP: hc, Endpoint: l.order.ProvisioningEndpoint, IDScope: l.order.IDScope}).Register(ctx, string(u.ID))
	hc.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("registering %s: %w", u.ID, err)
	}
	if err := l.connect(ctx, u, a, operational, session); err != nil {
		return fmt.Errorf("connecting %s: %w", u.ID, err)
	}
	return nil
}

// askTime is the agent's first act, on the connection of the first enrolment.
func (l *Line) askTime(ctx context.Context, hc *http.Client) error {
	nonce := make([]byte, 32)
	rand.Read(nonce)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.order.ProviderURL+timestamp.Path+"?nonce="+timestamp.EncodeNonce(nonce), nil)
	if err != nil {
		return err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the provider answers %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, timestamp.MaxBody))
	if err != nil {
		return err
	}
	_, err = timestamp.Parse(body)
	return err
}

// enrol is one act of the agent's: cacerts where it knows no CAs yet, nonce and simpleenroll on one connection, after
// what comes first; cacerts at the end where what it knows does not hold the issuer.
func (l *Line) enrol(ctx context.Context, u *Unit, auth *tls.Certificate, p cradle.Profile, key *softkey.Key, cas *[]*x509.Certificate, first func(context.Context, *http.Client) error) (*tls.Certificate, error) {
	hc := l.http(auth, nil)
	defer hc.CloseIdleConnections()
	if first != nil {
		if err := first(ctx, hc); err != nil {
			return nil, fmt.Errorf("time: %w", err)
		}
	}
	c := &est.Client{HTTP: hc, URL: l.order.ProviderURL + est.WellKnown + cradle.Label(l.order.Account, p)}
	if len(*cas) == 0 {
		var err error
		if *cas, err = c.CACerts(ctx); err != nil {
			return nil, err
		}
	}
	x := exchange{tpm: u.tpm, account: l.order.Account, id: u.ID, auth: auth.Certificate[0], claim: evidence.Claim{Serial: u.Serial}}
	leaf, err := x.enrol(ctx, c, p, key)
	if err != nil {
		return nil, err
	}
	certs := chain(leaf, *cas)
	if len(certs) == 1 {
		if *cas, err = c.CACerts(ctx); err != nil {
			return nil, err
		}
		certs = chain(leaf, *cas)
	}
	return &tls.Certificate{Certificate: certs, PrivateKey: key, Leaf: leaf}, nil
}

// chain is what the agent shows: the leaf and its issuers below the root.
func chain(leaf *x509.Certificate, cas []*x509.Certificate) [][]byte {
	out := [][]byte{leaf.Raw}
	for _, c := range cas {
		if string(c.RawSubject) == string(leaf.RawIssuer) && string(c.RawSubject) != string(c.RawIssuer) {
			out = append(out, c.Raw)
		}
	}
	return out
}

func (l *Line) connect(ctx context.Context, u *Unit, a *dps.Assignment, cert *tls.Certificate, session tls.ClientSessionCache) error {
	raw, err := l.dial(ctx, "tcp", "")
	if err != nil {
		return err
	}
	conn := tls.Client(raw, l.tls(cert, session))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return err
	}
	hub, err := mqtt.Dial(ctx, conn, mqtt.Options{ClientID: string(a.DeviceID), Username: iothub.UserName("localhost", a.DeviceID),
		KeepAlive: 4 * time.Minute, Clean: true, MaxPacket: 256 << 10})
	if err != nil {
		return err
	}
	u.hub = hub
	return nil
}

// Off disconnects the device.
func (u *Unit) Off() {
	if u.hub != nil {
		u.hub.Close()
	}
}
