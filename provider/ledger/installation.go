package ledger

import "time"

// installation is the log of what belongs to no account.
const installation = "provider"

// makerRecord is an OEM or a TPM maker's certificate: what its row says, and what the leaves said last.
type makerRecord struct {
	code   Code
	row    [2]string // an OEM's keys; an anchor's maker and tier
	said   [2]string
	logged bool

	created time.Time // an OEM
}

func (v *verification) anchor(r *AnchorRow) {
	name := "anchor " + r.ID
	if v.duplicate(name, v.makers[name] != nil) {
		return
	}
	v.makers[name] = &makerRecord{code: AnchorChanged, row: [2]string{r.Maker, r.Tier}}
	if got := hexDigest(r.DER); got != r.ID {
		v.find(AnchorChanged, name, "its certificate has the digest %s", got)
	}
}

// registered holds a leaf of the installation's log against the row of an OEM or an anchor. An anchor that is imported again keeps
// its row.
func (v *verification) registered(leaf, name string, at time.Time, code Code, said [2]string) {
	if v.header.Log != installation {
		return
	}
	m := v.makers[name]
	if m == nil {
		v.find(code, name, "%s records it, but it has no row", leaf)
		return
	}
	if !m.logged && code == OEMChanged {
		v.when(code, name, "it was added", m.created, leaf, at)
	}
	if !m.logged {
		m.said, m.logged = said, true
	}
}

// finishInstallation looks for rows that are not as the leaves have them.
func (v *verification) finishInstallation() {
	for name, m := range v.makers {
		switch {
		case !m.logged:
			v.find(m.code, name, "no leaf records it")
		case m.row != m.said:
			v.find(m.code, name, "the row says %q, the log %q", m.row, m.said)
		}
	}
}
