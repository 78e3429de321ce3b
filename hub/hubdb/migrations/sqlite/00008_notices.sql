-- +goose Up
-- Which events besides telemetry the hub's stream has: hub.Notices.
ALTER TABLE hubs ADD COLUMN notices INTEGER NOT NULL DEFAULT 0;
