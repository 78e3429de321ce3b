-- +goose Up
-- How a device proves itself, and IoT Edge's tree of devices.
ALTER TABLE devices ADD COLUMN auth TEXT NOT NULL DEFAULT 'selfSigned'; -- sas, selfSigned, certificateAuthority, none
ALTER TABLE devices ADD COLUMN primary_key BLOB NOT NULL DEFAULT x''; -- of sas
ALTER TABLE devices ADD COLUMN secondary_key BLOB NOT NULL DEFAULT x'';
ALTER TABLE devices ADD COLUMN scope TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN parent TEXT NOT NULL DEFAULT ''; -- scope of the parent

CREATE TABLE modules (
    hub             INTEGER NOT NULL,
    device          TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    generation      TEXT    NOT NULL,
    etag            TEXT    NOT NULL,
    managed_by      TEXT    NOT NULL,
    auth            TEXT    NOT NULL,
    primary_key     BLOB    NOT NULL,
    secondary_key   BLOB    NOT NULL,
    primary_thumb   TEXT    NOT NULL,
    secondary_thumb TEXT    NOT NULL,
    created         INTEGER NOT NULL,
    updated         INTEGER NOT NULL,
    PRIMARY KEY (hub, device, id),
    FOREIGN KEY (hub, device) REFERENCES devices (hub, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
