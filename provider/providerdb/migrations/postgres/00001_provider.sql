-- +goose Up
-- Times are microseconds since 1970 UTC; 0 is "never". Digests are lower-case hexadecimal.
CREATE TABLE secrets (
  name  TEXT PRIMARY KEY,
  value BYTEA NOT NULL
);
CREATE TABLE accounts (
  id        TEXT PRIMARY KEY,
  region    TEXT NOT NULL,
  order_key BYTEA NOT NULL,
  profiles  TEXT NOT NULL, -- JSON
  created   BIGINT NOT NULL
);
CREATE TABLE oems (
  id        TEXT PRIMARY KEY,
  order_key BYTEA NOT NULL,
  lot_key   BYTEA NOT NULL,
  created   BIGINT NOT NULL
);
CREATE TABLE authorities (
  id         TEXT PRIMARY KEY, -- SHA-256 of cert
  kind       TEXT NOT NULL,
  account    TEXT NOT NULL,
  oem        TEXT NOT NULL,
  class      TEXT NOT NULL,
  cert       BYTEA NOT NULL,
  chain      TEXT NOT NULL, -- JSON
  crosses    TEXT NOT NULL, -- JSON
  sealed_key BYTEA NOT NULL,
  UNIQUE (kind, account, oem, class)
);
CREATE TABLE anchors (
  fingerprint TEXT PRIMARY KEY,
  maker       TEXT NOT NULL,
  tier        TEXT NOT NULL,
  cert        BYTEA NOT NULL,
  distrusted  BIGINT NOT NULL,
  imported    BIGINT NOT NULL
);
CREATE TABLE orders (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  oem      TEXT NOT NULL,
  jws      BYTEA NOT NULL,
  quantity BIGINT NOT NULL,
  used     BIGINT NOT NULL CHECK (used <= quantity),
  state    TEXT NOT NULL,
  reason   TEXT NOT NULL,
  created  BIGINT NOT NULL
);
CREATE TABLE lots (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  oem      TEXT NOT NULL,
  order_id TEXT NOT NULL,
  report   BYTEA NOT NULL,
  report_digest TEXT NOT NULL UNIQUE,
  custody  BYTEA NOT NULL,
  head     TEXT NOT NULL,
  units    BIGINT NOT NULL,
  state    TEXT NOT NULL,
  findings TEXT NOT NULL, -- JSON
  closed   BIGINT NOT NULL,
  accepted BIGINT NOT NULL
);
CREATE TABLE devices (
  account     TEXT NOT NULL,
  id          TEXT NOT NULL,
  oem         TEXT NOT NULL,
  order_id    TEXT NOT NULL,
  lot         TEXT NOT NULL,
  serial      TEXT NOT NULL,
  tier        TEXT NOT NULL,
  maker       TEXT NOT NULL,
  anchor      TEXT NOT NULL,
  ek_digest   TEXT NOT NULL UNIQUE, -- one TPM is one device in the whole installation
  ek_cert     BYTEA NOT NULL,
  iak         BYTEA NOT NULL,
  idevid_cert TEXT NOT NULL,
  iak_cert    TEXT NOT NULL,
  state       TEXT NOT NULL,
  epoch       BIGINT NOT NULL,
  reason      TEXT NOT NULL,
  created     BIGINT NOT NULL,
  PRIMARY KEY (account, id),
  UNIQUE (order_id, serial)
);
CREATE TABLE quarantines (
  account TEXT NOT NULL,
  device  TEXT NOT NULL,
  profile TEXT NOT NULL,
  PRIMARY KEY (account, device, profile)
);
CREATE TABLE certificates (
  digest     TEXT PRIMARY KEY,
  serial     TEXT NOT NULL UNIQUE,
  account    TEXT NOT NULL,
  device     TEXT NOT NULL, -- of a station: its order
  profile    TEXT NOT NULL,
  authority  TEXT NOT NULL,
  der        BYTEA NOT NULL,
  not_before BIGINT NOT NULL,
  not_after  BIGINT NOT NULL,
  slot       TEXT NOT NULL,
  intent     TEXT NOT NULL,
  issued     BIGINT NOT NULL,
  revoked    BIGINT NOT NULL,
  reason     TEXT NOT NULL
);
CREATE INDEX certificates_device ON certificates (account, device, profile, slot);
CREATE TABLE intents (
  id           TEXT PRIMARY KEY,
  account      TEXT NOT NULL,
  device       TEXT NOT NULL,
  profile      TEXT NOT NULL,
  operation    TEXT NOT NULL,
  authority    TEXT NOT NULL,
  auth_cert    TEXT NOT NULL,
  auth_profile TEXT NOT NULL,
  csr          TEXT NOT NULL,
  spki         TEXT NOT NULL,
  challenge    TEXT NOT NULL UNIQUE, -- spent by this row
  serial       TEXT NOT NULL,
  epoch        BIGINT NOT NULL,
  state        TEXT NOT NULL, -- open, done, void
  certificate  TEXT NOT NULL, -- digest of the outcome
  reason       TEXT NOT NULL,
  created      BIGINT NOT NULL,
  replica      TEXT NOT NULL
);
CREATE INDEX intents_open ON intents (created) WHERE state = 'open';
CREATE TABLE feed_head (
  one BIGINT PRIMARY KEY CHECK (one = 1),
  seq BIGINT NOT NULL
);
INSERT INTO feed_head VALUES (1, 0);
CREATE TABLE feed (
  seq     BIGINT PRIMARY KEY,
  account TEXT NOT NULL,
  device  TEXT NOT NULL,
  state   TEXT NOT NULL,
  epoch   BIGINT NOT NULL,
  reason  TEXT NOT NULL,
  at      BIGINT NOT NULL,
  certificate TEXT NOT NULL -- empty: the device itself
);
CREATE INDEX feed_device ON feed (account, device);
CREATE TABLE logs (
  log        TEXT PRIMARY KEY,
  size       BIGINT NOT NULL,
  frontier   BYTEA NOT NULL, -- right edge of the Merkle tree (package ledger)
  signed     BIGINT NOT NULL,
  checkpoint BYTEA
);
CREATE TABLE leaves (
  log  TEXT NOT NULL,
  idx  BIGINT NOT NULL,
  data BYTEA NOT NULL,
  PRIMARY KEY (log, idx)
);
CREATE TABLE checkpoints (
  log  TEXT NOT NULL,
  size BIGINT NOT NULL,
  note BYTEA NOT NULL,
  at   BIGINT NOT NULL,
  PRIMARY KEY (log, size)
);

-- +goose Down
SELECT 1;
