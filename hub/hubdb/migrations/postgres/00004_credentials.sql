-- +goose Up
-- The policy under which the device's certificate is renewed, "<account>-<profile>"; empty: it is not.
ALTER TABLE devices ADD COLUMN policy TEXT NOT NULL DEFAULT '';

-- A device's newest wish for a certificate, and what became of it.
CREATE TABLE credential_requests (
    hub         BIGINT NOT NULL,
    device      TEXT    NOT NULL,
    id          TEXT    NOT NULL, -- the device's own
    correlation TEXT    NOT NULL,
    csr         BYTEA    NOT NULL, -- DER
    state       TEXT    NOT NULL, -- active, issued, refused
    chain       BYTEA    NOT NULL, -- DER certificates one behind the other, the leaf first
    code        BIGINT NOT NULL, -- of the refusal
    message     TEXT    NOT NULL,
    told        BIGINT NOT NULL, -- 1: the answer was sent
    asked       BIGINT NOT NULL,
    expires     BIGINT NOT NULL,
    begun       BIGINT NOT NULL, -- when the device's present hour began, and how many it has asked for in it
    count       BIGINT NOT NULL,
    PRIMARY KEY (hub, device),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
);
