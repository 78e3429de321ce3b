-- +goose Up
CREATE TABLE operators (
  account   TEXT NOT NULL, -- empty: the installation
  name      TEXT NOT NULL,
  role      TEXT NOT NULL,
  token     TEXT NOT NULL UNIQUE, -- its name, not its secret
  hash      BLOB NOT NULL, -- MAC over the row and the secret
  created   INTEGER NOT NULL,
  expires   INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  PRIMARY KEY (account, name)
) STRICT;

-- +goose Down
SELECT 1;
