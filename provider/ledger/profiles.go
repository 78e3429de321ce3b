package ledger

import (
	"encoding/json"
)

// profileLeaf is how a leaf speaks of a profile: by the digest of its text, or by the old and the new one's.
type profileLeaf struct{ Old, New string }

// UnmarshalJSON implements json.Unmarshaler.
func (p *profileLeaf) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &p.New)
	}
	type plain profileLeaf
	return json.Unmarshal(b, (*plain)(p))
}

func (v *verification) profiled(b Body) {
	for name, p := range b.Profiles {
		if v.profiles == nil {
			v.profiles = map[string]string{}
		}
		v.profiles[name] = p.New
	}
}

// finishProfiles holds the account's profiles against what the leaves said of them.
func (v *verification) finishProfiles() {
	if v.accountRow == nil || v.profiles == nil {
		return
	}
	for name, text := range v.accountRow.Profiles {
		if got := hexDigest([]byte(text)); got != v.profiles[name] {
			v.find(AccountChanged, "account "+v.accountRow.ID, "its profile %s has the digest %s, the log says %q", name, got, v.profiles[name])
		}
	}
	for name := range v.profiles {
		if _, there := v.accountRow.Profiles[name]; !there {
			v.find(AccountChanged, "account "+v.accountRow.ID, "its profile %s is gone", name)
		}
	}
}
