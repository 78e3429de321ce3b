-- +goose Up
-- What belongs to a registered device or, with a module, to a module of it. It goes with the device's row; with a
-- module's row the module's deletion must remove it (forgetModule).

-- A device or module without a row has the empty twin: version 1 everywhere, no properties.
CREATE TABLE twins (
    hub              BIGINT NOT NULL,
    device           TEXT COLLATE "C" NOT NULL,
    module           TEXT COLLATE "C" NOT NULL, -- '' is the device itself
    version          BIGINT NOT NULL, -- grows with every write
    writes           BIGINT NOT NULL, -- of the service side; the ETag is made of it and the generation
    tags             TEXT   NOT NULL, -- JSON objects
    desired          TEXT   NOT NULL,
    desired_meta     TEXT   NOT NULL, -- $metadata
    desired_version  BIGINT NOT NULL,
    reported         TEXT   NOT NULL,
    reported_meta    TEXT   NOT NULL,
    reported_version BIGINT NOT NULL,
    PRIMARY KEY (hub, device, module),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) WITH (fillfactor = 85);

-- MQTT sessions kept between connections (clean = 0).
CREATE TABLE kept_sessions (
    hub           BIGINT NOT NULL,
    device        TEXT COLLATE "C" NOT NULL,
    module        TEXT COLLATE "C" NOT NULL,
    subscriptions BIGINT NOT NULL, -- bits: hub.Subscriptions
    PRIMARY KEY (hub, device, module),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) WITH (fillfactor = 85);

-- Messages to devices, in the order of seq, until they are completed, rejected, purged, or have expired.
CREATE TABLE c2d (
    seq          BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    hub          BIGINT NOT NULL,
    device       TEXT COLLATE "C" NOT NULL,
    properties   TEXT   NOT NULL, -- property bag as in the topic
    body         BYTEA  NOT NULL,
    enqueued     BIGINT NOT NULL,
    expires      BIGINT NOT NULL,
    deliveries   BIGINT NOT NULL,
    lock         TEXT   NOT NULL, -- who has it now; '' nobody
    locked_until BIGINT NOT NULL,
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) WITH (fillfactor = 70);
CREATE INDEX c2d_device ON c2d (hub, device, seq);

-- CAs whose certificates admit devices of authentication type certificateAuthority.
CREATE TABLE trusted_cas (
    hub   BIGINT NOT NULL REFERENCES hubs (id),
    name  TEXT COLLATE "C" NOT NULL,
    der   BYTEA  NOT NULL,
    added BIGINT NOT NULL,
    PRIMARY KEY (hub, name)
);
