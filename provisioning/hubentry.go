package provisioning

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/protocol/iothub"
)

// errSuperseded marks the refusal of a certificate that had its turn already.
var errSuperseded = errors.New("certificate was superseded")

// reasonPrefix marks a hub entry that we disabled, so that only our own act is taken back.
const reasonPrefix = "cradle: device is "

// conflictTries bounds how often an entry that changes under our hands is read again in one delivery.
const conflictTries = 5

// bringInLine makes the hub's entry what the registration says. It is idempotent, and may be repeated
// after any failure.
func bringInLine(ctx context.Context, hub HubRegistry, r Registration) error {
	if !r.Delivered && r.Blocked == "" {
		// The usual first time: create without looking first.
		err := hub.WriteDevice(ctx, newEntry(r), "")
		if err == nil || cradle.KindOf(err) != cradle.Conflict {
			return err
		}
	}
	var err error
	for range conflictTries {
		var cur *iothub.Device
		if cur, err = hub.GetDevice(ctx, r.DeviceID()); cradle.KindOf(err) == cradle.NotFound {
			if r.Blocked != "" {
				return nil // nothing there that could be used
			}
			err = hub.WriteDevice(ctx, newEntry(r), "")
		} else if err == nil {
			next, changed, mergeErr := mergeEntry(*cur, r)
			if mergeErr == nil && r.Blocked == "" {
				changed = r.credentialPolicy(&next) || changed
				if r.Edge && !next.Capabilities.IoTEdge { // never taken away: the hub's operator may have set it
					next.Capabilities.IoTEdge, changed = true, true
				}
			}
			if mergeErr != nil || !changed {
				return mergeErr
			}
			err = hub.WriteDevice(ctx, &next, cur.ETag)
		}
		if err == nil {
			return nil
		}
		if k := cradle.KindOf(err); k != cradle.Conflict && k != cradle.NotFound {
			return err
		}
	}
	return &cradle.Error{Kind: cradle.Conflict, Detail: "the hub's entry kept changing: " + err.Error(), Err: err}
}

func newEntry(r Registration) *iothub.Device {
	d := &iothub.Device{
		DeviceID:       r.DeviceID(),
		Status:         iothub.Enabled,
		Authentication: authentication(r),
		Capabilities:   iothub.Capabilities{IoTEdge: r.Edge},
	}
	r.credentialPolicy(d)
	return d
}

// authentication of a new entry: the certificate's thumbprint, or the keys.
func authentication(r Registration) iothub.Authentication {
	if r.Primary != "" {
		return iothub.Authentication{Type: iothub.SAS, SymmetricKey: iothub.SymmetricKey{
			PrimaryKey: base64.StdEncoding.EncodeToString([]byte(r.Primary)), SecondaryKey: base64.StdEncoding.EncodeToString([]byte(r.Secondary))}}
	}
	return iothub.Authentication{Type: iothub.SelfSigned, X509Thumbprint: iothub.X509Thumbprint{PrimaryThumbprint: r.Thumbprint.String()}}
}

// mergeEntry applies a registration to the entry that the hub has: the two-slot rule (DESIGN §4.7) and
// the block. It never changes the primary of an entry that has one.
func mergeEntry(d iothub.Device, r Registration) (next iothub.Device, changed bool, err error) {
	if r.Blocked != "" {
		if d.Status == iothub.Disabled {
			return d, false, nil
		}
		d.Status, d.StatusReason = iothub.Disabled, reasonPrefix+string(r.Blocked)
		return d, true, nil
	}
	if d.Status == iothub.Disabled && strings.HasPrefix(d.StatusReason, reasonPrefix) {
		d.Status, d.StatusReason, changed = iothub.Enabled, "", true
	}
	switch {
	case d.Authentication.Type == iothub.CertificateAuthority && r.Primary == "":
		return d, changed, nil // the hub's operator has it so: the hub checks the chain, and no thumbprint
	case r.Primary != "", d.Authentication.Type == iothub.SAS:
		// Keys have no two slots here: which one is new is the enrolment's business.
		if want := authentication(r); d.Authentication != want {
			d.Authentication, changed = want, true
		}
		return d, changed, nil
	}
	want, have := r.Thumbprint.String(), &d.Authentication.X509Thumbprint
	switch {
	case strings.EqualFold(have.PrimaryThumbprint, want), strings.EqualFold(have.SecondaryThumbprint, want):
	case r.Issuance.Chain != "" && r.Status != Assigning:
		// It had its turn when it was issued; the hub may have renewed it since.
	case r.NotBefore.Before(r.Newest):
		// An older certificate than one registered before, and no slot holds it: its turn is over, and
		// it does not come back.
		return d, false, &cradle.Error{
			Kind: cradle.Forbidden, Err: errSuperseded,
			Detail: "this certificate was superseded: a newer one of this device was registered and has taken its place",
			Hint:   "use the device's newest certificate, or enrol again",
		}
	case have.PrimaryThumbprint == "":
		have.PrimaryThumbprint, changed = want, true
	default:
		have.SecondaryThumbprint, changed = want, true
	}
	if d.Authentication.Type != iothub.SelfSigned {
		d.Authentication.Type, changed = iothub.SelfSigned, true
	}
	return d, changed, nil
}

// removeFrom takes a device off a hub that it has left.
func removeFrom(ctx context.Context, hub HubRegistry, id cradle.DeviceID) error {
	if err := hub.DeleteDevice(ctx, id, iothub.AnyETag); err != nil && cradle.KindOf(err) != cradle.NotFound {
		return err
	}
	return nil
}
