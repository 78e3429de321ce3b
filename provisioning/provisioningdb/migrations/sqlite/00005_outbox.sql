-- +goose Up

-- A row lives for the milliseconds that its delivery takes: each tree that it stands in costs twice. The primary key now
-- finds a registration's rows too.
CREATE TABLE outbox_next (
	registration_id TEXT NOT NULL REFERENCES registration (id) ON DELETE CASCADE,
	hub             TEXT NOT NULL,
	version         INTEGER NOT NULL, -- of the registration that asked
	due_at          INTEGER NOT NULL,
	attempts        INTEGER NOT NULL,
	last_error      TEXT NOT NULL,
	owner           TEXT NOT NULL, -- replica that delivers, or empty
	leased_until    INTEGER NOT NULL,
	PRIMARY KEY (registration_id, hub)
) WITHOUT ROWID;
INSERT INTO outbox_next SELECT registration_id, hub, version, due_at, attempts, last_error, owner, leased_until FROM outbox;
DROP TABLE outbox;
ALTER TABLE outbox_next RENAME TO outbox;
CREATE INDEX outbox_due ON outbox (hub, due_at);
