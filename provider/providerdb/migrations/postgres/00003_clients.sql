-- +goose Up
-- Clients without evidence: devices that came by a password or another CA's certificate have no order and no EK,
-- so these are unique only where they are there.
ALTER TABLE devices ADD COLUMN origin TEXT NOT NULL DEFAULT ''; -- the credential by which it came; empty: an order
ALTER TABLE devices DROP CONSTRAINT devices_ek_digest_key;
ALTER TABLE devices DROP CONSTRAINT devices_order_id_serial_key;
CREATE UNIQUE INDEX devices_ek ON devices (ek_digest) WHERE ek_digest <> ''; -- one TPM is one device in the whole installation
CREATE UNIQUE INDEX devices_unit ON devices (order_id, serial) WHERE order_id <> '';

-- A lineage is a chain of certificates that follow one another in a slot of a device. With evidence there is one for
-- each profile, of the profile's name; without, one for each kind of request.
ALTER TABLE certificates ADD COLUMN lineage TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN superseded BIGINT NOT NULL DEFAULT 0;
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
  disabled BIGINT NOT NULL,
  created  BIGINT NOT NULL,
  PRIMARY KEY (account, profile, name)
);
CREATE TABLE client_cas (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  profile  TEXT NOT NULL,
  certs    TEXT NOT NULL, -- JSON
  tier     TEXT NOT NULL,
  oem      TEXT NOT NULL, -- admits the units of this OEM's accepted lots
  names    TEXT NOT NULL,
  disabled BIGINT NOT NULL,
  created  BIGINT NOT NULL
);
CREATE TABLE client_units (
  ca   TEXT NOT NULL,
  unit TEXT NOT NULL, -- id:, sn: or sha256: and the value
  name TEXT NOT NULL, -- device id; empty: the client's wish
  PRIMARY KEY (ca, unit)
);
CREATE TABLE approvals (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  request  TEXT NOT NULL UNIQUE, -- digest of profile, names, key and client
  profile  TEXT NOT NULL,
  device   TEXT NOT NULL,
  client   TEXT NOT NULL,
  subject  TEXT NOT NULL,
  spki     TEXT NOT NULL,
  csr      BYTEA NOT NULL,
  state    TEXT NOT NULL, -- waiting, approved, denied, used
  reason   TEXT NOT NULL,
  intent   TEXT NOT NULL, -- that used it
  asked    BIGINT NOT NULL,
  decided  BIGINT NOT NULL,
  expires  BIGINT NOT NULL
);
CREATE INDEX approvals_account ON approvals (account, state, asked);
CREATE TABLE keks (
  account TEXT NOT NULL,
  id      TEXT NOT NULL, -- DecryptKeyIdentifier, hexadecimal
  sealed  BYTEA NOT NULL,
  created BIGINT NOT NULL,
  PRIMARY KEY (account, id)
);
CREATE TABLE commitments (
  certificate TEXT PRIMARY KEY,
  salt        BYTEA NOT NULL,
  opened      BIGINT NOT NULL
);

-- +goose Down
SELECT 1;
