package provisioning

import (
	"context"
	"slices"

	"github.com/cradle-iot/cradle"
)

// Unit is a device as the credential provider knows it.
type Unit struct {
	Device  cradle.DeviceID
	Account cradle.AccountID
	Order   cradle.OrderID
	Lot     cradle.LotID       // empty until its lot is closed
	State   cradle.DeviceState // cradle.Made until its lot is accepted
	Tier    cradle.Tier
	Maker   cradle.MakerID // of its TPM
}

// UnitSource is what the credential provider says of its units. A TPM group admits nobody whom it does not name.
type UnitSource interface {
	// UnitByEK finds the unit whose TPM has the endorsement key with this SHA-256 of its SubjectPublicKeyInfo;
	// cradle.NotFound when there is none.
	UnitByEK(ctx context.Context, ek [32]byte) (Unit, error)
}

// hold reports whether a unit is one of them.
func (u *Units) hold(x *Unit) bool {
	return x.Account == u.Account && (u.Order == "" || x.Order == u.Order) && (len(u.Lots) == 0 || slices.Contains(u.Lots, x.Lot))
}
