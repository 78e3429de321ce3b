package provisioningdb

import (
	"encoding/json"
	"fmt"

	"github.com/cradle-iot/cradle"
	"github.com/cradle-iot/cradle/provisioning"
)

// issuance is the column of that name.
type issuance struct {
	Account cradle.AccountID `json:"account"`
	Policy  string           `json:"policy,omitempty"`
	CSR     []byte           `json:"csr,omitempty"`
	Chain   []byte           `json:"chain,omitempty"`
}

func openIssuance(r *provisioning.Registration, text string) error {
	var i issuance
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		return fmt.Errorf("issuance of registration %q: %w", r.ID, err)
	}
	r.Issuance = provisioning.Issuance{Account: i.Account, Policy: i.Policy, CSR: string(i.CSR), Chain: string(i.Chain)}
	return nil
}

// issuanceText is empty for nearly every registration.
func issuanceText(r *provisioning.Registration) string {
	if r.Issuance == (provisioning.Issuance{}) {
		return ""
	}
	b, err := json.Marshal(issuance{r.Issuance.Account, r.Policy, []byte(r.CSR), []byte(r.Chain)})
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return string(b)
}
