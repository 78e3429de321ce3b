package provider

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/filekey"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/provider/attest"
	"github.com/cradle-iot/cradle/provider/ca"
)

// Births is the signer's side of births: BirthNonce and Birth of it.
func (p *Provider) Births() Signer { return inProcess{p} }

// errApart is the refusal of what needs an issuing key where there is none.
var errApart = cradle.Errorf(cradle.Conflict, "the issuing keys are held by a signer apart, which alone can do this").
	WithHint("use the context.json that the signer wrote to its data folder: --context FILE")

// Redeem is the signer's side of a permit that an EST front end brought: front names it, the permit's request is
// the one as it came from the device. The front end is believed one thing: that the client in r proved
// its certificate's key (TLS ended there). The intent is taken, once and durably, before anything is looked at; then the
// request is judged here again, against the records and the profile, and must be what the intent says; the certificate is
// built here, and is on record with its leaf before it is given out. A permit that is refused is void.
func (p *Provider) Redeem(ctx context.Context, front string, pm Permit) (*Issued, error) {
	intent := pm.Intent.ID // all that is believed of it
	in, err := p.store.UsePermit(ctx, intent, front, p.now())
	if err != nil {
		return nil, err
	}
	out, err := p.redeem(ctx, &in, pm)
	if err != nil {
		p.log.Warn("permit refused", "front", front, "intent", intent, "account", in.Account, "device", in.Device, "profile", in.Profile, "err", err)
		if verr := p.store.VoidIssue(context.WithoutCancel(ctx), intent, err.Error()); verr != nil {
			p.log.Error("voiding an intent", "intent", intent, "err", verr)
		}
		return nil, err
	}
	p.log.Info("permit redeemed", "front", front, "intent", intent, "account", in.Account, "device", in.Device, "profile", in.Profile, "serial", in.Serial)
	return out, nil
}

func (p *Provider) redeem(ctx context.Context, in *Intent, pm Permit) (*Issued, error) {
	r, made := pm.Request, pm.Made
	if p.now().Sub(in.Created) > openIntentLife {
		return nil, cradle.Errorf(cradle.Conflict, "the intent is of %s", in.Created)
	}
	if _, err := p.account(ctx, in.Account); err != nil { // rereads what another process made
		return nil, err
	}
	if hexDigest(r.CSR) != in.CSR {
		return nil, notIntended("CSR")
	}
	if r.Account != in.Account || r.Profile != in.Profile || r.Operation != in.Operation {
		return nil, notIntended("account, profile or operation")
	}
	d, err := p.judgeAt(ctx, r)
	if err != nil || d.auth.ID != in.Authority { // perhaps the front end knows what was changed a moment ago
		if err := p.reload(ctx); err != nil {
			return nil, err
		}
		if d, err = p.judgeAt(ctx, r); err != nil {
			return nil, err
		}
	}
	if (r.Operation == ServerKeyGen) != (made != nil) || (r.Operation == TPMEnroll) != (pm.TPM != nil) {
		return nil, notIntended("operation")
	}
	if pm.TPM != nil {
		if _, err := p.judgeTPM(ctx, r, d, *pm.TPM); err != nil {
			return nil, err
		}
	}
	if made != nil {
		pub, err := x509.ParsePKIXPublicKey(made)
		if err != nil {
			return nil, cradle.Errorf(cradle.Invalid, "the key that was made: %v", err)
		}
		d.made = madeElsewhere{pub}
	}
	if err := p.onRecord(ctx, in, d); err != nil {
		return nil, err
	}
	auth, once := d.spends(r, in.ID)
	_, spki := d.key()
	switch {
	case in.Authority != d.auth.ID:
		return nil, cradle.Errorf(cradle.Busy, "the issuing CA was rolled meanwhile").WithHint("try again")
	case in.Device != d.dev.ID:
		return nil, notIntended("device")
	case in.AuthCert != auth || in.AuthProfile != d.cred.Cert.Profile:
		return nil, notIntended("authentication")
	case in.SPKI != hexDigest(spki):
		return nil, notIntended("key")
	case in.Challenge != once:
		return nil, notIntended("challenge")
	case in.Lineage != d.lineage:
		return nil, notIntended("lineage")
	}
	serial, err := ca.ParseSerial(in.Serial)
	if err != nil {
		return nil, err
	}
	if err := p.preSign(r, d, serial, p.now()); err != nil {
		return nil, err
	}
	if err := p.approved(ctx, in, r); err != nil {
		return nil, err
	}
	return p.sign(ctx, in, r, d)
}

// judgeAt is judge of a request whose label says what it says.
func (p *Provider) judgeAt(ctx context.Context, r Request) (*decision, error) {
	if ep, err := p.Endpoint(ctx, r.Label); err != nil || ep != r.Endpoint {
		return nil, notIntended("label")
	}
	return p.judge(ctx, r, nil)
}

// madeElsewhere is the public half of a key that the front end has.
type madeElsewhere struct{ pub crypto.PublicKey }

// Public implements crypto.Signer.
func (k madeElsewhere) Public() crypto.PublicKey { return k.pub }

// Sign implements crypto.Signer.
func (k madeElsewhere) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("internal error: the key was made elsewhere")
}

func notIntended(what string) error {
	return cradle.Errorf(cradle.Forbidden, "the permit's %s is not the intent's", what)
}

// onRecord holds the decision against the device's record, which the intent's transaction made or found, and takes it
// from there. The attestation key on record is not believed for standing there: a key of ours must have certified it.
func (p *Provider) onRecord(ctx context.Context, in *Intent, d *decision) error {
	dev, err := p.store.Device(ctx, in.Account, in.Device)
	if err != nil {
		return err
	}
	if d.birth && d.proved() {
		if dev.ID != d.dev.ID || dev.Order != d.dev.Order || dev.Serial != d.dev.Serial || dev.EKDigest != d.dev.EKDigest || !bytes.Equal(dev.IAK, d.dev.IAK) {
			return notIntended("unit")
		}
		d.dev = dev
		return nil
	}
	if d.proved() {
		return p.certifiedIAK(ctx, &d.dev)
	}
	certs, err := p.store.Certificates(ctx, in.Account, in.Device)
	d.birth = len(certs) == 0 // its record goes into the log with its first certificate
	return err
}

// certifiedIAK verifies that the attestation key on record is the one in the device's IAK certificate.
func (p *Provider) certifiedIAK(ctx context.Context, dev *Device) error {
	refuse := cradle.Errorf(cradle.Forbidden, "the attestation key on record of device %s is not the one that was certified at its birth", dev.ID)
	c, err := p.store.IAKCertificate(ctx, dev.Account, dev.ID)
	if err != nil {
		if cradle.KindOf(err) == cradle.NotFound {
			return refuse
		}
		return err
	}
	cert, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return err
	}
	ak, why := attest.VerifyAttestationKey(dev.IAK)
	if err := why.Err(); err != nil {
		return err
	}
	if c.Profile != cradle.IAK || cert.Subject.CommonName != string(dev.ID) || ca.Digest(c.DER) != dev.IAKCert || !bytes.Equal(cert.RawSubjectPublicKeyInfo, ak.SPKI) {
		return refuse
	}
	return p.signed(ctx, cert, &c)
}

// approved looks at the approval that an intent spent, where the profile wants one.
func (p *Provider) approved(ctx context.Context, in *Intent, r Request) error {
	rules, err := p.profile(r.Account, r.Profile)
	if err != nil || !rules.Approval || rules.Kind.Birth() || in.AuthProfile == r.Profile {
		return err
	}
	if in.Approval == "" {
		return notIntended("approval")
	}
	a, err := p.store.Approval(ctx, in.Approval)
	if err != nil {
		return err
	}
	if a.Account != in.Account || a.Profile != in.Profile || a.Device != in.Device || a.Client != in.AuthCert || a.SPKI != in.SPKI && r.Operation != ServerKeyGen || a.State != Used && a.State != Approved {
		return notIntended("approval")
	}
	return nil
}

// Reseal moves issuing keys that vault sealed under the provider's own file store, which seals by another: the front
// ends' key-encryption key opens them no more. Keys that are there already stay.
func Reseal(ctx context.Context, store Store, vault *filekey.Vault, to filekey.Store) (moved int, err error) {
	cas, err := store.Authorities(ctx)
	if err != nil {
		return 0, err
	}
	waiting, err := store.PendingKeys(ctx)
	if err != nil {
		return 0, err
	}
	var keys []keystore.Key
	for _, a := range cas {
		keys = append(keys, a.Key)
	}
	for _, k := range waiting {
		keys = append(keys, k.Key)
	}
	done := map[string]bool{}
	for _, k := range keys {
		name, ok := strings.CutPrefix(k.Ref, filekey.Scheme+":")
		if !ok || done[k.Ref] {
			continue
		}
		done[k.Ref] = true
		if _, err := to.Vault.Open(name, k.Sealed); err == nil {
			continue
		}
		fresh, err := to.Reseal(vault, k)
		if err != nil {
			return moved, fmt.Errorf("moving issuing keys to the signer: %w", err)
		}
		if err := store.ResealKey(ctx, fresh); err != nil {
			return moved, err
		}
		moved++
	}
	return moved, nil
}
