-- +goose Up
-- Profiles as data: a JSON object of TOML texts by profile, in place of three figures.
UPDATE accounts SET profiles = json_object(
  'ldevid', 'validity = "' || (json_extract(profiles, '$.ldevid_validity') / 1000000000) || 's"' || char(10)
    || 'renewal_threshold = ' || json_extract(profiles, '$.renewal_threshold') || char(10),
  'operational', 'validity = "' || (json_extract(profiles, '$.operational_validity') / 1000000000) || 's"' || char(10)
    || 'renewal_threshold = ' || json_extract(profiles, '$.renewal_threshold') || char(10));
-- Which device a public key was certified for: one device in the whole installation.
CREATE TABLE device_keys (
  spki    TEXT PRIMARY KEY, -- SHA-256 of the SubjectPublicKeyInfo
  account TEXT NOT NULL,
  device  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO device_keys SELECT spki, account, device FROM intents WHERE state = 'done' ORDER BY created;

-- +goose Down
SELECT 1;
