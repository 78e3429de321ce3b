-- +goose Up
-- Which events besides telemetry the hub's stream has: hub.Notices.
ALTER TABLE hubs ADD COLUMN notices BIGINT NOT NULL DEFAULT 0;
