package order

import (
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
)

// Facts is what is known of a unit that asks to be born. The provider takes Maker and Tier from
// the anchor that admitted the EK certificate, EKType and KeyAlgorithm from what was proved.
type Facts struct {
	EKMaker      cradle.MakerID
	Tier         cradle.Tier
	EKType       string // one of EKTypes
	Serial       string
	KeyAlgorithm string // of IAK and IDevID
	Used         int64  // units of the order that are reserved already, without this one
}

// Reason is one way in which a unit is outside its order.
type Reason struct {
	Field  string `json:"field"` // the order's field
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
}

func (r Reason) String() string { return r.Detail }

// CheckUnit returns every way in which a unit is outside the order at a moment; none means it may be born.
// Whether the order is open, closed or withdrawn is the provider's knowledge and not looked at here.
func (o *Order) CheckUnit(now time.Time, f Facts) []Reason {
	r := o.CheckLine(now, f.Serial, f.EKType)
	if !slices.Contains(o.TPMMakers, f.EKMaker) {
		r = append(r, reason("tpm_makers", "TPM maker %q is not one of the order's %v", f.EKMaker, o.TPMMakers)(
			"build the unit with a TPM that the order allows, or have the account order with this maker"))
	}
	if !slices.Contains(o.Tiers, f.Tier) {
		r = append(r, reason("tiers", "tier %q is not one of the order's %v", f.Tier, o.Tiers)(
			"a simulator needs an order for the tier simulator"))
	}
	if f.KeyAlgorithm != o.KeyAlgorithm {
		r = append(r, reason("key_algorithm", "key algorithm %.30q is not the order's %s", f.KeyAlgorithm, o.KeyAlgorithm)(
			"make the keys with the order's algorithm"))
	}
	if f.Used >= o.Quantity {
		r = append(r, reason("quantity", "all %d units of the order are used up", o.Quantity)(
			"have the account place a further order"))
	}
	return r
}

// CheckLine is the part of CheckUnit that a line can know before it asks the provider.
func (o *Order) CheckLine(now time.Time, serial, ekType string) []Reason {
	var r []Reason
	if now.Before(o.NotBefore) {
		r = append(r, reason("not_before", "the order begins at %s", stamp(o.NotBefore))("wait, or check the clock"))
	}
	if !now.Before(o.NotAfter) {
		r = append(r, reason("not_after", "the order expired at %s", stamp(o.NotAfter))("have the account place a new order"))
	}
	if !o.InRange(serial) {
		r = append(r, reason("serial_range", "serial %.70q is outside the order's range %s to %s",
			serial, o.SerialPrefix+o.SerialFirst, o.SerialPrefix+o.SerialLast)("use a serial number of the range, written exactly so"))
	}
	if !slices.Contains(o.EKTypes, ekType) {
		r = append(r, reason("ek_types", "endorsement key of type %.30q is not one of the order's %v", ekType, o.EKTypes)(
			"use a TPM with such an endorsement key"))
	}
	return r
}

// Refusal makes reasons the error that a caller gets, cradle.Forbidden; nil for none.
func Refusal(o *Order, reasons []Reason) error {
	if len(reasons) == 0 {
		return nil
	}
	var all []string
	for _, r := range reasons {
		all = append(all, r.Detail)
	}
	return cradle.Errorf(cradle.Forbidden, "outside order %s: %s", o.ID, strings.Join(all, "; ")).WithHint("%s", reasons[0].Hint)
}

// InRange reports whether serial is one of the order's serial numbers, in exactly its form.
func (o *Order) InRange(serial string) bool {
	digits, ok := strings.CutPrefix(serial, o.SerialPrefix)
	if !ok || len(digits) != len(o.SerialFirst) {
		return false
	}
	n, ok := counter(digits)
	first, last, err := o.counters()
	return ok && err == nil && n >= first && n <= last
}

// DeviceName makes the device id of a serial number from the naming template: {account}, {oem},
// {model}, {order} and {serial} are replaced, and the whole is lower-cased. The result is a
// canonical identifier, unique for the serial within the order. A serial outside the range is refused.
func (o *Order) DeviceName(serial string) (cradle.DeviceID, error) {
	if !o.InRange(serial) {
		return "", Refusal(o, o.CheckLine(o.NotBefore, serial, o.EKTypes[0]))
	}
	return o.name(serial)
}

func (o *Order) name(serial string) (cradle.DeviceID, error) {
	s := strings.NewReplacer("{account}", string(o.Account), "{oem}", string(o.OEM), "{model}", o.Model,
		"{order}", string(o.ID), "{serial}", serial).Replace(o.Naming)
	s = strings.ToLower(s)
	if err := cradle.CheckID("device id from naming "+o.Naming, s); err != nil {
		return "", err
	}
	return cradle.DeviceID(s), nil
}

// reason takes the hint apart, so that a check reads as what is wrong and then what to do.
func reason(field, format string, args ...any) func(hint string) Reason {
	return func(hint string) Reason {
		return Reason{field, cradle.Errorf(cradle.Forbidden, format, args...).Detail, hint}
	}
}
