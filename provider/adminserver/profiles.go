package adminserver

import (
	"cmp"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/admin"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provider/ca"
)

// profileRoutes are an account's profiles; reading them is part of the account.
func (s *Server) profileRoutes() {
	handle(s, op{pattern: "POST /accounts/{account}/profiles", does: "Set profiles of an account, given as TOML tables.", need: own, scope: named}, s.setProfiles)
}

func profileMessage(name cradle.Profile, p ca.Profile) admin.Profile {
	m := admin.Profile{Profile: name, Kind: string(p.Kind), Validity: p.Validity.String(), Evidence: string(p.Evidence), Default: p.Default, Closed: p.Closed,
		Digest: p.Digest(), TOML: p.String()}
	for _, k := range p.Keys {
		m.Keys = append(m.Keys, string(k))
	}
	return m
}

// builtInFirst orders profiles: those that every account has, in the order of a device's life, then by name.
func builtInFirst(a, b cradle.Profile) int {
	place := func(p cradle.Profile) int {
		if i := slices.Index(ca.BuiltIn, p); i >= 0 {
			return i
		}
		return len(ca.BuiltIn)
	}
	return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b))
}

func (s *Server) setProfiles(c *call, in admin.SetProfiles) (*admin.ProfileChanges, error) {
	set, err := ca.ParseProfiles(in.TOML)
	if err != nil {
		return nil, err
	}
	diffs, err := s.Provider.SetProfiles(c.ctx(), c.account(), provider.Profiles(set), in.DryRun)
	if err != nil {
		return nil, err
	}
	out := &admin.ProfileChanges{Account: c.account(), DryRun: in.DryRun, Changes: []admin.ProfileChange{}}
	for _, d := range diffs {
		out.Changes = append(out.Changes, admin.ProfileChange(d))
	}
	return out, nil
}
