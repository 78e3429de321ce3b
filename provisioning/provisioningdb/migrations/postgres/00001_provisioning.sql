-- +goose Up

-- What an installation makes once.
CREATE TABLE identity (
	one         INTEGER PRIMARY KEY CHECK (one = 1),
	id_scope    TEXT NOT NULL,
	service_key BYTEA NOT NULL,
	created_at  BIGINT NOT NULL
);

-- Times are unix microseconds, 0 for none; booleans 0 and 1.
CREATE TABLE enrollment_group (
	id            TEXT COLLATE "C" PRIMARY KEY,
	etag          TEXT NOT NULL,
	enabled       INTEGER NOT NULL,
	primary_der   BYTEA NOT NULL,
	secondary_der BYTEA,
	allocation    TEXT NOT NULL,
	hubs          TEXT NOT NULL, -- JSON array of names
	created_at    BIGINT NOT NULL,
	updated_at    BIGINT NOT NULL
);

-- A signing certificate stands in one group only.
CREATE TABLE signing_certificate (
	thumbprint BYTEA PRIMARY KEY, -- SHA-256
	group_id   TEXT COLLATE "C" NOT NULL REFERENCES enrollment_group (id) ON DELETE CASCADE
);
CREATE INDEX signing_certificate_group ON signing_certificate (group_id);

-- A registration outlives its group: revocation must still find its hub.
CREATE TABLE registration (
	id             TEXT COLLATE "C" PRIMARY KEY,
	group_id       TEXT COLLATE "C" NOT NULL,
	account        TEXT NOT NULL,
	hub            TEXT NOT NULL,
	status         TEXT NOT NULL,
	substatus      TEXT NOT NULL,
	blocked        TEXT NOT NULL, -- device state, or empty
	operation      TEXT NOT NULL,
	prev_operation TEXT NOT NULL,
	thumbprint     BYTEA NOT NULL,
	not_before     BIGINT NOT NULL,
	newest         BIGINT NOT NULL,
	delivered      INTEGER NOT NULL,
	error_code     INTEGER NOT NULL,
	error_message  TEXT NOT NULL,
	version        BIGINT NOT NULL,
	created_at     BIGINT NOT NULL,
	updated_at     BIGINT NOT NULL
);
CREATE INDEX registration_group ON registration (group_id, id);
CREATE INDEX registration_blocked ON registration (id) WHERE blocked <> '';

-- One row per hub that must hear of a registration.
CREATE TABLE outbox (
	hub             TEXT NOT NULL,
	registration_id TEXT COLLATE "C" NOT NULL REFERENCES registration (id) ON DELETE CASCADE,
	version         BIGINT NOT NULL, -- of the registration that asked
	due_at          BIGINT NOT NULL,
	attempts        INTEGER NOT NULL,
	last_error      TEXT NOT NULL,
	owner           TEXT NOT NULL, -- replica that delivers, or empty
	leased_until    BIGINT NOT NULL,
	PRIMARY KEY (hub, registration_id)
);
CREATE INDEX outbox_due ON outbox (hub, due_at);
CREATE INDEX outbox_registration ON outbox (registration_id);
