package cradle

import (
	"fmt"
	"strings"
)

// AccountID names a solution builder's account: canonical lower case, at most 64 characters.
type AccountID string

// OEMID names a registered device maker.
type OEMID string

// OrderID names one order (the customization instructions to an OEM).
type OrderID string

// LotID names a closed lot of an order.
type LotID string

// DeviceID names a device within its account. It is the common name of its certificates, its
// registration id at the provisioning service and its device id at the hub; made by the
// order's naming template, canonical lower case, at most 64 characters.
type DeviceID string

// MakerID names a TPM maker as the operator tagged it at import, for example "infineon".
type MakerID string

// CertSerial is a certificate's serial number in lower-case hexadecimal without leading zeros.
type CertSerial string

// MaxIDLen bounds every identifier; a common name holds at most 64 characters (RFC 5280 ub-common-name).
const MaxIDLen = 64

// CheckID reports whether s is a canonical identifier: 1 to MaxIDLen of a-z, 0-9, '-', '.', '_',
// beginning and ending with a letter or digit. what names the field in the error.
func CheckID(what, s string) error {
	if s == "" || len(s) > MaxIDLen {
		return Errorf(Invalid, "%s must have 1 to %d characters, not %d", what, MaxIDLen, len(s))
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || !strings.ContainsRune("-._", rune(c))) {
			return Errorf(Invalid, "%s %q: use a-z, 0-9 and inner '-', '.', '_'", what, s)
		}
	}
	return nil
}

// Tier is how well a device's keys are protected. It comes from the tag of the TPM maker's anchor,
// which the operator set at import, never from the device (DESIGN §2).
type Tier string

// The tiers, strongest first.
const (
	DiscreteTPM Tier = "discrete-tpm"
	FirmwareTPM Tier = "firmware-tpm"
	VirtualTPM  Tier = "virtual-tpm"
	Simulator   Tier = "simulator"
	SoftwareKey Tier = "software-key"
)

// Tiers lists every tier, strongest first.
var Tiers = []Tier{DiscreteTPM, FirmwareTPM, VirtualTPM, Simulator, SoftwareKey}

// ParseTier accepts exactly the names of Tiers.
func ParseTier(s string) (Tier, error) {
	for _, t := range Tiers {
		if string(t) == s {
			return t, nil
		}
	}
	return "", Errorf(Invalid, "unknown tier %q: use one of %v", s, Tiers)
}

// Class decides the root under which a device lands.
type Class string

// The two classes; their roots never sign for one another.
const (
	Production Class = "production"
	Evaluation Class = "evaluation"
)

// Class of a tier: simulators and software keys are evaluation only.
func (t Tier) Class() Class {
	switch t {
	case DiscreteTPM, FirmwareTPM, VirtualTPM:
		return Production
	}
	return Evaluation
}

// Profile names a kind of certificate.
type Profile string

// The built-in profiles (DESIGN §2).
const (
	IDevID      Profile = "idevid"
	IAK         Profile = "iak"
	LDevID      Profile = "ldevid"
	Operational Profile = "operational"
)

// Label is the EST path segment (RFC 7030 §3.2.2) under which an account offers a profile.
// Labels are unique in an installation: "<account>-<profile>".
func Label(a AccountID, p Profile) string { return fmt.Sprintf("%s-%s", a, p) }

// DeviceState is where a device is in its life (DESIGN §2).
type DeviceState string

// The states. Only Made -> Accepted -> Active is walked without an operator.
const (
	Made      DeviceState = "made"      // IDevID exists; inert until the lot is accepted
	Accepted  DeviceState = "accepted"  // lot accepted, custody at the account
	Active    DeviceState = "active"    // holds an LDevID
	Suspended DeviceState = "suspended" // certificateHold; may be released
	Revoked   DeviceState = "revoked"   // final
	Retired   DeviceState = "retired"   // final, with evidence
)

// Blocked reports whether the state refuses the device everywhere.
func (s DeviceState) Blocked() bool { return s == Suspended || s == Revoked || s == Retired }
