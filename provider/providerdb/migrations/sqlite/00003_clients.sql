-- +goose Up
-- Clients without evidence: devices that came by a password or another CA's certificate have no order and no EK,
-- so these are unique only where they are there.
CREATE TABLE devices3 (
  account     TEXT NOT NULL,
  id          TEXT NOT NULL,
  oem         TEXT NOT NULL,
  order_id    TEXT NOT NULL, -- empty: it came by its origin
  lot         TEXT NOT NULL,
  serial      TEXT NOT NULL,
  tier        TEXT NOT NULL,
  maker       TEXT NOT NULL,
  anchor      TEXT NOT NULL,
  ek_digest   TEXT NOT NULL,
  ek_cert     BLOB NOT NULL,
  iak         BLOB NOT NULL,
  idevid_cert TEXT NOT NULL,
  iak_cert    TEXT NOT NULL,
  state       TEXT NOT NULL,
  epoch       INTEGER NOT NULL,
  reason      TEXT NOT NULL,
  created     INTEGER NOT NULL,
  origin      TEXT NOT NULL DEFAULT '', -- the credential by which it came; empty: an order
  PRIMARY KEY (account, id)
) STRICT;
INSERT INTO devices3 SELECT account, id, oem, order_id, lot, serial, tier, maker, anchor, ek_digest, ek_cert, iak,
  idevid_cert, iak_cert, state, epoch, reason, created, '' FROM devices;
DROP TABLE devices;
ALTER TABLE devices3 RENAME TO devices;
CREATE UNIQUE INDEX devices_ek ON devices (ek_digest) WHERE ek_digest <> ''; -- one TPM is one device in the whole installation
CREATE UNIQUE INDEX devices_unit ON devices (order_id, serial) WHERE order_id <> '';

-- A lineage is a chain of certificates that follow one another in a slot of a device. With evidence there is one for
-- each profile, of the profile's name; without, one for each kind of request.
ALTER TABLE certificates ADD COLUMN lineage TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0;
UPDATE certificates SET lineage = profile;
DROP INDEX certificates_device;
CREATE INDEX certificates_device ON certificates (account, device, lineage, slot);
ALTER TABLE intents ADD COLUMN lineage TEXT NOT NULL DEFAULT '';
UPDATE intents SET lineage = profile;
ALTER TABLE quarantines RENAME COLUMN profile TO lineage;

CREATE TABLE basic_users (
  account  TEXT NOT NULL,
  profile  TEXT NOT NULL,
  name     TEXT NOT NULL,
  password TEXT NOT NULL, -- slow hash
  names    TEXT NOT NULL, -- pattern of the device names it may ask for
  tier     TEXT NOT NULL,
  disabled INTEGER NOT NULL,
  created  INTEGER NOT NULL,
  PRIMARY KEY (account, profile, name)
) STRICT;
CREATE TABLE client_cas (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  profile  TEXT NOT NULL,
  certs    TEXT NOT NULL, -- JSON
  tier     TEXT NOT NULL,
  oem      TEXT NOT NULL, -- admits the units of this OEM's accepted lots
  names    TEXT NOT NULL,
  disabled INTEGER NOT NULL,
  created  INTEGER NOT NULL
) STRICT;
CREATE TABLE client_units (
  ca   TEXT NOT NULL,
  unit TEXT NOT NULL, -- id:, sn: or sha256: and the value
  name TEXT NOT NULL, -- device id; empty: the client's wish
  PRIMARY KEY (ca, unit)
) STRICT;
CREATE TABLE approvals (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  request  TEXT NOT NULL UNIQUE, -- digest of profile, names, key and client
  profile  TEXT NOT NULL,
  device   TEXT NOT NULL,
  client   TEXT NOT NULL,
  subject  TEXT NOT NULL,
  spki     TEXT NOT NULL,
  csr      BLOB NOT NULL,
  state    TEXT NOT NULL, -- waiting, approved, denied, used
  reason   TEXT NOT NULL,
  intent   TEXT NOT NULL, -- that used it
  asked    INTEGER NOT NULL,
  decided  INTEGER NOT NULL,
  expires  INTEGER NOT NULL
) STRICT;
CREATE INDEX approvals_account ON approvals (account, state, asked);
CREATE TABLE keks (
  account TEXT NOT NULL,
  id      TEXT NOT NULL, -- DecryptKeyIdentifier, hexadecimal
  sealed  BLOB NOT NULL,
  created INTEGER NOT NULL,
  PRIMARY KEY (account, id)
) STRICT;
CREATE TABLE commitments (
  certificate TEXT PRIMARY KEY,
  salt        BLOB NOT NULL,
  opened      INTEGER NOT NULL
) STRICT;

-- +goose Down
SELECT 1;
