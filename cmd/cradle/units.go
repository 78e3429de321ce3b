package main

import (
	"context"
	"maps"
	"slices"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provisioning"
)

// units lets the provisioning service ask the provider for the units of TPM groups, and for accounts.
type units struct{ p *provider.Provider }

// UnitByEK implements provisioning.UnitSource.
func (u units) UnitByEK(ctx context.Context, ek [32]byte) (provisioning.Unit, error) {
	d, err := u.p.DeviceByEK(ctx, ek)
	return provisioning.Unit{Device: d.ID, Account: d.Account, Order: d.Order, Lot: d.Lot, State: d.State, Tier: d.Tier, Maker: d.Maker}, err
}

// CheckAccount implements provisioning.Owners.
func (u units) CheckAccount(ctx context.Context, account cradle.AccountID, policy string) error {
	profiles, err := u.p.Profiles(ctx, account)
	switch {
	case cradle.KindOf(err) == cradle.NotFound:
		return cradle.Errorf(cradle.Invalid, "there is no account %.80q", account).
			WithHint("name an account of this installation, or make it first: cradle account create")
	case err != nil || policy == "":
		return err
	}
	if _, ok := profiles[cradle.Profile(policy)]; !ok {
		return cradle.Errorf(cradle.Invalid, "account %s has no profile %.80q for a credential policy", account, policy).
			WithHint("it has: %v", slices.Sorted(maps.Keys(profiles)))
	}
	return nil
}

// CheckUnits implements provisioning.Owners.
func (u units) CheckUnits(ctx context.Context, of provisioning.Units) error {
	if of.Order != "" {
		if err := u.p.CheckOrder(ctx, of.Account, of.Order); err != nil {
			return named(err)
		}
	}
	for _, lot := range of.Lots {
		if err := u.p.CheckLot(ctx, of.Account, of.Order, lot); err != nil {
			return named(err)
		}
	}
	return nil
}

// named makes what was not found a fault of the request that names it.
func named(err error) error {
	if cradle.KindOf(err) != cradle.NotFound {
		return err
	}
	detail, hint := cradle.Public(err)
	return &cradle.Error{Kind: cradle.Invalid, Detail: detail, Hint: hint, Err: err}
}
