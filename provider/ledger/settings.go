package ledger

import "strings"

// SettingRow is a row by which somebody may do something, as the provider names it, and the digest of its content. A leaf
// that gives an empty digest removes it.
type SettingRow struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

// ApprovalSetting begins the names of approvals, which are forgotten after a while.
const ApprovalSetting = "approval/"

// BirthSetting begins the names of what a device's first leaf says; later ones of its birth do not change it.
const BirthSetting = "ek-issuers/"

func (v *verification) setting(r *SettingRow) {
	_, there := v.settingRows[r.Name]
	if !v.duplicate("setting "+r.Name, there) {
		v.settingRows[r.Name] = r.Digest
	}
}

// set plays a leaf over the settings.
func (v *verification) set(name string, b Body) {
	for row, digest := range b.Settings {
		if _, there := v.settings[row]; there && strings.HasPrefix(row, BirthSetting) {
			continue
		}
		v.settings[row] = said{digest, name}
	}
}

// said is the newest word on a row.
type said struct{ digest, leaf string }

// finishSettings holds the rows against the leaves.
func (v *verification) finishSettings() {
	for name, digest := range v.settingRows {
		switch s, there := v.settings[name]; {
		case !there && strings.HasPrefix(name, BirthSetting): // a leaf of a signer apart says nothing of it where an EK came by tpmenroll
		case s.digest == "":
			v.find(SettingChanged, "setting "+name, "no leaf records it, or one removed it")
		case s.digest != digest:
			v.find(SettingChanged, "setting "+name, "its content is not what %s recorded", s.leaf)
		}
	}
	for name, s := range v.settings {
		if _, there := v.settingRows[name]; !there && s.digest != "" && !strings.HasPrefix(name, ApprovalSetting) {
			v.find(SettingChanged, "setting "+name, "%s recorded it, and it is gone", s.leaf)
		}
	}
}
