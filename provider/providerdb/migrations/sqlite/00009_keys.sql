-- Certificates are found by their serial numbers, which ascend with time. A digest is no key: it is random, so that each row
-- would change an index page of its own. Who looks for one knows the serial number or the device besides.
--
-- +goose Up
CREATE TABLE certificates9 (
  serial     TEXT PRIMARY KEY,
  digest     TEXT NOT NULL,
  account    TEXT NOT NULL,
  device     TEXT NOT NULL, -- of a station: its order
  profile    TEXT NOT NULL,
  authority  TEXT NOT NULL,
  der        BLOB NOT NULL,
  not_before INTEGER NOT NULL,
  not_after  INTEGER NOT NULL,
  slot       TEXT NOT NULL,
  intent     TEXT NOT NULL,
  issued     INTEGER NOT NULL,
  revoked    INTEGER NOT NULL,
  reason     TEXT NOT NULL,
  lineage    TEXT NOT NULL DEFAULT '',
  superseded INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO certificates9 SELECT serial, digest, account, device, profile, authority, der, not_before, not_after, slot, intent, issued, revoked, reason,
  lineage, superseded FROM certificates ORDER BY rowid;
DROP TABLE certificates;
ALTER TABLE certificates9 RENAME TO certificates;
CREATE INDEX certificates_device ON certificates (account, device, lineage, slot);
CREATE INDEX certificates_registrars ON certificates (account, issued) WHERE profile = 'registration-authority';

-- +goose Down
SELECT 1;
