-- +goose Up
-- Times are microseconds since 1970 (UTC), 0 for never. Booleans are 0 and 1.
CREATE TABLE hubs (
    id         BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    created    BIGINT NOT NULL,
    last_event BIGINT NOT NULL DEFAULT 0 -- cursor of the newest event; its row lock puts commits in order
) WITH (fillfactor = 50);

CREATE TABLE policies (
    hub           BIGINT NOT NULL REFERENCES hubs (id),
    name          TEXT COLLATE "C" NOT NULL,
    primary_key   BYTEA  NOT NULL,
    secondary_key BYTEA  NOT NULL,
    rights        BIGINT NOT NULL,
    PRIMARY KEY (hub, name)
);

-- No foreign key to hubs: it would lock the row that every batch of events updates, and hubs are never removed.
CREATE TABLE devices (
    hub            BIGINT NOT NULL,
    id             TEXT COLLATE "C" NOT NULL,
    generation     TEXT   NOT NULL,
    etag           TEXT   NOT NULL,
    disabled       BIGINT NOT NULL,
    reason         TEXT   NOT NULL,
    status_changed BIGINT NOT NULL,
    primary_thumb  TEXT   NOT NULL, -- lower-case hex, SHA-256 or SHA-1; '' is free
    secondary_thumb TEXT  NOT NULL,
    iot_edge       BIGINT NOT NULL,
    created        BIGINT NOT NULL,
    updated        BIGINT NOT NULL,
    PRIMARY KEY (hub, id)
) WITH (fillfactor = 85);

-- One tree for all hubs' streams: place is the hub's id times 2^44 plus the cursor, which counts from 1.
CREATE TABLE events (
    place      BIGINT PRIMARY KEY,
    device     TEXT COLLATE "C" NOT NULL,
    enqueued   BIGINT NOT NULL,
    properties TEXT   NOT NULL, -- property bag as in the topic
    body       BYTEA  NOT NULL
);
