-- +goose Up
-- Times are microseconds since 1970 (UTC), 0 for never. Booleans are 0 and 1.
CREATE TABLE hubs (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    created    INTEGER NOT NULL,
    last_event INTEGER NOT NULL DEFAULT 0 -- cursor of the newest event
) STRICT;

CREATE TABLE policies (
    hub           INTEGER NOT NULL REFERENCES hubs (id),
    name          TEXT    NOT NULL,
    primary_key   BLOB    NOT NULL,
    secondary_key BLOB    NOT NULL,
    rights        INTEGER NOT NULL,
    PRIMARY KEY (hub, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    hub            INTEGER NOT NULL REFERENCES hubs (id),
    id             TEXT    NOT NULL,
    generation     TEXT    NOT NULL,
    etag           TEXT    NOT NULL,
    disabled       INTEGER NOT NULL,
    reason         TEXT    NOT NULL,
    status_changed INTEGER NOT NULL,
    primary_thumb  TEXT    NOT NULL, -- lower-case hex, SHA-256 or SHA-1; '' is free
    secondary_thumb TEXT   NOT NULL,
    iot_edge       INTEGER NOT NULL,
    created        INTEGER NOT NULL,
    updated        INTEGER NOT NULL,
    PRIMARY KEY (hub, id)
) STRICT, WITHOUT ROWID;

-- One tree for all hubs' streams: place is the hub's id times 2^44 plus the cursor, which counts from 1.
CREATE TABLE events (
    place      INTEGER PRIMARY KEY,
    device     TEXT    NOT NULL,
    enqueued   INTEGER NOT NULL,
    properties TEXT    NOT NULL, -- property bag as in the topic
    body       BLOB    NOT NULL
) STRICT;
