-- +goose Up
-- Whose cosignatures are taken, per log (C2SP tlog-cosignature).
CREATE TABLE witnesses (
  log   TEXT NOT NULL,
  name  TEXT NOT NULL,
  key   TEXT NOT NULL,
  added BIGINT NOT NULL,
  PRIMARY KEY (log, name)
);
-- Nodes of the Merkle tree, a memory of what the leaves say: the root over 256^level leaves from n * 256^level on.
CREATE TABLE log_hashes (
  log   TEXT NOT NULL,
  level BIGINT NOT NULL, -- 1 and above
  n     BIGINT NOT NULL,
  hash  BYTEA NOT NULL,
  PRIMARY KEY (log, level, n)
);
ALTER TABLE logs ADD COLUMN public BIGINT NOT NULL DEFAULT 0; -- 1: tiles are served without a token
-- Logs of a restored store that may be behind what is known outside: closed until they have caught up.
CREATE TABLE restored (
  log      TEXT PRIMARY KEY,
  size     BIGINT NOT NULL, -- of the log when it was restored
  known    BYTEA,          -- newest checkpoint known outside; NULL: nobody said one
  at       BIGINT NOT NULL
);

-- +goose Down
SELECT 1;
