package world

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/internal/mqtt"
	"github.com/cradle-iot/cradle/keys/tpmkey"
	"github.com/cradle-iot/cradle/protocol/dps"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/settings"
)

// Client speaks for a unit whose agent is off, with the keys in its TPM: what a thief of the device, or
// other software on it, could say to the services.
type Client struct {
	Unit    *Unit
	TPM     *tpmkey.TPM
	Journal device.Journal

	w   *World
	set *settings.Agent
}

// Client opens a unit's TPM and journal. The agent must be off; close the client before it is on again.
func (w *World) Client(u *Unit) *Client {
	w.T.Helper()
	s, err := settings.Load(u.Config())
	if err != nil {
		w.T.Fatal(err)
	}
	tpm, err := tpmkey.Open(w.T.Context(), u.TPM.Socket())
	if err != nil {
		w.T.Fatalf("TPM of %s: %v", u.ID, err)
	}
	w.T.Cleanup(func() { tpm.Close() })
	c := &Client{Unit: u, TPM: tpm, w: w, set: s}
	var best uint64
	for _, name := range []string{"journal.a", "journal.b"} {
		b, err := os.ReadFile(filepath.Join(s.StateDir, name))
		if err != nil {
			continue
		}
		head, body, _ := bytes.Cut(b, []byte("\n"))
		var magic string
		var version int
		var generation uint64
		if _, err := fmt.Sscan(string(head), &magic, &version, &generation); err != nil {
			w.T.Fatalf("%s of %s: %v", name, u.ID, err)
		}
		var j device.Journal
		if generation > best && json.Unmarshal(body, &j) == nil {
			best, c.Journal = generation, j
		}
	}
	return c
}

// Close closes the TPM.
func (c *Client) Close() { c.TPM.Close() }

// Certificate is one of the unit's credentials, for TLS.
func (c *Client) Certificate(which device.Authenticator) *tls.Certificate {
	c.w.T.Helper()
	ctx := c.w.T.Context()
	var chain [][]byte
	var key crypto.Signer
	var err error
	switch which {
	case device.ByIDevID:
		var b []byte
		if b, err = os.ReadFile(c.set.IDevID); err != nil {
			break
		}
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			chain = append(chain, block.Bytes)
		}
		key, err = c.TPM.EnsureIDevID(ctx)
	case device.ByLDevID:
		chain = c.Journal.LDevID.Chain
		key, err = c.TPM.EnsureLDevID(ctx)
	default:
		slot := c.Journal.Slots[0]
		if which == device.BySlot1 {
			slot = c.Journal.Slots[1]
		}
		chain = slot.Chain
		key, err = c.TPM.LoadKey(ctx, slot.Key)
	}
	if err != nil {
		c.w.T.Fatalf("%s of %s: %v", which, c.Unit.ID, err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		c.w.T.Fatalf("%s of %s: %v", which, c.Unit.ID, err)
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
}

// Active names the slot that the hub accepted last.
func (c *Client) Active() device.Authenticator {
	c.w.T.Helper()
	for i, s := range c.Journal.Slots {
		if s.State == device.Active {
			return [2]device.Authenticator{device.BySlot0, device.BySlot1}[i]
		}
	}
	c.w.T.Fatalf("%s has no active slot", c.Unit.ID)
	return ""
}

// TLS is a client's configuration with a certificate, nil for none.
func (w *World) TLS(cert *tls.Certificate) *tls.Config {
	w.T.Helper()
	c := &tls.Config{RootCAs: w.Anchors(), MinVersion: tls.VersionTLS12, ServerName: "localhost"}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// HTTP is a client that shows a certificate, nil for none.
func (w *World) HTTP(cert *tls.Certificate) *http.Client {
	w.T.Helper()
	t := &http.Transport{TLSClientConfig: w.TLS(cert)}
	w.T.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: time.Minute}
}

// LabelURL is the base of an EST label of the account.
func (w *World) LabelURL(p cradle.Profile) string {
	return w.URL() + est.WellKnown + cradle.Label(Account, p)
}

// EST is a client of one of the account's labels.
func (w *World) EST(p cradle.Profile, cert *tls.Certificate) *est.Client {
	w.T.Helper()
	return &est.Client{HTTP: w.HTTP(cert), URL: w.LabelURL(p)}
}

// Request makes a certificate request with evidence: a nonce from the provider, and the key certified by the TPM.
func (c *Client) Request(ctx context.Context, p cradle.Profile, auth *tls.Certificate, key *tpmkey.Key) ([]byte, error) {
	c.w.T.Helper()
	answer, err := c.w.EST(p, auth).Nonce(ctx, cradle.OIDActivation, evidence.Claim{Serial: c.Unit.Serial})
	if err != nil {
		return nil, err
	}
	ch, err := evidence.ParseChallenge(answer.RespInfo)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	extra := evidence.Binding{Challenge: ch.Challenge, Account: Account, Label: cradle.Label(Account, p), AuthCert: auth.Certificate[0], SPKI: spki}.ExtraData()
	certify, err := c.TPM.Certify(ctx, key, extra[:])
	if err != nil {
		return nil, err
	}
	return evidence.CreateCSR(pkix.Name{Organization: []string{Account}, CommonName: string(c.Unit.ID)}, key, &evidence.Bundle{Certify: &certify, Challenge: ch.Challenge})
}

// Enrol asks for a certificate of the LDevID or operational profile for a key of the TPM, with evidence.
func (c *Client) Enrol(ctx context.Context, p cradle.Profile, auth *tls.Certificate) (*x509.Certificate, error) {
	c.w.T.Helper()
	key, err := c.TPM.EnsureLDevID(ctx)
	if p == cradle.Operational {
		var blob []byte
		if blob, err = c.TPM.CreateKey(ctx); err == nil {
			key, err = c.TPM.LoadKey(ctx, blob)
		}
	}
	if err != nil {
		return nil, err
	}
	csr, err := c.Request(ctx, p, auth, key)
	if err != nil {
		return nil, err
	}
	return c.w.EST(p, auth).SimpleEnroll(ctx, csr)
}

// Register registers with the provisioning service.
func (c *Client) Register(ctx context.Context, cert *tls.Certificate) error {
	c.w.T.Helper()
	_, err := (&dps.Client{HTTP: c.w.HTTP(cert), Endpoint: c.set.Provisioning.Endpoint, IDScope: c.set.Provisioning.IDScope}).Register(ctx, string(c.Unit.ID))
	return err
}

// Connect connects to the hub and leaves again.
func (c *Client) Connect(ctx context.Context, cert *tls.Certificate) error {
	c.w.T.Helper()
	host, _, _ := strings.Cut(c.Journal.Hub, ":")
	conn, err := (&tls.Dialer{Config: c.w.TLS(cert)}).DialContext(ctx, "tcp", c.w.Addr)
	if err != nil {
		return err
	}
	m, err := mqtt.Dial(ctx, conn, mqtt.Options{ClientID: string(c.Unit.ID), Username: iothub.UserName(host, c.Unit.ID), Clean: true, KeepAlive: time.Minute})
	if err != nil {
		return err
	}
	return m.Close()
}
