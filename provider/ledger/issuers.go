package ledger

import "github.com/cradle-iot/cradle"

// station is the profile of the certificates of line stations.
const station = "station"

// unproved is the kind of authority that signs keys that nothing proved, of every profile of devices but those of birth.
const unproved = "unproved"

// registrar is the profile of the certificates of registration authorities; registration is the kind of authority that
// signs them and what they ask for, registered the slot of the latter.
const (
	registrar    = "registration-authority"
	registration = "registration"
	registered   = "/ra"
)

// deviceless reports whether certificates of a profile are no device's.
func deviceless(profile string) bool { return profile == station || profile == registrar }

// signsUnproved says which kind of authority signs a key that nothing proved, in a slot.
func signsUnproved(profile, lineage string) string {
	if lineage == profile+registered && issuerOf(profile) == "operational" {
		return registration
	}
	return unproved
}

// issuerOf says which kind of authority signs a profile. Those that an account adds are the operational CA's.
func issuerOf(profile string) string {
	if kind := issuers[profile]; kind != "" {
		return kind
	}
	return "operational"
}

var issuers = map[string]string{
	string(cradle.IDevID):      "idevid",
	string(cradle.IAK):         "idevid",
	string(cradle.LDevID):      "onboarding",
	string(cradle.Operational): "operational",
	station:                    "station",
	registrar:                  registration,
}
