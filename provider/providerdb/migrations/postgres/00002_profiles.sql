-- +goose Up
-- Profiles as data: a JSON object of TOML texts by profile, in place of three figures.
UPDATE accounts SET profiles = json_build_object(
  'ldevid', format(E'validity = "%ss"\nrenewal_threshold = %s\n',
    (profiles::json->>'ldevid_validity')::bigint / 1000000000, profiles::json->>'renewal_threshold'),
  'operational', format(E'validity = "%ss"\nrenewal_threshold = %s\n',
    (profiles::json->>'operational_validity')::bigint / 1000000000, profiles::json->>'renewal_threshold'))::text;
-- Which device a public key was certified for: one device in the whole installation.
CREATE TABLE device_keys (
  spki    TEXT PRIMARY KEY, -- SHA-256 of the SubjectPublicKeyInfo
  account TEXT NOT NULL,
  device  TEXT NOT NULL
);
INSERT INTO device_keys SELECT spki, account, device FROM intents WHERE state = 'done' ORDER BY created ON CONFLICT DO NOTHING;

-- +goose Down
SELECT 1;
