package provisioningdb

import (
	"encoding/json"
	"fmt"

	"github.com/cradle-iot/cradle/provisioning"
)

// Vault seals secrets under a key that is not in the database; keys/filekey has one. A value opens only for the name
// for which it was sealed.
type Vault interface {
	Seal(name string, secret []byte) []byte
	Open(name string, sealed []byte) ([]byte, error)
}

// plain is for a store without a vault.
type plain struct{}

func (plain) Seal(_ string, b []byte) []byte          { return b }
func (plain) Open(_ string, b []byte) ([]byte, error) { return b, nil }

// sealKeys returns the columns of an attestation's symmetric keys.
func (d *DB) sealKeys(name string, a *provisioning.Attestation) (primary, secondary []byte) {
	if a.Kind != provisioning.SymmetricKey {
		return nil, nil
	}
	return d.vault.Seal(name+"/primary", a.PrimaryKey), d.vault.Seal(name+"/secondary", a.SecondaryKey)
}

// openKeys opens what was scanned.
func (d *DB) openKeys(name string, a *provisioning.Attestation) (err error) {
	if a.Kind != provisioning.SymmetricKey {
		return nil
	}
	if a.PrimaryKey, err = d.vault.Open(name+"/primary", a.PrimaryKey); err != nil {
		return err
	}
	a.SecondaryKey, err = d.vault.Open(name+"/secondary", a.SecondaryKey)
	return err
}

// secrets is the column of that name, before it is sealed.
type secrets struct {
	Primary   []byte `json:"primary,omitempty"`
	Secondary []byte `json:"secondary,omitempty"`
	TPM       []byte `json:"tpm,omitempty"`
}

func (d *DB) openSecrets(r *provisioning.Registration, b []byte) error {
	b, err := d.vault.Open("registration/"+string(r.ID), b)
	if err != nil {
		return err
	}
	var s secrets
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("keys of registration %q: %w", r.ID, err)
	}
	r.Primary, r.Secondary, r.Keys.TPM = provisioning.Secret(s.Primary), provisioning.Secret(s.Secondary), provisioning.Secret(s.TPM)
	return nil
}

func (d *DB) sealSecrets(r *provisioning.Registration) any {
	if r.Primary == "" {
		return nil
	}
	b, err := json.Marshal(secrets{[]byte(r.Primary), []byte(r.Secondary), []byte(r.Keys.TPM)})
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return d.vault.Seal("registration/"+string(r.ID), b)
}
