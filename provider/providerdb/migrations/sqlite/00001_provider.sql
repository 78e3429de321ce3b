-- +goose Up
-- Times are microseconds since 1970 UTC; 0 is "never". Digests are lower-case hexadecimal.
CREATE TABLE secrets (
  name  TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT;
CREATE TABLE accounts (
  id        TEXT PRIMARY KEY,
  region    TEXT NOT NULL,
  order_key BLOB NOT NULL,
  profiles  TEXT NOT NULL, -- JSON
  created   INTEGER NOT NULL
) STRICT;
CREATE TABLE oems (
  id        TEXT PRIMARY KEY,
  order_key BLOB NOT NULL,
  lot_key   BLOB NOT NULL,
  created   INTEGER NOT NULL
) STRICT;
CREATE TABLE authorities (
  id         TEXT PRIMARY KEY, -- SHA-256 of cert
  kind       TEXT NOT NULL,
  account    TEXT NOT NULL,
  oem        TEXT NOT NULL,
  class      TEXT NOT NULL,
  cert       BLOB NOT NULL,
  chain      TEXT NOT NULL, -- JSON
  crosses    TEXT NOT NULL, -- JSON
  sealed_key BLOB NOT NULL,
  UNIQUE (kind, account, oem, class)
) STRICT;
CREATE TABLE anchors (
  fingerprint TEXT PRIMARY KEY,
  maker       TEXT NOT NULL,
  tier        TEXT NOT NULL,
  cert        BLOB NOT NULL,
  distrusted  INTEGER NOT NULL,
  imported    INTEGER NOT NULL
) STRICT;
CREATE TABLE orders (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  oem      TEXT NOT NULL,
  jws      BLOB NOT NULL,
  quantity INTEGER NOT NULL,
  used     INTEGER NOT NULL CHECK (used <= quantity),
  state    TEXT NOT NULL,
  reason   TEXT NOT NULL,
  created  INTEGER NOT NULL
) STRICT;
CREATE TABLE lots (
  id       TEXT PRIMARY KEY,
  account  TEXT NOT NULL,
  oem      TEXT NOT NULL,
  order_id TEXT NOT NULL,
  report   BLOB NOT NULL,
  report_digest TEXT NOT NULL UNIQUE,
  custody  BLOB NOT NULL,
  head     TEXT NOT NULL,
  units    INTEGER NOT NULL,
  state    TEXT NOT NULL,
  findings TEXT NOT NULL, -- JSON
  closed   INTEGER NOT NULL,
  accepted INTEGER NOT NULL
) STRICT;
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
  ek_cert     BLOB NOT NULL,
  iak         BLOB NOT NULL,
  idevid_cert TEXT NOT NULL,
  iak_cert    TEXT NOT NULL,
  state       TEXT NOT NULL,
  epoch       INTEGER NOT NULL,
  reason      TEXT NOT NULL,
  created     INTEGER NOT NULL,
  PRIMARY KEY (account, id),
  UNIQUE (order_id, serial)
) STRICT;
CREATE TABLE quarantines (
  account TEXT NOT NULL,
  device  TEXT NOT NULL,
  profile TEXT NOT NULL,
  PRIMARY KEY (account, device, profile)
) STRICT;
CREATE TABLE certificates (
  digest     TEXT PRIMARY KEY,
  serial     TEXT NOT NULL UNIQUE,
  account    TEXT NOT NULL,
  device     TEXT NOT NULL, -- of a station: its order
  profile    TEXT NOT NULL,
  authority  TEXT NOT NULL,
  der        BLOB NOT NULL,
  not_before INTEGER NOT NULL,
  not_after  INTEGER NOT NULL,
  slot       TEXT NOT NULL,
  intent     TEXT NOT NULL,
  issued     INTEGER NOT NULL,
  revoked    INTEGER NOT NULL,
  reason     TEXT NOT NULL
) STRICT;
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
  epoch        INTEGER NOT NULL,
  state        TEXT NOT NULL, -- open, done, void
  certificate  TEXT NOT NULL, -- digest of the outcome
  reason       TEXT NOT NULL,
  created      INTEGER NOT NULL,
  replica      TEXT NOT NULL
) STRICT;
CREATE INDEX intents_open ON intents (created) WHERE state = 'open';
CREATE TABLE feed_head (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  seq INTEGER NOT NULL
);
INSERT INTO feed_head VALUES (1, 0);
CREATE TABLE feed (
  seq     INTEGER PRIMARY KEY,
  account TEXT NOT NULL,
  device  TEXT NOT NULL,
  state   TEXT NOT NULL,
  epoch   INTEGER NOT NULL,
  reason  TEXT NOT NULL,
  at      INTEGER NOT NULL,
  certificate TEXT NOT NULL -- empty: the device itself
);
CREATE INDEX feed_device ON feed (account, device);
CREATE TABLE logs (
  log        TEXT PRIMARY KEY,
  size       INTEGER NOT NULL,
  frontier   BLOB NOT NULL, -- right edge of the Merkle tree (package ledger)
  signed     INTEGER NOT NULL,
  checkpoint BLOB
) STRICT;
CREATE TABLE leaves (
  log  TEXT NOT NULL,
  idx  INTEGER NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (log, idx)
) STRICT;
CREATE TABLE checkpoints (
  log  TEXT NOT NULL,
  size INTEGER NOT NULL,
  note BLOB NOT NULL,
  at   INTEGER NOT NULL,
  PRIMARY KEY (log, size)
) STRICT;

-- +goose Down
SELECT 1;
