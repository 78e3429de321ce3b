package oem

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/order"
)

// line is an accepted order, verified each time it is opened: its file may have been changed since.
type line struct {
	*Station
	order    *order.Order
	doc      []byte
	accepted order.Accepted
	station  tls.Certificate
	issuers  []*x509.Certificate // of IDevID and IAK certificates, leaf's issuer first, without the root
	roots    []*x509.Certificate // the order's account anchors
}

// open reads and verifies an accepted order and the station's credential.
func (s *Station) open(id cradle.OrderID) (*line, error) {
	l, err := s.readOrder(id)
	if err != nil {
		return nil, err
	}
	again := "accept the order again with: cradle-oem order accept FILE"
	b, err := mine(s.orderPath(id, "line.json"), "the provider has not answered to order "+string(id)+" yet", again)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &l.accepted); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "line.json of order %s: %w", id, err).WithHint("%s", again)
	}
	key, err := order.LoadKey(s.orderPath(id, "station.key"))
	if err != nil {
		return nil, err
	}
	cert, err := l.checkAccepted(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	// The provider needs no chain of a certificate that its own CA issued (RFC 8446 §4.4.2).
	l.station = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	return l, nil
}

// readOrder reads an order of this folder and verifies it by the pinned keys.
func (s *Station) readOrder(id cradle.OrderID) (*line, error) {
	if err := cradle.CheckID("order", string(id)); err != nil {
		return nil, cradle.Errorf(cradle.Invalid, "%w", err).WithHint("give the id that cradle-oem order accept printed")
	}
	pub, err := s.Public()
	if err != nil {
		return nil, err
	}
	doc, err := mine(s.orderPath(id, "order.jws"), "order "+string(id)+" was not accepted in this folder", "accept it with: cradle-oem order accept FILE")
	if err != nil {
		return nil, err
	}
	claimed, err := order.Peek(doc)
	if err != nil {
		return nil, err
	}
	account, err := s.accountKey(claimed.Account)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cradle.Errorf(cradle.Unauthorized, "the order key of account %s is not known here", claimed.Account).
			WithHint("accept the order again with: cradle-oem order accept FILE")
	}
	if err != nil {
		return nil, err
	}
	o, err := order.Verify(doc, account, pub.Order)
	if err != nil {
		return nil, err
	}
	if o.ID != id {
		return nil, cradle.Errorf(cradle.Invalid, "the folder of order %s holds order %s", id, o.ID)
	}
	return &line{Station: s, order: o, doc: doc}, nil
}

// anchors are what the provider's TLS is verified by: the order's, unless the OEM gave others.
func (l *line) anchors() (string, error) {
	b, err := os.ReadFile(l.orderPath(l.order.ID, "anchors.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return l.order.ServicesAnchors, nil
	}
	return string(b), err
}

func (l *line) fingerprints() ([]string, error) {
	text, err := l.anchors()
	if err != nil {
		return nil, err
	}
	certs, err := order.Anchors(text)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range certs {
		out = append(out, digest(c.Raw))
	}
	return out, nil
}

// checkAccepted verifies the provider's answer as far as the order lets us: the station's certificate is for our
// key, the EST addresses lie at the order's provider, and the issuers of IDevID and IAK chain to the order's account anchors.
func (l *line) checkAccepted(station *ecdsa.PublicKey) (*x509.Certificate, error) {
	a, o := &l.accepted, l.order
	wrong := func(format string, args ...any) error {
		return cradle.Errorf(cradle.Invalid, "the provider's answer to order "+string(o.ID)+": "+format, args...).
			WithHint("accept the order again; if it stays so, the provider and the order do not belong together")
	}
	if a.Order != o.ID {
		return nil, wrong("it is for order %s", a.Order)
	}
	cert, err := x509.ParseCertificate(a.StationCertificate)
	if err != nil {
		return nil, wrong("station certificate: %v", err)
	}
	if !station.Equal(cert.PublicKey) {
		return nil, wrong("the station certificate is for another key")
	}
	issuer, err := x509.ParseCertificate(a.StationIssuer)
	if err != nil {
		return nil, wrong("station issuer: %v", err)
	}
	if err := cert.CheckSignatureFrom(issuer); err != nil {
		return nil, wrong("the station certificate is not its issuer's: %v", err)
	}
	if now := l.now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, cradle.Errorf(cradle.Unauthorized, "the station certificate of order %s is not valid now (until %s)", o.ID, stamp(cert.NotAfter)).
			WithHint("get a new one with: cradle-oem order accept FILE; or check the clock")
	}
	for p, u := range map[cradle.Profile]string{cradle.IAK: a.IAKURL, cradle.IDevID: a.IDevIDURL} {
		if label := cradle.Label(o.Account, p); !strings.HasSuffix(strings.TrimSuffix(u, "/"), "/"+label) {
			return nil, wrong("EST address %q is not of label %s", u, label)
		}
		if parsed, err := url.Parse(u); err != nil || parsed.Scheme != "https" {
			return nil, wrong("EST address %q is not https", u)
		}
	}
	if l.roots, err = order.Anchors(o.AccountAnchors); err != nil {
		return nil, err
	}
	for i, der := range a.IDevIDChain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, wrong("IDevID issuer %d: %v", i, err)
		}
		l.issuers = append(l.issuers, c)
	}
	if len(l.issuers) == 0 || len(l.issuers) > 4 {
		return nil, wrong("%d IDevID issuers", len(l.issuers))
	}
	if err := l.verifyChain(l.issuers[0], l.issuers[1:]); err != nil {
		return nil, wrong("the IDevID issuer does not chain to the order's account anchors: %v", err)
	}
	return cert, nil
}

// verifyChain verifies a certificate of the account by the order's anchors alone.
func (l *line) verifyChain(c *x509.Certificate, issuers []*x509.Certificate) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: l.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, r := range l.roots {
		opts.Roots.AddCert(r)
	}
	for _, i := range issuers {
		opts.Intermediates.AddCert(i)
	}
	_, err := c.Verify(opts)
	return err
}

// digest is lower-case hexadecimal SHA-256.
func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
