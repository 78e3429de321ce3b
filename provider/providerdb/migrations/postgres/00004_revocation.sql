-- +goose Up
-- What CRLs and OCSP say of certificates that are revoked or on hold. certificates.revoked is what authentication reads; both
-- are written by one transaction. A hold that is released leaves no row.
CREATE TABLE revocations (
  serial    TEXT PRIMARY KEY,
  account   TEXT NOT NULL,
  device    TEXT NOT NULL,
  authority TEXT NOT NULL,
  shard     BIGINT NOT NULL, -- of the authority's CRLs, as the certificate's distribution point says
  not_after BIGINT NOT NULL,
  at        BIGINT NOT NULL,
  code      BIGINT NOT NULL, -- CRLReason
  by_device BIGINT NOT NULL  -- 1: a hold that ends when its device is released
);
CREATE INDEX revocations_shard ON revocations (authority, shard);
CREATE INDEX revocations_device ON revocations (account, device);
ALTER TABLE feed ADD COLUMN released BIGINT NOT NULL DEFAULT 0;
CREATE TABLE crl_shards (
  authority   TEXT NOT NULL,
  shard       BIGINT NOT NULL,
  url         TEXT NOT NULL,
  replica     TEXT NOT NULL, -- that issues into it; empty: it is full
  issued      BIGINT NOT NULL, -- about how many certificates name it
  last_expiry BIGINT NOT NULL, -- of those certificates
  wanted      BIGINT NOT NULL, -- moves with each change of the set
  made        BIGINT NOT NULL, -- the value of wanted that the newest CRL shows
  number      BIGINT NOT NULL, -- of the newest CRL
  this_update BIGINT NOT NULL,
  next_update BIGINT NOT NULL,
  der         BYTEA,
  PRIMARY KEY (authority, shard)
);
CREATE INDEX crl_shards_changed ON crl_shards (authority, shard) WHERE wanted > made;
CREATE INDEX crl_shards_due ON crl_shards (next_update);
CREATE TABLE ocsp_responders (
  authority  TEXT PRIMARY KEY,
  cert       BYTEA NOT NULL, -- empty: none was made yet
  sealed_key BYTEA NOT NULL,
  wanted     BIGINT NOT NULL -- 1: a front end without issuing keys needs a new one
);
CREATE INDEX ocsp_responders_wanted ON ocsp_responders (authority) WHERE wanted = 1;
CREATE TABLE leases (
  name   TEXT PRIMARY KEY,
  holder TEXT NOT NULL,
  until  BIGINT NOT NULL
);
-- Sets that are being revoked, held or released. While one runs nothing is issued to its devices.
CREATE TABLE revocation_jobs (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  selector TEXT NOT NULL,
  value    TEXT NOT NULL,
  action   TEXT NOT NULL,
  code     BIGINT NOT NULL,
  comment  TEXT NOT NULL,
  actor    TEXT NOT NULL,
  state    TEXT NOT NULL, -- running, done
  cursor   TEXT NOT NULL, -- the last device that was looked at
  total    BIGINT NOT NULL,
  done     BIGINT NOT NULL,
  feed     BIGINT NOT NULL, -- number of its newest event
  created  BIGINT NOT NULL,
  finished BIGINT NOT NULL
);
CREATE INDEX revocation_jobs_running ON revocation_jobs (account) WHERE state = 'running';
-- The keys on the path of a device's EK certificate, its anchor's included.
CREATE TABLE device_ek_issuers (
  issuer  TEXT NOT NULL, -- SHA-256 of its SPKI
  account TEXT NOT NULL,
  device  TEXT NOT NULL,
  PRIMARY KEY (issuer, account, device)
);
CREATE TABLE distrusts (
  digest TEXT PRIMARY KEY, -- of an EK's or an issuer's SPKI
  kind   TEXT NOT NULL,    -- ek, issuer
  reason TEXT NOT NULL,
  at     BIGINT NOT NULL
);
CREATE INDEX devices_lot ON devices (account, lot, id) WHERE lot <> '';

-- +goose Down
SELECT 1;
