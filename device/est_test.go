package device_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/device"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
	"github.com/cradle-iot/cradle/protocol/timestamp"
)

// The provider.

// fakeProvider is one connection to it, which is there after the first call that got through the handshake.
type fakeProvider struct {
	w         *world
	c         *tls.Config
	connected bool
	peer      *x509.Certificate
}

type fakeEST struct {
	*fakeProvider
	label string
}

func (w *world) Provider(url string, c *tls.Config) device.Provider {
	if url != "https://est.example:8443" {
		w.t.Errorf("provider at %s", url)
	}
	return &fakeProvider{w: w, c: c}
}

func (p *fakeProvider) EST(label string) device.EST { return &fakeEST{p, label} }

func (p *fakeProvider) Close() { p.connected = false }

func (p *fakeProvider) connect() (err error) {
	if p.connected {
		return nil
	}
	p.w.handshakes = append(p.w.handshakes, p.w.calls[len(p.w.calls)-1])
	p.peer, err = p.w.handshake(p.c, "est.example")
	p.connected = err == nil
	return err
}

func (e *fakeEST) CACerts(ctx context.Context) (out []*x509.Certificate, err error) {
	err = e.w.call(ctx, "cacerts", func() error {
		if err := e.connect(); err != nil {
			return err
		}
		issuer := e.w.onboarding
		if e.label == acme+"-operational" {
			issuer = e.w.operational
		}
		out = []*x509.Certificate{issuer.cert, e.w.root.cert}
		if e.label == acme+"-ldevid" && !e.w.cacertsApart {
			out = append(out, e.w.operational.cert)
		}
		return nil
	})
	return out, err
}

func (e *fakeEST) authenticate(op string) (*x509.Certificate, error) {
	w := e.w
	if err := e.connect(); err != nil {
		return nil, err
	}
	peer := e.peer
	if peer == nil {
		return nil, refuse(401, "no certificate")
	}
	if time.Now().After(peer.NotAfter) {
		return nil, refuse(401, "the client certificate expired")
	}
	if w.blocked {
		return nil, refuse(403, "device is revoked")
	}
	if w.superseded[thumb(peer.Raw)] {
		return nil, &est.StatusError{Code: 403, Reason: "the client certificate was superseded", Hint: "its credentials are in quarantine; " + est.AttestAfresh}
	}
	from := func(a authority) bool { return peer.CheckSignatureFrom(a.cert) == nil }
	var ok bool
	switch {
	case op == "simplereenroll":
		ok = e.label == acme+"-ldevid" && from(w.onboarding) || e.label == acme+"-operational" && from(w.operational)
	case e.label == acme+"-ldevid":
		ok = from(w.factory) || from(w.onboarding)
	case e.label == acme+"-operational":
		ok = from(w.onboarding) || from(w.operational)
	}
	if !ok {
		return nil, refuse(403, fmt.Sprintf("%v does not authenticate %s at %s", peer.Issuer, op, e.label))
	}
	if from(w.factory) && !w.lot {
		return nil, refuse(403, "the lot is not accepted")
	}
	return peer, nil
}

func (e *fakeEST) Nonce(ctx context.Context, typ x509.OID, claim any) (r est.NonceResponse, err error) {
	err = e.w.call(ctx, "nonce", func() error {
		peer, err := e.authenticate("nonce")
		if err != nil {
			return err
		}
		if !typ.Equal(cradle.OIDActivation) || claim.(evidence.Claim).Check() != nil {
			return refuse(400, "claim")
		}
		ch := make([]byte, 32)
		rand.Read(ch)
		e.w.challenges[string(ch)] = &spent{label: e.label, auth: thumb(peer.Raw)}
		r.Type = typ.String()
		r.RespInfo, _ = json.Marshal(evidence.Challenge{Challenge: ch})
		return nil
	})
	return r, err
}

func (e *fakeEST) SimpleEnroll(ctx context.Context, csr []byte) (*x509.Certificate, error) {
	return e.enroll(ctx, "simpleenroll", csr)
}

func (e *fakeEST) SimpleReenroll(ctx context.Context, csr []byte) (*x509.Certificate, error) {
	return e.enroll(ctx, "simplereenroll", csr)
}

func (e *fakeEST) enroll(ctx context.Context, op string, der []byte) (cert *x509.Certificate, err error) {
	w := e.w
	err = w.call(ctx, op, func() error {
		peer, err := e.authenticate(op)
		if err != nil {
			return err
		}
		csr, err := evidence.ParseCSR(der)
		if err != nil || csr.Request.CheckSignature() != nil || csr.Bundle == nil || csr.Bundle.Certify == nil {
			w.t.Errorf("CSR: %v", err)
			return refuse(400, "CSR")
		}
		if op == "simplereenroll" && !bytes.Equal(csr.Request.RawSubject, peer.RawSubject) {
			w.t.Errorf("simplereenroll of %v with subject %v", peer.Subject, csr.Request.Subject)
		}
		ch := w.challenges[string(csr.Bundle.Challenge)]
		if ch == nil || ch.label != e.label || ch.auth != thumb(peer.Raw) {
			return refuse(403, "the challenge was not made here")
		}
		want := evidence.Binding{Challenge: csr.Bundle.Challenge, Account: acme, Label: e.label, AuthCert: peer.Raw, SPKI: csr.SPKI}.ExtraData()
		if !bytes.Equal(csr.Bundle.Certify.Attest, want[:]) || !bytes.Equal(csr.Bundle.Certify.Public, csr.SPKI) {
			w.t.Error("the evidence is not bound to the request")
			return refuse(403, "evidence")
		}
		if ch.cert != nil {
			if !bytes.Equal(ch.csr, der) {
				w.t.Error("a spent challenge with another CSR")
				return refuse(409, "spent")
			}
			cert, _ = x509.ParseCertificate(ch.cert)
			return nil
		}
		issuer, life := w.onboarding, 365*24*time.Hour
		if e.label == acme+"-operational" {
			issuer, life = w.operational, w.opLife
		}
		cert = sign(csr.Request.PublicKey, &x509.Certificate{Subject: pkix.Name{Organization: []string{acme}, CommonName: unit},
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, issuer)
		ch.csr, ch.cert = der, cert.Raw
		w.issued = append(w.issued, cert)
		return nil
	})
	return cert, err
}

func (p *fakeProvider) Time(ctx context.Context, nonce []byte) (s *timestamp.Statement, err error) {
	w := p.w
	err = w.call(ctx, "time", func() error {
		if err := p.connect(); err != nil {
			return err
		}
		if p.peer != nil && w.noAuthTime {
			p.connected = false
			return errNet
		}
		if w.noTime {
			return cradle.Errorf(cradle.NotFound, "no time here")
		}
		s, err = timestamp.Sign(w.timeKey.key, [][]byte{w.timeKey.cert.Raw}, nonce, time.Now())
		return err
	})
	return s, err
}
