-- +goose Up
-- What a hub's events take up, so that they can be bounded: bodies, properties and a fixed sum for each (event.go).
ALTER TABLE hubs ADD COLUMN event_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE hubs SET event_bytes = COALESCE((SELECT sum(length(body) + length(properties) + 64) FROM events
    WHERE place > hubs.id * 17592186044416 AND place < (hubs.id + 1) * 17592186044416), 0);

-- How far those came who pass the events on.
CREATE TABLE relays (
    hub    INTEGER NOT NULL REFERENCES hubs (id),
    name   TEXT    NOT NULL,
    cursor INTEGER NOT NULL,
    seen   INTEGER NOT NULL, -- when it was last at work
    PRIMARY KEY (hub, name)
) STRICT, WITHOUT ROWID;

-- Work that one replica at a time does.
CREATE TABLE leases (
    name   TEXT    PRIMARY KEY,
    holder TEXT    NOT NULL,
    until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Policies that hubs made earlier lack; 8 is hub.DeviceConnect, 1 hub.RegistryRead.
UPDATE policies SET rights = rights | 8 WHERE name = 'iothubowner';
INSERT INTO policies (hub, name, primary_key, secondary_key, rights)
    SELECT id, 'device', randomblob(32), randomblob(32), 8 FROM hubs WHERE true ON CONFLICT (hub, name) DO NOTHING;
INSERT INTO policies (hub, name, primary_key, secondary_key, rights)
    SELECT id, 'registryRead', randomblob(32), randomblob(32), 1 FROM hubs WHERE true ON CONFLICT (hub, name) DO NOTHING;
