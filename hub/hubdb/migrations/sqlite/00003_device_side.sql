-- +goose Up
-- What belongs to a registered device or, with a module, to a module of it. It goes with the device's row; with a
-- module's row the module's deletion must remove it (forgetModule).

-- A device or module without a row has the empty twin: version 1 everywhere, no properties.
CREATE TABLE twins (
    hub              INTEGER NOT NULL,
    device           TEXT    NOT NULL,
    module           TEXT    NOT NULL, -- '' is the device itself
    version          INTEGER NOT NULL, -- grows with every write
    writes           INTEGER NOT NULL, -- of the service side; the ETag is made of it and the generation
    tags             TEXT    NOT NULL, -- JSON objects
    desired          TEXT    NOT NULL,
    desired_meta     TEXT    NOT NULL, -- $metadata
    desired_version  INTEGER NOT NULL,
    reported         TEXT    NOT NULL,
    reported_meta    TEXT    NOT NULL,
    reported_version INTEGER NOT NULL,
    PRIMARY KEY (hub, device, module),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- MQTT sessions kept between connections (clean = 0).
CREATE TABLE kept_sessions (
    hub           INTEGER NOT NULL,
    device        TEXT    NOT NULL,
    module        TEXT    NOT NULL,
    subscriptions INTEGER NOT NULL, -- bits: hub.Subscriptions
    PRIMARY KEY (hub, device, module),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Messages to devices, in the order of seq, until they are completed, rejected, purged, or have expired.
CREATE TABLE c2d (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    hub          INTEGER NOT NULL,
    device       TEXT    NOT NULL,
    properties   TEXT    NOT NULL, -- property bag as in the topic
    body         BLOB    NOT NULL,
    enqueued     INTEGER NOT NULL,
    expires      INTEGER NOT NULL,
    deliveries   INTEGER NOT NULL,
    lock         TEXT    NOT NULL, -- who has it now; '' nobody
    locked_until INTEGER NOT NULL,
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) STRICT;
CREATE INDEX c2d_device ON c2d (hub, device, seq);

-- CAs whose certificates admit devices of authentication type certificateAuthority.
CREATE TABLE trusted_cas (
    hub   INTEGER NOT NULL REFERENCES hubs (id),
    name  TEXT    NOT NULL,
    der   BLOB    NOT NULL,
    added INTEGER NOT NULL,
    PRIMARY KEY (hub, name)
) STRICT, WITHOUT ROWID;
