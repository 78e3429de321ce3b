-- +goose Up
-- The policy under which the device's certificate is renewed, "<account>-<profile>"; empty: it is not.
ALTER TABLE devices ADD COLUMN policy TEXT NOT NULL DEFAULT '';

-- A device's newest wish for a certificate, and what became of it.
CREATE TABLE credential_requests (
    hub         INTEGER NOT NULL,
    device      TEXT    NOT NULL,
    id          TEXT    NOT NULL, -- the device's own
    correlation TEXT    NOT NULL,
    csr         BLOB    NOT NULL, -- DER
    state       TEXT    NOT NULL, -- active, issued, refused
    chain       BLOB    NOT NULL, -- DER certificates one behind the other, the leaf first
    code        INTEGER NOT NULL, -- of the refusal
    message     TEXT    NOT NULL,
    told        INTEGER NOT NULL, -- 1: the answer was sent
    asked       INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    begun       INTEGER NOT NULL, -- when the device's present hour began, and how many it has asked for in it
    count       INTEGER NOT NULL,
    PRIMARY KEY (hub, device),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
