package admin

import (
	"time"

	"github.com/cradle-iot/cradle"
)

// SetBasicUser lets a user of HTTP Basic in at one EST profile, or changes one.
type SetBasicUser struct {
	Profile  cradle.Profile `json:"profile"`
	User     string         `json:"user"`
	Password string         `json:"password,omitempty"`
	Names    string         `json:"names,omitempty"` // pattern of the device names it may ask for
	Tier     cradle.Tier    `json:"tier,omitempty"`  // of its devices; default software-key
	Disable  bool           `json:"disable,omitempty"`
}

// BasicUser describes a user of HTTP Basic.
type BasicUser struct {
	Account  cradle.AccountID `json:"account"`
	Profile  cradle.Profile   `json:"profile"`
	User     string           `json:"user"`
	Names    string           `json:"names,omitempty"`
	Tier     cradle.Tier      `json:"tier"`
	Disabled bool             `json:"disabled"`
	Created  time.Time        `json:"created_at"`
}

// SetClientCA lets units of another CA in at one EST profile.
type SetClientCA struct {
	Profile  cradle.Profile `json:"profile"`
	PEM      string         `json:"pem"`
	Manifest string         `json:"manifest,omitempty"`
	OEM      cradle.OEMID   `json:"oem,omitempty"`   // the units of its accepted lots
	Names    string         `json:"names,omitempty"` // pattern of the names that units without one may ask for
	Tier     cradle.Tier    `json:"tier,omitempty"`
}

// ClientCA describes another CA whose units are let in.
type ClientCA struct {
	ID           string           `json:"id"`
	Account      cradle.AccountID `json:"account"`
	Profile      cradle.Profile   `json:"profile"`
	Certificates []string         `json:"certificates"` // SHA-256
	Tier         cradle.Tier      `json:"tier"`
	OEM          cradle.OEMID     `json:"oem,omitempty"`
	Names        string           `json:"names,omitempty"`
	Units        int              `json:"units,omitempty"` // of the manifest just given
	Disabled     bool             `json:"disabled"`
	Created      time.Time        `json:"created_at"`
}

// Healed says how many lineages left quarantine.
type Healed struct {
	Device  cradle.DeviceID  `json:"device"`
	Account cradle.AccountID `json:"account"`
	Healed  int64            `json:"healed"`
}
