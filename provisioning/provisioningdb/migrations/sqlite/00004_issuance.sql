-- +goose Up

-- The certificate that a device asked for in its newest register call: JSON with the policy, the CSR and, once it was
-- issued, the chain. Empty: it asked for none.
ALTER TABLE registration ADD COLUMN issuance TEXT NOT NULL DEFAULT '';
