package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/est"
	"github.com/cradle-iot/cradle/protocol/evidence"
)

// replayFor is how long the provider answers a lost reply again (DESIGN §4.7); after that the request is made afresh.
const replayFor = 10 * time.Minute

// enrol gets one certificate. It can be stopped anywhere:
//   - before the step "request": nothing was sent; a key made for it is lost, which costs nothing;
//   - after it: the exchange is in the journal and the same bytes are sent again;
//   - after the answer, before "issued": the same; the provider answers with the same certificate.
func (d *Device) enrol(ctx context.Context, j *Journal, profile cradle.Profile, t todo) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	auth, err := d.authenticator(ctx, j, t.auth)
	if err != nil {
		d.noteLost(err, t.auth, j)
		if j.Exchange != nil {
			err = errors.Join(err, d.abandon("its authenticator is gone"))
		}
		return err
	}
	label := cradle.Label(d.set.Account, profile)
	s, err := d.providerSession(auth)
	if err != nil {
		return err
	}
	defer s.Close()
	client := s.EST(label)

	if len(j.issuersOf(profile)) == 0 {
		if err := d.fetchIssuers(ctx, client, profile); err != nil {
			return err
		}
	}
	resent := j.Exchange != nil
	if x := j.Exchange; x != nil {
		if x.AuthCert != digest(auth.Certificate[0]) {
			return d.abandon("its authenticator was replaced")
		}
		if d.m.begun.IsZero() { // sent by the process before us, we cannot tell when
			d.m.begun = time.Now()
		}
		if time.Since(d.m.begun) > replayFor {
			return d.abandon("it was not answered in time")
		}
		d.log.Info("sending the open certificate request again", "profile", string(profile))
	} else {
		if err := d.begin(ctx, client, j, profile, label, t, auth); err != nil {
			return d.refusedBy(t, err)
		}
		d.m.begun = time.Now()
	}
	return d.finish(ctx, client, t, resent)
}

// begin asks for a challenge, has the TPM certify the key, and writes the request into the journal.
func (d *Device) begin(ctx context.Context, client EST, j *Journal, profile cradle.Profile, label string, t todo, auth *tls.Certificate) error {
	answer, err := client.Nonce(ctx, cradle.OIDActivation, evidence.Claim{Serial: d.set.Serial})
	if err != nil {
		return err
	}
	ch, err := evidence.ParseChallenge(answer.RespInfo)
	if err != nil {
		return err
	}
	// The server has proved itself at a time that holds for its certificate too, so that our judgement of what has
	// expired is sound: from here on an expired slot may be overwritten.
	var secret []byte
	if len(ch.CredentialBlob) > 0 {
		if secret, err = d.tpm.Activate(ctx, ch.CredentialBlob, ch.EncryptedSecret); err != nil {
			return err
		}
	}
	key, blob, err := d.keyFor(ctx, j, profile, t)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	extra := evidence.Binding{Challenge: ch.Challenge, Account: d.set.Account, Label: label, Secret: secret, AuthCert: auth.Certificate[0], SPKI: spki}.ExtraData()
	certify, err := d.tpm.Certify(ctx, key, extra[:])
	if err != nil {
		return fmt.Errorf("certifying the key: %w", err)
	}
	subject := pkix.Name{Organization: []string{string(d.set.Account)}, CommonName: string(d.set.Device)}
	if t.renew {
		if subject, err = sameName(auth.Leaf); err != nil {
			return err
		}
	}
	csr, err := evidence.CreateCSR(subject, key, &evidence.Bundle{Certify: &certify, Challenge: ch.Challenge})
	if err != nil {
		return err
	}
	x := &Exchange{Profile: profile, Renew: t.renew, Slot: t.slot, Auth: t.auth, AuthCert: digest(auth.Certificate[0]), Challenge: ch.Challenge, CSR: csr}
	return d.update("request", func(j *Journal) {
		j.Exchange = x
		if profile == cradle.Operational {
			j.Slots[t.slot] = Slot{State: Requested, Key: blob}
		}
	})
}

// keyFor returns the key to be certified; for the operational profile with its blob: the one that the
// slot already waits with, the renewed certificate's own when keys are not rotated, else a new one.
func (d *Device) keyFor(ctx context.Context, j *Journal, profile cradle.Profile, t todo) (Key, []byte, error) {
	if profile == cradle.LDevID {
		key, err := d.tpm.LDevID(ctx)
		return key, nil, err
	}
	var blob []byte
	switch s := j.Slots[t.slot]; {
	case s.State == Requested && !d.m.slotLost[digest(s.Key)]:
		blob = s.Key
	case t.renew && d.set.Renewal.RotateKey != nil && !*d.set.Renewal.RotateKey:
		blob = j.Slots[1-t.slot].Key
	}
	if blob != nil {
		key, err := d.key(ctx, blob)
		if err == nil {
			return key, blob, nil
		}
		if k := cradle.KindOf(err); k != cradle.Invalid && k != cradle.NotFound {
			return nil, nil, err
		}
	}
	blob, err := d.tpm.CreateKey(ctx)
	if err != nil {
		return nil, nil, err
	}
	key, err := d.key(ctx, blob)
	return key, blob, err
}

// finish sends the journal's exchange and takes the certificate.
func (d *Device) finish(ctx context.Context, client EST, t todo, resent bool) error {
	j, _ := d.look()
	x := j.Exchange
	send := client.SimpleEnroll
	if x.Renew {
		send = client.SimpleReenroll
	}
	leaf, err := send(ctx, x.CSR)
	if err != nil {
		if !definite(err) {
			return err // perhaps answered: the same request again
		}
		if aerr := d.abandon("it was refused"); aerr != nil {
			return errors.Join(err, aerr)
		}
		if resent { // its challenge is spent or too old, which says nothing of the authenticator
			return err
		}
		return d.refusedBy(t, err)
	}
	csr, err := x509.ParseCertificateRequest(x.CSR)
	if err != nil {
		return fmt.Errorf("internal error: own request: %w", err)
	}
	chain, err := d.checkIssued(leaf, csr.RawSubjectPublicKeyInfo, j.issuersOf(x.Profile))
	if err != nil { // the CA may have been rolled since cacerts was asked, or for another profile
		if ferr := d.fetchIssuers(ctx, client, x.Profile); ferr != nil {
			return errors.Join(err, ferr)
		}
		j, _ = d.look()
		if chain, err = d.checkIssued(leaf, csr.RawSubjectPublicKeyInfo, j.issuersOf(x.Profile)); err != nil {
			return errors.Join(err, d.abandon("its answer is not acceptable"))
		}
	}
	// A certificate over our own fresh request is a statement of the time too.
	d.time.raise(leaf.NotBefore)
	c := Credential{Chain: chain, Issued: d.time.now()}
	err = d.update("issued", func(j *Journal) {
		j.Exchange = nil
		if x.Profile == cradle.LDevID {
			j.LDevID = c
			return
		}
		s := &j.Slots[x.Slot]
		s.State, s.Credential = Issued, c
	})
	if err != nil {
		return err
	}
	m := &d.m
	m.rung, m.begun = 0, time.Time{}
	if x.Profile == cradle.LDevID {
		m.ldevidBad, m.ldevidLost = false, false
	}
	// If our clock is so wrong that the new certificate seems due at once, do not renew in a loop.
	m.paused[t.act] = time.Now().Add(time.Duration(float64(leaf.NotAfter.Sub(c.arrived(leaf))) * d.set.Renewal.Fraction / 2))
	d.log.Info("certificate issued", "profile", string(x.Profile), "serial", leaf.SerialNumber.Text(16), "until", leaf.NotAfter)
	return nil
}

// fetchIssuers asks cacerts and keeps in the journal what chains to the account's anchors.
func (d *Device) fetchIssuers(ctx context.Context, client EST, profile cradle.Profile) error {
	certs, err := client.CACerts(ctx)
	if err != nil {
		return err
	}
	issuers, err := d.checkCACerts(certs)
	if err != nil {
		return err
	}
	return d.update("cacerts", func(j *Journal) {
		if j.Issuers == nil {
			j.Issuers = map[cradle.Profile][][]byte{}
		}
		j.Issuers[profile] = issuers
	})
}

// abandon forgets the open exchange; a key made for it stays in its slot for the next one.
func (d *Device) abandon(why string) error {
	d.m.begun = time.Time{}
	d.log.Info("giving up the open certificate request", "why", why)
	return d.update("abandon", func(j *Journal) { j.Exchange = nil })
}

// refusedBy climbs the ladder when a server refused the authenticator of t.
func (d *Device) refusedBy(t todo, err error) error {
	if !definite(err) {
		return err
	}
	switch cradle.KindOf(err) {
	case cradle.Unauthorized, cradle.Forbidden, cradle.Conflict:
	default:
		return err
	}
	d.m.rung++
	var s *est.StatusError
	if t.auth == ByLDevID && (cradle.KindOf(err) == cradle.Unauthorized || errors.As(err, &s) && s.Afresh()) {
		d.m.ldevidBad = true
	}
	return err
}

// definite reports whether the server understood the request and decided against it.
func definite(err error) bool {
	var s *est.StatusError
	if !errors.As(err, &s) {
		return false
	}
	switch s.Code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return s.Code/100 == 4
}

// sameName gives the certificate's subject again, byte for byte, as simplereenroll demands (RFC 7030 §4.2.2).
func sameName(c *x509.Certificate) (pkix.Name, error) {
	var rdns []asn1.RawValue
	if _, err := asn1.Unmarshal(c.RawSubject, &rdns); err != nil {
		return pkix.Name{}, fmt.Errorf("subject of the certificate to be renewed: %w", err)
	}
	var name pkix.Name
	for _, rdn := range rdns {
		var atv struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if rest, err := asn1.Unmarshal(rdn.Bytes, &atv); err != nil || len(rest) > 0 {
			return pkix.Name{}, fmt.Errorf("subject %s of the certificate to be renewed is of an unusual form", c.Subject)
		}
		name.ExtraNames = append(name.ExtraNames, pkix.AttributeTypeAndValue{Type: atv.Type, Value: asn1.RawValue{FullBytes: atv.Value.FullBytes}})
	}
	return name, nil
}
