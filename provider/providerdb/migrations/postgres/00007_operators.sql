-- +goose Up
CREATE TABLE operators (
  account   TEXT NOT NULL, -- empty: the installation
  name      TEXT NOT NULL,
  role      TEXT NOT NULL,
  token     TEXT NOT NULL UNIQUE, -- its name, not its secret
  hash      BYTEA NOT NULL, -- MAC over the row and the secret
  created   BIGINT NOT NULL,
  expires   BIGINT NOT NULL,
  last_used BIGINT NOT NULL,
  PRIMARY KEY (account, name)
);

-- +goose Down
SELECT 1;
