-- +goose Up
-- What a hub's events take up, so that they can be bounded: bodies, properties and a fixed sum for each (event.go).
ALTER TABLE hubs ADD COLUMN event_bytes BIGINT NOT NULL DEFAULT 0;
UPDATE hubs SET event_bytes = COALESCE((SELECT sum(length(body) + length(properties) + 64) FROM events
    WHERE place > hubs.id * 17592186044416 AND place < (hubs.id + 1) * 17592186044416), 0);

-- How far those came who pass the events on.
CREATE TABLE relays (
    hub    BIGINT NOT NULL,
    name   TEXT COLLATE "C" NOT NULL,
    cursor BIGINT NOT NULL,
    seen   BIGINT NOT NULL, -- when it was last at work
    PRIMARY KEY (hub, name)
) WITH (fillfactor = 50);

-- Work that one replica at a time does.
CREATE TABLE leases (
    name   TEXT COLLATE "C" PRIMARY KEY,
    holder TEXT   NOT NULL,
    until  BIGINT NOT NULL
) WITH (fillfactor = 50);

-- Policies that hubs made earlier lack; 8 is hub.DeviceConnect, 1 hub.RegistryRead. Two random UUIDs have 244 random bits.
UPDATE policies SET rights = rights | 8 WHERE name = 'iothubowner';
INSERT INTO policies (hub, name, primary_key, secondary_key, rights)
    SELECT id, 'device', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), 8
    FROM hubs ON CONFLICT (hub, name) DO NOTHING;
INSERT INTO policies (hub, name, primary_key, secondary_key, rights)
    SELECT id, 'registryRead', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), 1
    FROM hubs ON CONFLICT (hub, name) DO NOTHING;
