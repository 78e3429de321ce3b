package provider

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provider/ledger"
)

// A setting is a row by which somebody may do something: a user, another's CA, an operator, a witness, a key that is
// distrusted, an approval. The leaf of each change says the digest of what the row holds then, so that the audit names a
// row that was changed in the store alone. Times that tell nothing of a right are left out.

// settings is a leaf's word on rows.
func settings(rows ...ledger.SettingRow) map[string]string {
	out := map[string]string{}
	for _, r := range rows {
		out[r.Name] = r.Digest
	}
	return out
}

// gone is a leaf's word on a row that is removed.
func gone(name string) ledger.SettingRow { return ledger.SettingRow{Name: name} }

func settingOf(name string, content ...any) ledger.SettingRow {
	b, err := json.Marshal(content)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return ledger.SettingRow{Name: name, Digest: hexDigest(b)}
}

// Setting is the row as the log has it.
func (u *BasicUser) Setting() ledger.SettingRow {
	return settingOf(fmt.Sprintf("basic/%s/%s", u.Profile, u.Name), u.Account, u.Password, u.Names, u.Tier, u.Disabled)
}

// Setting is the row, with its manifest in any order, as the log has it.
func (c *ClientCA) Setting(units []ClientUnit) ledger.SettingRow {
	units = slices.SortedFunc(slices.Values(units), func(a, b ClientUnit) int { return strings.Compare(a.Unit, b.Unit) })
	return settingOf("client-ca/"+c.ID, c.Account, c.Profile, c.Certs, c.Tier, c.OEM, c.Names, c.Disabled, manifestDigest(units))
}

// Setting is the row as the log has it.
func (o *Operator) Setting() ledger.SettingRow {
	return settingOf(operatorSetting(o.Name), o.Account, o.Role, o.ID, o.Hash, unixMicro(o.Expires))
}

// Gone is the row after its removal.
func (o *Operator) Gone() ledger.SettingRow { return gone(operatorSetting(o.Name)) }

func operatorSetting(name string) string { return "operator/" + name }

// Setting is the row as the log has it; the reason is the first one's.
func (d *Distrusted) Setting() ledger.SettingRow {
	return settingOf(distrustSetting(d.Digest), d.Kind)
}

func distrustSetting(digest string) string { return "distrust/" + digest }

// Setting is the row as the log has it.
func (w *Witness) Setting() ledger.SettingRow { return settingOf(witnessSetting(w.Name), w.Key) }

func witnessSetting(name string) string { return "witness/" + name }

// Setting is the row as the log has it; one that was used was approved.
func (a *Approval) Setting() ledger.SettingRow {
	state := a.State
	if state == Used {
		state = Approved
	}
	return settingOf(ledger.ApprovalSetting+a.ID, a.Account, a.Request, a.Profile, a.Device, a.Client, a.Subject, a.SPKI, a.CSR, state, a.Reason)
}

// KEKSetting is the row of a key-encryption key as the log has it.
func KEKSetting(id string, sealed []byte) ledger.SettingRow {
	if sealed == nil {
		return gone("kek/" + id)
	}
	return settingOf("kek/"+id, sealed)
}

// EKIssuersSetting is on whose word a device's TPM is believed, in any order, as the leaf of its birth has it.
func EKIssuersSetting(device cradle.DeviceID, issuers []string) ledger.SettingRow {
	return settingOf(ledger.BirthSetting+string(device), slices.Sorted(slices.Values(issuers)))
}

// PublicSetting is the log's tiles being served to anybody, as the log has it.
func PublicSetting(public bool) ledger.SettingRow {
	if !public {
		return gone("public")
	}
	return settingOf("public", true)
}

func unixMicro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}
