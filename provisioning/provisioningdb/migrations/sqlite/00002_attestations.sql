-- +goose Up

-- A group may have another attestation than signing certificates. Its terms are one JSON object.
ALTER TABLE enrollment_group ADD COLUMN kind TEXT NOT NULL DEFAULT 'x509CA';
ALTER TABLE enrollment_group ADD COLUMN primary_key BLOB;   -- symmetric keys, sealed by the installation's vault
ALTER TABLE enrollment_group ADD COLUMN secondary_key BLOB;
ALTER TABLE enrollment_group ADD COLUMN units TEXT NOT NULL DEFAULT ''; -- JSON: account, order, lots
ALTER TABLE enrollment_group ADD COLUMN terms TEXT NOT NULL DEFAULT '';
UPDATE enrollment_group SET terms = '{"enabled":' || CASE enabled WHEN 1 THEN 'true' ELSE 'false' END || ',"allocation":"' || allocation ||
	'","hubs":' || hubs || ',"reprovision":{"update_hub":true,"migrate_data":true}}';
ALTER TABLE enrollment_group DROP COLUMN enabled;
ALTER TABLE enrollment_group DROP COLUMN allocation;
ALTER TABLE enrollment_group DROP COLUMN hubs;

-- An individual enrolment, by its registration id.
CREATE TABLE enrollment (
	id            TEXT PRIMARY KEY,
	etag          TEXT NOT NULL,
	device        TEXT NOT NULL, -- at the hub; empty: the id
	account       TEXT NOT NULL,
	kind          TEXT NOT NULL,
	primary_der   BLOB, -- certificates
	secondary_der BLOB,
	primary_key   BLOB, -- symmetric keys, sealed by the installation's vault
	secondary_key BLOB,
	endorsement   BLOB, -- a TPM's public keys
	storage_root  BLOB,
	terms         TEXT NOT NULL, -- JSON
	info          TEXT NOT NULL,
	created_at    INTEGER NOT NULL,
	updated_at    INTEGER NOT NULL
);

ALTER TABLE registration ADD COLUMN kind TEXT NOT NULL DEFAULT 'x509CA';
ALTER TABLE registration ADD COLUMN device TEXT NOT NULL DEFAULT '';
ALTER TABLE registration ADD COLUMN secrets BLOB; -- JSON of the hub's keys and the TPM's blob, sealed; null for certificates
ALTER TABLE registration ADD COLUMN token BLOB;   -- SHA-256 of the SAS token that began the operation; null: none
ALTER TABLE registration ADD COLUMN prev_token BLOB;
ALTER TABLE registration ADD COLUMN payload TEXT NOT NULL DEFAULT '';
ALTER TABLE registration ADD COLUMN facts TEXT NOT NULL DEFAULT '';
