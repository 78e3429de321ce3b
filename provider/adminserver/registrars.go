package adminserver

import (
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

func (s *Server) setRegistrar(c *call, in admin.SetRegistrar) (out admin.RegistrarSet, err error) {
	out.Ended = []admin.Registrar{}
	end := func(keep, reason string) error {
		ended, err := s.Provider.EndRegistrar(c.ctx(), c.account(), in.Profile, in.Name, keep, reason)
		out.Ended = append(out.Ended, messages(ended, s.registrarMessage)...)
		return err
	}
	if in.End {
		return out, end("", in.Reason)
	}
	if in.Days == 0 {
		in.Days = 365
	}
	life := time.Duration(min(max(in.Days, 0), 10_000)) * 24 * time.Hour
	ra := ca.Registrar{Account: c.account(), Profile: in.Profile, Name: in.Name, Names: in.Names, Tier: in.Tier}
	var made *provider.Registrar
	switch {
	case in.Own == (len(in.CSR) > 0):
		return out, cradle.Errorf(cradle.Invalid, "a credential is either for a key that comes in a CSR, or for the installation's own services")
	case !in.Own:
		made, err = s.Provider.AddRegistrar(c.ctx(), ra, in.CSR, life)
	case s.OwnRegistrar == nil:
		return out, cradle.Errorf(cradle.Conflict, "there is no provisioning service or hub in this process").WithHint("have the credential written to a folder, and put it into the data folder of the process that needs it")
	default:
		made, err = s.OwnRegistrar(c.ctx(), ra, life)
	}
	if err != nil {
		return out, err
	}
	m := s.registrarMessage(*made)
	out.Made = &m
	if in.Replace {
		err = end(made.Cert.Digest, "superseded")
	}
	return out, err
}

func (s *Server) registrarMessage(r provider.Registrar) admin.Registrar {
	out := admin.Registrar{Account: r.Account, Profile: r.Profile, Name: r.Name, Names: r.Names, Tier: r.Tier, Serial: r.Cert.Serial, Fingerprint: r.Cert.Digest, NotAfter: r.Cert.NotAfter,
		PEM: admin.PEM(r.Cert.DER), Chain: pems(r.Chain), URL: s.Public.URL + "/.well-known/est/" + cradle.Label(r.Account, r.Profile)}
	if at := r.Cert.Revoked; !at.IsZero() {
		out.Revoked = &at
	}
	return out
}
