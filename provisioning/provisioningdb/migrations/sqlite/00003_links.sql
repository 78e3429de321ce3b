-- +goose Up

-- A hub that devices can be assigned to, as an operator declared it. Of this installation's own hubs it
-- holds what was set of them.
CREATE TABLE linked_hub (
	name       TEXT PRIMARY KEY,
	etag       TEXT NOT NULL,
	settings   TEXT NOT NULL, -- JSON
	secret     BLOB,           -- connection string, or the broker administrator's user:password; null: none
	created_at INTEGER NOT NULL,
	updated_at INTEGER NOT NULL
);

-- What is still to be done for a registration beside its entry at the hub: JSON, empty: nothing.
ALTER TABLE registration ADD COLUMN move TEXT NOT NULL DEFAULT '';
