-- +goose Up
-- Whose cosignatures are taken, per log (C2SP tlog-cosignature).
CREATE TABLE witnesses (
  log   TEXT NOT NULL,
  name  TEXT NOT NULL,
  key   TEXT NOT NULL,
  added INTEGER NOT NULL,
  PRIMARY KEY (log, name)
) STRICT;
-- Nodes of the Merkle tree, a memory of what the leaves say: the root over 256^level leaves from n * 256^level on.
CREATE TABLE log_hashes (
  log   TEXT NOT NULL,
  level INTEGER NOT NULL, -- 1 and above
  n     INTEGER NOT NULL,
  hash  BLOB NOT NULL,
  PRIMARY KEY (log, level, n)
) STRICT;
ALTER TABLE logs ADD COLUMN public INTEGER NOT NULL DEFAULT 0; -- 1: tiles are served without a token
-- Logs of a restored store that may be behind what is known outside: closed until they have caught up.
CREATE TABLE restored (
  log      TEXT PRIMARY KEY,
  size     INTEGER NOT NULL, -- of the log when it was restored
  known    BLOB,          -- newest checkpoint known outside; NULL: nobody said one
  at       INTEGER NOT NULL
) STRICT;

-- +goose Down
SELECT 1;
