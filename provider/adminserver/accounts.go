package adminserver

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/keys/keystore"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/protocol/order"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// accountRoutes are accounts and those that an account meets: OEMs and TPM makers.
func (s *Server) accountRoutes() {
	handle(s, op{pattern: "POST /accounts", does: "Make an account.", need: own, scope: installation}, s.createAccount)
	handle(s, op{pattern: "GET /accounts/{account}", does: "An account: EST labels, CAs, profiles.", need: view, scope: named}, func(c *call, _ none) (*admin.Account, error) {
		return s.account(c.ctx(), c.account())
	})
	s.profileRoutes()
	handle(s, op{pattern: "POST /oems", does: "Register a device maker by its public keys.", need: own, scope: installation}, s.createOEM)
	handle(s, op{pattern: "POST /tpm-makers", does: "Trust a TPM maker's CA certificates.", need: own, scope: installation}, s.importMaker)
}

func (s *Server) createAccount(c *call, in admin.CreateAccount) (*admin.Account, error) {
	pr := provider.Profiles{}
	for _, f := range []struct {
		profile cradle.Profile
		text    string
	}{{cradle.Operational, in.OperationalValidity}, {cradle.LDevID, in.LDevIDValidity}} {
		if f.text != "" {
			var v ca.Duration
			if err := v.UnmarshalText([]byte(f.text)); err != nil {
				return nil, cradle.Errorf(cradle.Invalid, "validity %q: %v", f.text, err).WithHint("write it like 24h or 10m")
			}
			pr[f.profile] = ca.Profile{Validity: v}
		}
	}
	_, err := s.Provider.CreateAccount(c.ctx(), in.Name, in.OrderKey, pr, provider.CAs{Key: keystore.Algorithm(in.CAKey), External: in.ExternalRoot})
	if cradle.KindOf(err) == cradle.Conflict {
		// The builder who holds the account's order key asks again: the answer, with the token, was lost.
		if a, _, aerr := s.Provider.Account(c.ctx(), in.Name); aerr == nil && bytes.Equal(a.OrderKey, in.OrderKey) {
			err = s.sameWishes(c.ctx(), a, in, pr)
		}
	}
	if err != nil {
		return nil, err
	}
	a, err := s.account(c.ctx(), in.Name)
	if err != nil {
		return nil, err
	}
	a.Token = Token(s.Key, in.Name)
	return a, nil
}

// sameWishes refuses what an account that exists already does not have: creating it again changes nothing.
func (s *Server) sameWishes(ctx context.Context, a *provider.Account, in admin.CreateAccount, want provider.Profiles) error {
	have, err := s.Provider.Profiles(ctx, a.ID)
	if err != nil {
		return err
	}
	for name, p := range want {
		if v := have[name].Validity; v != p.Validity {
			return cradle.Errorf(cradle.Conflict, "account %q exists already, with a validity of %s for %s", a.ID, v, name).WithHint("change it with: cradle account profile set %s", a.ID)
		}
	}
	key, err := keystore.ParseAlgorithm(in.CAKey)
	if err != nil {
		return err
	}
	if key != cmp.Or(a.CAs.Key, keystore.P256) || in.ExternalRoot != a.CAs.External {
		return cradle.Errorf(cradle.Conflict, "account %q exists already, with other CAs", a.ID).WithHint("look at them with: cradle ca list %s; cradle ca roll and cradle ca install change them", a.ID)
	}
	return nil
}

func (s *Server) account(ctx context.Context, id cradle.AccountID) (*admin.Account, error) {
	a, cas, err := s.Provider.Account(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &admin.Account{Name: id, Region: a.Region, ESTHost: s.Public.ESTHost(id), Created: a.Created, Authorities: authorities(cas)}
	profiles, err := s.Provider.Profiles(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.SortedFunc(maps.Keys(profiles), builtInFirst) {
		label, p := cradle.Label(id, name), profiles[name]
		out.Labels = append(out.Labels, admin.Label{Profile: name, Label: label, URL: s.Public.URL + "/.well-known/est/" + label})
		out.Profiles = append(out.Profiles, profileMessage(name, p))
	}
	return out, nil
}

func authorities(cas []provider.Authority) []admin.Authority {
	var out []admin.Authority
	for _, a := range cas {
		out = append(out, admin.Authority{Kind: string(a.Kind), Class: a.Class, Fingerprint: a.Digest(), PEM: admin.PEM(a.Cert), Crosses: pems(a.Cross)})
	}
	return out
}

func (s *Server) createOEM(c *call, in admin.CreateOEM) (out admin.OEM, err error) {
	public, err := order.ParseOEMPublic([]byte(in.Public))
	if err != nil {
		return out, err
	}
	o, cas, err := s.Provider.CreateOEM(c.ctx(), in.Name, public)
	if err != nil {
		return out, err
	}
	return admin.OEM{Name: o.ID, Created: o.Created, Authorities: authorities(cas)}, nil
}

func (s *Server) importMaker(c *call, in admin.ImportMaker) (out admin.Maker, err error) {
	imported, added, err := s.Provider.ImportBundle(c.ctx(), in.Maker, in.Tier, []byte(in.PEM))
	if err != nil {
		return out, err
	}
	out = admin.Maker{Maker: in.Maker, Tier: in.Tier, Certificates: len(imported), Added: added, Fingerprints: []string{}, Imported: []admin.Imported{}}
	for _, i := range imported {
		out.Fingerprints = append(out.Fingerprints, i.Fingerprint)
		out.Imported = append(out.Imported, admin.Imported{Fingerprint: i.Fingerprint, Subject: i.Certificate.Subject.String(), Root: i.Root, Signer: i.Signer, NotAfter: i.Certificate.NotAfter})
		switch {
		case i.Root:
			out.Roots++
		case i.Signer != "":
			out.Intermediates++
		default:
			out.Alone++
		}
	}
	return out, nil
}
