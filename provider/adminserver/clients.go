package adminserver

import (
	"encoding/hex"
	"encoding/pem"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// clientRoutes are who may enrol without evidence.
func (s *Server) clientRoutes() {
	p := s.Provider
	handle(s, op{pattern: "GET /accounts/{account}/basic", does: "The users of HTTP Basic at the account's EST profiles.", need: view, scope: named},
		func(c *call, _ none) ([]admin.BasicUser, error) {
			users, err := p.BasicUsers(c.ctx(), c.account())
			return messages(users, basicMessage), err
		})
	handle(s, op{pattern: "POST /accounts/{account}/basic", does: "Let a user of HTTP Basic in at an EST profile, change or disable one.", need: own, scope: named},
		func(c *call, in admin.SetBasicUser) (admin.BasicUser, error) {
			if in.Disable {
				u, err := p.DisableBasicUser(c.ctx(), c.account(), in.Profile, in.User)
				return basicMessage(u), err
			}
			u, err := p.SetBasicUser(c.ctx(), provider.BasicUser{Account: c.account(), Profile: in.Profile, Name: in.User, Names: in.Names, Tier: in.Tier}, in.Password)
			return basicMessage(u), err
		})
	handle(s, op{pattern: "GET /accounts/{account}/client-cas", does: "Other CAs whose units are let in at the account's EST profiles.", need: view, scope: named},
		func(c *call, _ none) ([]admin.ClientCA, error) {
			cas, err := p.ClientCAs(c.ctx(), c.account())
			return messages(cas, clientCAMessage), err
		})
	handle(s, op{pattern: "POST /accounts/{account}/client-cas", does: "Let units of another CA in at an EST profile.", need: own, scope: named},
		func(c *call, in admin.SetClientCA) (out admin.ClientCA, err error) {
			certs, err := pemCerts(in.PEM)
			if err != nil {
				return out, err
			}
			units, err := provider.ParseManifest(in.Manifest)
			if err != nil {
				return out, err
			}
			v, err := p.SetClientCA(c.ctx(), provider.ClientCA{Account: c.account(), Profile: in.Profile, Certs: certs, Tier: in.Tier, OEM: in.OEM, Names: in.Names}, units)
			out = clientCAMessage(v)
			out.Units = len(units)
			return out, err
		})
	handle(s, op{pattern: "DELETE /accounts/{account}/client-cas/{id}", does: "End the trust in another CA.", need: own, scope: named},
		func(c *call, _ none) (admin.ClientCA, error) {
			v, err := p.RemoveClientCA(c.ctx(), c.account(), c.path("id"))
			return clientCAMessage(v), err
		})
	handle(s, op{pattern: "GET /accounts/{account}/registrars", does: "The credentials of the account's registration authorities.", need: view, scope: named},
		func(c *call, _ none) ([]admin.Registrar, error) {
			all, err := p.Registrars(c.ctx(), c.account())
			return messages(all, s.registrarMessage), err
		})
	handle(s, op{pattern: "POST /accounts/{account}/registrars", does: "Give a registration authority a credential at an EST profile, or end its credentials.", need: own, scope: named}, s.setRegistrar)
	handle(s, op{pattern: "GET /accounts/{account}/keks", does: "Identifiers of the keys that encrypt server-generated keys.", need: view, scope: named},
		func(c *call, _ none) ([]admin.KEK, error) {
			ids, err := p.KEKs(c.ctx(), c.account())
			return messages(ids, func(id string) admin.KEK { return admin.KEK{Account: c.account(), ID: id} }), err
		})
	handle(s, op{pattern: "POST /accounts/{account}/keks", does: "Register or end a key that encrypts server-generated keys.", need: own, scope: named},
		func(c *call, in admin.SetKEK) (admin.KEK, error) {
			id, err := hex.DecodeString(in.ID)
			if err != nil {
				return admin.KEK{}, cradle.Errorf(cradle.Invalid, "the key identifier %.40q is not hexadecimal", in.ID)
			}
			return admin.KEK{Account: c.account(), ID: hex.EncodeToString(id)}, p.SetKEK(c.ctx(), c.account(), id, in.Key)
		})
	handle(s, op{pattern: "POST /accounts/{account}/devices/{id}/heal", does: "Lift the quarantine of a device's credentials that began without evidence.", need: work, scope: named},
		func(c *call, in admin.ChangeState) (admin.Healed, error) {
			n, err := p.Heal(c.ctx(), c.account(), cradle.DeviceID(c.path("id")), in.Reason)
			return admin.Healed{Device: cradle.DeviceID(c.path("id")), Account: c.account(), Healed: n}, err
		})
}

func messages[T, M any](rows []T, message func(T) M) []M {
	out := make([]M, len(rows))
	for i := range rows {
		out[i] = message(rows[i])
	}
	return out
}

func basicMessage(u provider.BasicUser) admin.BasicUser {
	return admin.BasicUser{Account: u.Account, Profile: u.Profile, User: u.Name, Names: u.Names, Tier: u.Tier, Disabled: u.Disabled, Created: u.Created}
}

func clientCAMessage(c provider.ClientCA) admin.ClientCA {
	m := admin.ClientCA{ID: c.ID, Account: c.Account, Profile: c.Profile, Tier: c.Tier, OEM: c.OEM, Names: c.Names, Disabled: c.Disabled, Created: c.Created}
	for _, der := range c.Certs {
		m.Certificates = append(m.Certificates, ca.Digest(der))
	}
	return m
}

// pemCerts reads the certificates of a bundle.
func pemCerts(text string) ([][]byte, error) {
	var out [][]byte
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return out, nil
		}
		if b.Type != "CERTIFICATE" {
			return nil, cradle.Errorf(cradle.Invalid, "the bundle holds a PEM block %q; only CERTIFICATE is wanted", b.Type)
		}
		out = append(out, b.Bytes)
	}
}
