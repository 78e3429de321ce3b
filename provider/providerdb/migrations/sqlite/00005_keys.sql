-- +goose Up
-- Issuing keys in stores of their own; CAs whose keys are rolled or certified anew.
ALTER TABLE accounts ADD COLUMN cas TEXT NOT NULL DEFAULT '{}'; -- JSON
CREATE TABLE cas (
  id         TEXT PRIMARY KEY, -- SHA-256 of cert
  kind       TEXT NOT NULL,
  account    TEXT NOT NULL,
  oem        TEXT NOT NULL,
  class      TEXT NOT NULL,
  cert       BLOB NOT NULL,
  chain      TEXT NOT NULL, -- JSON
  crosses    TEXT NOT NULL, -- JSON
  key_ref    TEXT NOT NULL, -- empty: the key is not kept here (external roots)
  sealed_key BLOB NOT NULL,
  state      TEXT NOT NULL, -- active, superseded
  created    INTEGER NOT NULL
) STRICT;
INSERT INTO cas SELECT id, kind, account, oem, class, cert, chain, crosses, 'file:ca/' || id, sealed_key, 'active', 0 FROM authorities;
DROP TABLE authorities;
ALTER TABLE cas RENAME TO authorities;
CREATE UNIQUE INDEX authorities_active ON authorities (kind, account, oem, class) WHERE state = 'active';
-- Keys that wait for a certificate from elsewhere.
CREATE TABLE pending_keys (
  id          TEXT PRIMARY KEY, -- SHA-256 of spki
  kind        TEXT NOT NULL,
  account     TEXT NOT NULL,
  oem         TEXT NOT NULL,
  class       TEXT NOT NULL,
  common_name TEXT NOT NULL,
  spki        BLOB NOT NULL,
  key_ref     TEXT NOT NULL,
  sealed_key  BLOB NOT NULL,
  created     INTEGER NOT NULL,
  UNIQUE (kind, account, oem, class)
) STRICT;
-- Intents that a signer apart has taken; each once.
CREATE TABLE permits (
  intent TEXT PRIMARY KEY,
  front  TEXT NOT NULL, -- SHA-256 of the certificate of the EST front end that brought it
  at     INTEGER NOT NULL
) STRICT;

-- +goose Down
SELECT 1;
