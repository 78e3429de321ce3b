-- +goose Up
-- 1: what keys the row has are sealed (seal.go). Store.SealKeys seals the others, and finds them by the indexes.
ALTER TABLE policies ADD COLUMN sealed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN sealed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE modules ADD COLUMN sealed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX devices_unsealed ON devices (hub, id) WHERE sealed = 0 AND length(primary_key) + length(secondary_key) > 0;
CREATE INDEX modules_unsealed ON modules (hub, device, id) WHERE sealed = 0 AND length(primary_key) + length(secondary_key) > 0;
