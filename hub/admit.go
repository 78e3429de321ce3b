package hub

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
	"github.com/cradle-iot/cradle/protocol/sas"
)

// Authenticate judges a login that begins no session, as Connect does.
func (h *Hub) Authenticate(ctx context.Context, hub Name, id cradle.DeviceID, module iothub.ModuleID, login *Login) error {
	for range connectRetries {
		var g grant
		if _, _, err := h.prove(ctx, key{hub, id, module}, login, &g); !errors.Is(err, errMoved) {
			return err
		}
	}
	return errRestless
}

// prove admits who logs in, and promotes the certificate where it is the registry's second. The version is that of the sessions'
// table before the registry was read, or after it was changed; errMoved means that it has to be read again.
func (h *Hub) prove(ctx context.Context, k key, login *Login, g *grant) (owner, uint64, error) {
	version := h.sessions.version(k)
	d, m, err := h.admit(ctx, k, login, g)
	if err != nil || g.slot != 2 {
		return owner{d, m}, version, err
	}
	err = h.promote(ctx, k.hub, d, m)
	if err == nil {
		h.entryWritten(k)
	}
	switch kind := cradle.KindOf(err); {
	case kind == cradle.Conflict || kind == cradle.NotFound:
		return owner{}, 0, errMoved
	case err != nil:
		return owner{}, 0, h.storeError("promoting a certificate", err)
	}
	promoted := uint64(0) // ends the session of the certificate before
	if m != nil {
		promoted = h.sessions.moduleChanged(k, m)
	} else {
		promoted = h.sessions.changed(k, d)
	}
	if promoted != version+1 {
		return owner{}, 0, errMoved // somebody wrote the registry after the promotion and was here before us
	}
	return owner{d, m}, promoted, nil
}

// admit reads the registry and judges; the module is nil when the device itself logs in.
func (h *Hub) admit(ctx context.Context, k key, login *Login, g *grant) (*Device, *Module, error) {
	var shown grant
	if len(login.Chain) > 0 && login.Token == "" {
		leaf := login.Chain[0]
		shown = grant{account: accountOf(leaf), name: cradle.DeviceID(leaf.Subject.CommonName), sum: sha256.Sum256(leaf.Raw)}
	}
	// First, so that who is revoked learns nothing about the registry.
	if err := h.blockedLogin(&shown, k.device); err != nil {
		return nil, nil, err
	}
	d, err := h.store.Device(ctx, k.hub, k.device)
	if cradle.KindOf(err) == cradle.NotFound {
		return nil, nil, refuse("device is not registered in hub %s", k.hub)
	} else if err != nil {
		return nil, nil, h.storeError("reading a device", err)
	}
	if d.Disabled {
		return nil, nil, refuse("device is disabled: %s", d.Reason)
	}
	who, m := d.identity(), (*Module)(nil)
	if k.module != "" {
		m, err = h.store.Module(ctx, k.hub, k.device, k.module)
		if cradle.KindOf(err) == cradle.NotFound {
			return nil, nil, refuse("device has no module %.128q in hub %s", k.module, k.hub)
		} else if err != nil {
			return nil, nil, h.storeError("reading a module", err)
		}
		who = m.identity()
	}
	var cas []*x509.Certificate
	if who.auth.Type == iothub.CertificateAuthority {
		if cas, err = h.trustedCAs(ctx, k.hub); err != nil {
			return nil, nil, err
		}
	}
	byPolicy, err := h.byPolicy(ctx, k, who, login, g)
	if err == nil && !byPolicy {
		*g, err = judge(who, login, []string{string(k.hub)}, cas, h.now())
	}
	if err != nil {
		return nil, nil, err
	}
	// Again, with what was proved: a token may have come beside a certificate.
	return d, m, h.blockedLogin(g, k.device)
}

// byPolicy admits who connects in a device's name with a token of a policy that may (DeviceConnect), as gateways do. It is for
// identities with keys only: a certificate cannot be stood in for. False when the token names no policy.
func (h *Hub) byPolicy(ctx context.Context, k key, who identity, login *Login, g *grant) (bool, error) {
	if who.auth.Type != iothub.SAS || login.Token == "" {
		return false, nil
	}
	t, err := sas.Parse(login.Token)
	if err != nil || t.KeyName == "" {
		return false, nil // judge says what is wrong
	}
	*g = grant{by: "SAS token", ends: t.Expiry, policy: t.KeyName}
	path := "/devices/" + string(who.id)
	if who.module != "" {
		path += "/modules/" + string(who.module)
	}
	hosts := []string{string(k.hub)}
	if login.Host != "" {
		hosts = append(hosts, login.Host, withoutPort(login.Host))
	}
	return true, h.Authorize(ctx, k.hub, login.Token, DeviceConnect, hosts, path)
}

// promote makes the secondary thumbprint the primary (DESIGN §4.7).
func (h *Hub) promote(ctx context.Context, hub Name, d *Device, m *Module) error {
	var err error
	if m != nil {
		was := m.ETag
		m.Primary, m.Secondary = m.Secondary, ""
		m.ETag, m.Updated = rand.Text(), h.now()
		err = h.store.UpdateModule(ctx, hub, m, was)
	} else {
		was := d.ETag
		d.Primary, d.Secondary = d.Secondary, ""
		d.ETag, d.Updated = rand.Text(), h.now()
		err = h.store.UpdateDevice(ctx, hub, d, was)
	}
	if err != nil {
		return err
	}
	h.log.Info("certificate promoted", "hub", hub, "device", d.ID)
	return nil
}

// blockedLogin asks the status feed by the identity's name and by the certificate's, where that is another (the registry may name
// any certificate by its thumbprint).
func (h *Hub) blockedLogin(g *grant, id cradle.DeviceID) error {
	if g.name != "" && g.name != id {
		if err := h.blocked(g.account, g.name, g.sum); err != nil {
			return err
		}
	}
	return h.blocked(g.account, id, g.sum)
}

func (h *Hub) blocked(account cradle.AccountID, id cradle.DeviceID, sum [32]byte) error {
	if h.status == nil {
		return nil
	}
	if !h.status.Fresh(h.now()) {
		return cradle.Errorf(cradle.Busy, "the status feed is stale: nobody is admitted").
			WithHint("is the provider running, and reachable from the hub?")
	}
	if state, yes := h.status.Blocked(account, id); yes {
		return refuse("device is %s", state)
	}
	if h.status.CertBlocked(sum) {
		return refuse("certificate is revoked")
	}
	return nil
}

func refuse(format string, args ...any) *cradle.Error {
	return cradle.Errorf(cradle.Unauthorized, format, args...)
}
