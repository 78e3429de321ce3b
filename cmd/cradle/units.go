package main

import (
	"context"

	"github.com/cradle-iot/cradle/provider"
	"github.com/cradle-iot/cradle/provisioning"
)

// units lets the provisioning service ask the provider for the units of TPM groups.
type units struct{ p *provider.Provider }

// UnitByEK implements provisioning.UnitSource.
func (u units) UnitByEK(ctx context.Context, ek [32]byte) (provisioning.Unit, error) {
	d, err := u.p.DeviceByEK(ctx, ek)
	return provisioning.Unit{Device: d.ID, Account: d.Account, Order: d.Order, Lot: d.Lot, State: d.State, Tier: d.Tier, Maker: d.Maker}, err
}
